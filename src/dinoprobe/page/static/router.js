/** The view and its state are in the address, behind #: they can be kept, and sent on. */

/** @typedef {{view: string, query: URLSearchParams}} Place */

/** @returns {Place} */
export function place() {
  const [view, query = ""] = location.hash.slice(1).split("?");
  return { view, query: new URLSearchParams(query) };
}

/**
 * @param {string} view
 * @param {Record<string, string | number | null | undefined>} [values]
 */
export function address(view, values = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(values)) {
    if (value !== null && value !== undefined && value !== "") query.set(key, String(value));
  }
  const text = query.toString();
  return `#${view}${text ? `?${text}` : ""}`;
}

/** Changes what the address says of a view that is still the one shown, without an entry in the history.
 * @param {string} view
 * @param {Record<string, string | number | null | undefined>} values
 */
export function remember(view, values) {
  const now = place();
  if (now.view && now.view !== view) return;
  history.replaceState(null, "", address(view, { ...Object.fromEntries(now.query), ...values }));
}
