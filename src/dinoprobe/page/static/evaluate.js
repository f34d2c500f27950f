/** The test part: figures, confusions with the images behind them, calibration, a threshold. */

import { get } from "./api.js";
import { selection } from "./annotate.js";
import { coverage, matrix, reliability } from "./charts.js";
import { h, percent, plural, range } from "./dom.js";
import { viewKeys } from "./keys.js";
import { place, remember } from "./router.js";
import { listen, state } from "./state.js";

const MOST_CLASSES = 40;

/** @param {HTMLElement} main @returns {Promise<() => void>} */
export async function evaluate(main) {
  viewKeys([{ keys: ["Escape"], text: "Close the images of a cell", run: () => pick(null) }]);
  const found = h("div", { class: "images" });
  const above = h("div", { class: "figures" });
  main.replaceChildren(above);
  /** @type {any} */
  let figures = null;
  let version = "";

  async function load() {
    const now = `${state.version}/${state.modelVersion}`;
    if (now === version) return;
    version = now;
    try {
      figures = await get("figures");
    } catch (error) {
      above.replaceChildren(h("p", { class: "note" }, error instanceof Error ? error.message : String(error)));
      return;
    }
    draw();
  }

  function chosen() {
    const { query } = place();
    const [label, predicted] = [query.get("label"), query.get("said")];
    return label !== null && predicted !== null ? { label, predicted } : null;
  }

  /** @param {{label: string, predicted: string} | null} cell */
  function pick(cell) {
    remember("evaluate", { label: cell?.label, said: cell?.predicted });
    draw();
    if (cell) found.scrollIntoView({ block: "nearest" });
  }

  function draw() {
    if (!figures) return;
    const many = figures.classes.length > MOST_CLASSES;
    const left = many
      ? h("p", { class: "note" }, `${figures.classes.length} classes are too many for a matrix; the most frequent confusions:`)
      : matrix(figures.classes, figures.confusion, chosen(), (label, predicted) => pick({ label, predicted }));
    above.replaceChildren(
      summary(figures),
      h("div", { class: "columns" }, h("section", { "aria-label": "Confusions" }, left, worst(figures), found), h("section", { class: "side" }, threshold(figures), h("figure", {}, h("figcaption", {}, h("h3", {}, "Calibration"), ` error ${percent(figures.expected_calibration_error)}`), reliability(figures.reliability)))),
      perClass(figures),
    );
    const cell = chosen();
    found.replaceChildren();
    if (!cell) return;
    const rows = figures.answers
      .filter((/** @type {any} */ each) => each.label === cell.label && each.predicted === cell.predicted)
      .sort((/** @type {any} */ a, /** @type {any} */ b) => b.probability - a.probability)
      .map((/** @type {any} */ each) => state.rows.get(each.key));
    found.append(selection(rows, `${cell.label}, taken for ${cell.predicted}:`));
  }

  /** @param {any} told */
  function worst(told) {
    if (!told.worst_confusions.length) return null;
    const items = told.worst_confusions.slice(0, 8).map((/** @type {any} */ each) =>
      h("button", { type: "button", onclick: () => pick({ label: each.true, predicted: each.predicted }) }, `${each.true} → ${each.predicted} `, h("span", { class: "number" }, each.count)),
    );
    return h("div", { class: "buttons", role: "group", "aria-label": "Most frequent confusions" }, items);
  }

  await load();
  return listen(load);
}

/** @param {any} told */
function summary(told) {
  const notes = [];
  if (told.corrected) notes.push(`${plural(told.corrected, "label")} of the test part are corrected: these figures are with them.`);
  if (told.left_out) notes.push(`${plural(told.left_out, "image")} with a label that the model does not know are left out.`);
  return h(
    "div",
    { class: "summary" },
    h("span", {}, h("b", { class: "big" }, percent(told.accuracy)), ` right (${range(told.accuracy_interval)}; n = ${told.n})`),
    h("span", {}, h("b", {}, percent(told.balanced_accuracy)), " balanced"),
    h("span", {}, h("b", {}, percent(told.macro_f1)), " macro F1"),
    h("span", {}, h("b", {}, told.log_loss.toFixed(3)), " log loss"),
    notes.length > 0 && h("span", { class: "note" }, notes.join(" ")),
  );
}

/** Answering only from a probability on: how many, and how right. @param {any} told */
function threshold(told) {
  const sorted = [...told.answers].sort((a, b) => b.probability - a.probability);
  let right = 0;
  const all = sorted.map((each, i) => {
    right += Number(each.label === each.predicted);
    return { coverage: (i + 1) / sorted.length, accuracy: right / (i + 1), probability: each.probability };
  });
  const step = Math.max(1, Math.floor(all.length / 200));
  const curve = all.filter((_, i) => i >= Math.min(9, all.length - 1) && (i % step === 0 || i === all.length - 1));
  const chart = h("div", {});
  const value = h("b", {});
  const words = h("output", { for: "threshold", "aria-live": "polite" });
  const slider = h("input", { type: "range", id: "threshold", min: "0", max: "100", step: "1", value: place().query.get("from") ?? "0" });
  function move() {
    const from = Number(slider.value) / 100;
    value.textContent = `${slider.value} %`;
    const answered = all.filter((point) => point.probability >= from);
    const now = answered.length ? answered[answered.length - 1] : null;
    chart.replaceChildren(coverage(curve, now));
    words.textContent = now ? `${percent(now.coverage)} answered, ${percent(now.accuracy)} of them right` : "none is answered";
  }
  slider.addEventListener("input", move);
  slider.addEventListener("change", () => remember("evaluate", { from: slider.value === "0" ? null : slider.value }));
  move();
  return h("figure", {}, h("figcaption", {}, h("h3", {}, "Answer only when sure")), h("label", { for: "threshold" }, "from a probability of ", value), slider, words, chart);
}

/** @param {any} told */
function perClass(told) {
  const heads = ["Class", "Images", "Recall", "95 %", "Precision", "F1"];
  const rows = told.per_class.map((/** @type {any} */ each) =>
    h("tr", {}, h("th", { scope: "row" }, each.label), [each.support, percent(each.recall), range(each.recall_interval), percent(each.precision), percent(each.f1)].map((value) => h("td", {}, value))),
  );
  return h("details", { open: told.per_class.length <= 12 }, h("summary", {}, "By class"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "By class" }, h("table", { class: "numbers" }, h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows))));
}
