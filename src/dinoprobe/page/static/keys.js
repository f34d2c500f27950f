/** Keys: what one press does, for the view that is shown, and a list of them for `?`. */

import { byId, h } from "./dom.js";

/** @typedef {{keys: string[], text: string, run: (key: string) => unknown}} Binding */

/** @type {Binding[]} */
let ofView = [];
/** @type {Binding[]} */
let ofPage = [];

/** @param {Binding[]} bindings */
export function pageKeys(bindings) {
  ofPage = bindings;
}

/** @param {Binding[]} bindings */
export function viewKeys(bindings) {
  ofView = bindings;
}

/** @param {KeyboardEvent} event */
function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const target = event.target instanceof Element ? event.target : document.body;
  if (target.closest("dialog, input:not([type=range]), select, textarea")) return;
  const control = target.closest("button, a, summary, input");
  if (control && (event.key === "Enter" || event.key === " ")) return;
  if (control instanceof HTMLInputElement && event.key.startsWith("Arrow")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const found = [...ofView, ...ofPage].find((binding) => binding.keys.includes(key));
  if (!found) return;
  event.preventDefault();
  found.run(key);
}

document.addEventListener("keydown", pressed);

const NAMES = /** @type {Record<string, string>} */ ({
  ArrowLeft: "←",
  ArrowRight: "→",
  ArrowUp: "↑",
  ArrowDown: "↓",
  " ": "Space",
});

export function showHelp() {
  const dialog = /** @type {HTMLDialogElement} */ (byId("help"));
  const lines = [...ofView, ...ofPage].map((binding) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, ...shown(binding.keys).map((key) => h("kbd", {}, key))),
      h("td", {}, binding.text),
    ),
  );
  const close = h("button", { type: "button", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(
    h("h2", { id: "help-title" }, "Keys"),
    h("table", { class: "keys" }, h("tbody", {}, lines)),
    close,
  );
  dialog.showModal();
  close.focus();
}

/** @param {string[]} keys */
function shown(keys) {
  const names = keys.map((key) => NAMES[key] ?? key.toUpperCase());
  return names.length > 4 ? [`${names[0]} to ${names[names.length - 1]}`] : names;
}
