/** Two runs on the images that both judged. */

import { get } from "./api.js";
import { h, percent, range } from "./dom.js";
import { viewKeys } from "./keys.js";
import { command } from "./model.js";
import { place, remember } from "./router.js";
import { state } from "./state.js";

/** @param {HTMLElement} main @returns {Promise<() => void>} */
export async function runs(main) {
  viewKeys([]);
  /** @type {string[]} */
  const names = (await get("runs")).runs;
  if (!names.length) {
    main.replaceChildren(h("p", { class: "note" }, "There is no other run in this run's folder. Save one here, or train one, and look again."));
    return () => undefined;
  }
  const select = h("select", { id: "other" }, names.map((name) => h("option", { value: name }, name)));
  const result = h("div", { class: "compared", "aria-live": "polite" });
  const asked = place().query.get("other");
  if (asked && names.includes(asked)) select.value = asked;
  select.addEventListener("change", show);
  main.replaceChildren(h("p", {}, h("label", { for: "other" }, "Compare "), select, ` (A) with ${state.info.title} (B)`), result);

  async function show() {
    remember("runs", { other: select.value });
    try {
      result.replaceChildren(...compared(await get("compare", { other: select.value })));
    } catch (error) {
      result.replaceChildren(h("p", { class: "problem" }, error instanceof Error ? error.message : String(error)));
    }
  }
  await show();
  return () => undefined;
}

/** @param {any} told */
function compared(told) {
  /** @param {string} name @param {any} side */
  const line = (name, side) =>
    h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, side.run.split("/").pop()), h("td", {}, h("b", {}, percent(side.accuracy)), ` ${range(side.interval)}`), h("td", {}, side.encoder), h("td", { class: "wrap" }, side.protocol));
  const counts = [["both right", told.both_right], ["only A", told.only_a], ["only B", told.only_b], ["both wrong", told.both_wrong]];
  return [
    h("p", { class: "finding" }, told.verdict),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Both runs" }, h("table", { class: "numbers" }, h("thead", {}, h("tr", {}, ["", "Run", "Accuracy, 95 %", "Encoder", "Protocol"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, line("A", told.a), line("B", told.b)))),
    h("p", { class: "summary" }, counts.map(([name, n]) => h("span", {}, h("b", {}, n), ` ${name}`))),
    ...told.notes.map((/** @type {string} */ note) => h("p", { class: "note" }, note)),
    h("p", {}, command(told.command)),
  ];
}
