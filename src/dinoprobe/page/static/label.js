/** Labelling from nothing: a handful of different images, a model, then those that it is unsure of. */

import { get } from "./api.js";
import { annotator } from "./annotate.js";
import { h, percent, plural, say } from "./dom.js";
import { viewKeys } from "./keys.js";
import { listen, refit, state } from "./state.js";

const AT_ONCE = 20;

/** @param {HTMLElement} main @returns {Promise<() => void>} */
export async function label(main) {
  const progress = h("p", { class: "where", "aria-live": "polite" });
  const why = h("p", { class: "note" });
  const more = h("button", { type: "button" }, h("kbd", {}, "M"), ` the next ${AT_ONCE}`);
  /** @type {string[]} */
  let keys = [];
  /** @type {number[]} */
  const history = [];
  let busy = false;
  const annotated = annotator({
    empty: "Every image that may be trained on has a label.",
    onDone: following,
  });

  const counted = () => state.labels.filter((each, row) => each !== null && !state.dropped[row]).length;

  function told() {
    const open = keys.filter((key) => {
      const row = state.rows.get(key);
      return row !== undefined && state.labels[row] === null && !state.dropped[row];
    }).length;
    progress.replaceChildren(
      h("b", {}, plural(counted(), "label")),
      keys.length ? ` · ${keys.length - open} of these ${keys.length} done` : "",
      history.length ? ` · out of fold: ${history.map((value) => percent(value, 0)).join(" → ")}` : "",
    );
  }

  async function load() {
    const found = await get("picks", { count: AT_ONCE });
    keys = found.keys;
    why.textContent =
      found.how === "diverse"
        ? "Images that differ from each other. Two classes at least make a model: name the first with L."
        : "Images that the model is least sure of, and that differ from each other.";
    annotated.show(keys.map((key) => ({ key, suggestion: null })));
    told();
  }

  /** Refits, and picks the next ones with the new model. */
  async function following() {
    if (busy) return;
    busy = true;
    const names = new Set(state.labels.filter((each, row) => each !== null && !state.dropped[row]));
    if (names.size > 1) {
      await refit();
      const judged = state.refit?.out_of_fold ?? state.refit?.test?.after;
      if (judged) history.push(judged.accuracy);
    } else say("One class so far: a second one makes a model.");
    await load();
    busy = false;
  }

  more.addEventListener("click", following);
  main.replaceChildren(h("div", { class: "row" }, progress, more), why, annotated.element);
  viewKeys([...annotated.keys, { keys: ["m"], text: "Refit, and pick the next images", run: following }]);
  await load();
  return listen(() => {
    annotated.update();
    told();
  });
}
