/** Requests to this page's own server. The cookie says who asks; nothing goes anywhere else. */

export class ApiError extends Error {
  /** @param {number} status @param {string} reason @param {string} message */
  constructor(status, reason, message) {
    super(message);
    this.status = status;
    this.reason = reason;
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, redirect: "error" });
  } catch {
    throw new ApiError(0, "gone", "The page's server does not answer: start dinoprobe open again.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new ApiError(response.status, told.reason ?? "", told.error ?? `status ${response.status}`);
}

/**
 * @param {string} path
 * @param {Record<string, string | number | boolean>} [query]
 * @returns {Promise<any>}
 */
export async function get(path, query = {}) {
  const text = new URLSearchParams(Object.entries(query).map(([k, v]) => [k, String(v)])).toString();
  return (await ask(`/api/${path}${text ? `?${text}` : ""}`)).json();
}

/**
 * @param {string} path
 * @param {unknown} [body]
 * @returns {Promise<any>}
 */
export async function post(path, body = {}) {
  const headers = { "content-type": "application/json" };
  return (await ask(`/api/${path}`, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/**
 * @param {Blob} image
 * @returns {Promise<any>}
 */
export async function predict(image) {
  const headers = { "content-type": "application/octet-stream" };
  return (await ask("/api/predict", { method: "POST", headers, body: image })).json();
}

/**
 * Points of a map, or null while they are made.
 * @param {string} kind
 * @returns {Promise<Float32Array | null>}
 */
export async function points(kind) {
  const response = await ask(`/api/map?kind=${kind}`);
  if ((response.headers.get("content-type") ?? "").startsWith("application/json")) {
    const told = await response.json();
    if (told.state === "failed") throw new ApiError(500, "map", told.text);
    return null;
  }
  return new Float32Array(await response.arrayBuffer());
}
