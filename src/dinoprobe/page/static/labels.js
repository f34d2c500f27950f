/** Labels by key and by name: digits for the first ones, a list with search for all of them. */

import { byId, h } from "./dom.js";
import { state } from "./state.js";

export const DIGITS = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"];

/**
 * Which digit is which label. A label that is a digit has its own key; the others go in order.
 * @returns {Map<string, string>}
 */
export function digitLabels() {
  const found = new Map();
  const named = state.classes.filter((name) => DIGITS.includes(name));
  for (const name of named) found.set(name, name);
  const free = DIGITS.filter((digit) => !found.has(digit));
  const others = state.classes.filter((name) => !DIGITS.includes(name));
  for (const digit of free) {
    const name = others.shift();
    if (name !== undefined) found.set(digit, name);
  }
  return new Map([...found].sort((a, b) => DIGITS.indexOf(a[0]) - DIGITS.indexOf(b[0])));
}

/**
 * Asks for a label: one of the list, or a new one.
 * @param {string} question
 * @returns {Promise<string | null>}
 */
export function askLabel(question) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("picker"));
  const input = h("input", {
    type: "text",
    list: "all-labels",
    maxlength: "200",
    autocomplete: "off",
    "aria-label": question,
  });
  const options = state.classes.map((name) => h("option", { value: name }));
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", { id: "picker-title" }, question),
    h("p", {}, input, h("datalist", { id: "all-labels" }, options)),
    h("p", { class: "note" }, "A name that is not in the list becomes a new label."),
    h(
      "p",
      { class: "buttons" },
      h("button", { value: "yes", class: "primary" }, "Label"),
      h("button", { value: "no", type: "button", onclick: () => dialog.close("no") }, "Cancel"),
    ),
  );
  dialog.replaceChildren(form);
  dialog.returnValue = "no";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => resolve(dialog.returnValue === "yes" && input.value.trim() ? input.value.trim() : null),
      { once: true },
    );
  });
}
