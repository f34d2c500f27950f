/** The review queue: one kind of finding at a time, one image after the other. */

import { get } from "./api.js";
import { annotator } from "./annotate.js";
import { h, plural } from "./dom.js";
import { viewKeys } from "./keys.js";
import { address, place, remember } from "./router.js";
import { listen } from "./state.js";

/** @type {[string, string, string][]} */
const KINDS = [
  ["suspect", "Doubtful labels", "Labels of the training part that heads which never saw them contradict."],
  ["duplicate", "Copies across the split", "Test images that also stand in the training part: the accuracy is too good by as much."],
  ["mistake", "Mistakes of the test part", "What the model is surely wrong about. Labels that you correct here are kept apart: the accuracy before and after is told on the same labels."],
  ["outlier", "Unlike the others", "Images far from all training images."],
  ["check", "Data check", "What dinoprobe check has found."],
  ["failure", "Files that fail", "Files that could not be read as images."],
];

/** @param {HTMLElement} main @returns {Promise<() => void>} */
export async function review(main) {
  main.replaceChildren(h("p", { class: "note" }, "Looking for what is doubtful …"));
  /** @type {import("./annotate.js").Item[]} */
  let items = (await get("queue")).items;
  const annotated = annotator({ onMove: (at) => remember("review", { at }), empty: "Nothing of this kind was found." });
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Kinds of findings" });
  const why = h("p", { class: "note" });
  const again = h("button", { type: "button" }, "Look again");
  again.title = "Out-of-fold predictions with the labels as they stand now";

  /** @param {string} kind */
  const of = (kind) => items.filter((item) => item.kind === kind);
  const present = () => KINDS.filter(([kind]) => of(kind).length || kind === "suspect");

  function current() {
    const asked = place().query.get("kind") ?? "";
    return present().some(([kind]) => kind === asked) ? asked : (present().find(([kind]) => of(kind).length) ?? KINDS[0])[0];
  }

  /** @param {number} at */
  function show(at) {
    const kind = current();
    chips.replaceChildren(
      ...present().map(([name, title]) =>
        h(
          "a",
          { href: address("review", { kind: name }), class: "chip", "aria-current": name === kind ? "true" : null },
          title,
          h("span", { class: "number" }, of(name).length),
        ),
      ),
    );
    why.textContent = KINDS.find(([name]) => name === kind)?.[2] ?? "";
    annotated.show(of(kind), at);
  }

  again.addEventListener("click", async () => {
    again.disabled = true;
    items = (await get("queue", { again: true })).items;
    again.disabled = false;
    show(0);
    why.textContent = `${plural(of("suspect").length, "doubtful label")} with the labels as they stand now.`;
  });
  main.replaceChildren(h("div", { class: "row" }, chips, again), why, annotated.element);
  viewKeys(annotated.keys);
  show(Number(place().query.get("at") ?? 0));
  return listen(annotated.update);
}
