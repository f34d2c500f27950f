/** Charts as SVG, with text that a screen reader reads. */

import { h, percent, s } from "./dom.js";

const SIDE = 260;
const EDGE = 34;

/**
 * Axes from 0 to 1.
 * @param {string} title
 * @param {string} across
 * @param {string} up
 * @param {number} low the least value upwards
 * @param {SVGElement[]} marks
 */
function frame(title, across, up, low, marks) {
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  const lines = ticks.flatMap((tick) => [
    s("line", { x1: x(tick), x2: x(tick), y1: y(0), y2: y(1), class: "grid" }),
    s("line", { x1: x(0), x2: x(1), y1: y(tick), y2: y(tick), class: "grid" }),
    s("text", { x: x(tick), y: SIDE - 18, "text-anchor": "middle" }, `${100 * tick}`),
    s("text", { x: EDGE - 5, y: y(tick) + 4, "text-anchor": "end" }, `${Number((100 * (low + tick * (1 - low))).toFixed(1))}`),
  ]);
  return s(
    "svg",
    { viewBox: `0 0 ${SIDE} ${SIDE}`, class: "chart", role: "img", "aria-label": title },
    ...lines,
    s("text", { x: x(0.5), y: SIDE - 4, "text-anchor": "middle" }, across),
    s("text", { x: EDGE, y: 10 }, up),
    ...marks,
  );
}

/** @param {number} share */
const x = (share) => EDGE + share * (SIDE - EDGE - 10);
/** @param {number} share */
const y = (share) => SIDE - 34 - share * (SIDE - 34 - 18);

/** @param {any[]} bins */
export function reliability(bins) {
  const filled = bins.filter((bin) => bin.count);
  const most = Math.max(1, ...filled.map((bin) => bin.count));
  const dots = filled.map((bin) =>
    s(
      "circle",
      { cx: x(bin.confidence), cy: y(bin.accuracy), r: 2.5 + 6 * Math.sqrt(bin.count / most), class: "dot" },
      s("title", {}, `${percent(bin.confidence)} sure, ${percent(bin.accuracy)} right, ${bin.count} images`),
    ),
  );
  const line = s("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), class: "ideal" });
  return frame("Reliability: how often answers are right, by how sure they are", "sure, %", "right, %", 0, [line, ...dots]);
}

/**
 * @param {{coverage: number, accuracy: number}[]} curve
 * @param {{coverage: number, accuracy: number} | null} now
 */
export function coverage(curve, now) {
  const least = Math.min(1, ...curve.map((point) => point.accuracy));
  const low = Math.max(0, Math.floor(least * 10 - 0.5) / 10);
  /** @param {number} value */
  const up = (value) => y((value - low) / (1 - low || 1));
  const path = curve.map((point, i) => `${i ? "L" : "M"}${x(point.coverage).toFixed(1)} ${up(point.accuracy).toFixed(1)}`).join("");
  const marks = [s("path", { d: path, class: "curve" })];
  if (now) marks.push(s("circle", { cx: x(now.coverage), cy: up(now.accuracy), r: 5, class: "dot" }));
  return frame("Accuracy of the answers, by the share of images that is answered", "answered, %", "right, %", low, marks);
}

/**
 * Rows are labels, columns what the model says.
 * @param {string[]} classes
 * @param {number[][]} counts
 * @param {{label: string, predicted: string} | null} chosen
 * @param {(label: string, predicted: string) => void} pick
 */
export function matrix(classes, counts, chosen, pick) {
  const rows = classes.map((label, i) => {
    const sum = counts[i].reduce((a, b) => a + b, 0) || 1;
    const cells = classes.map((predicted, j) => cell(label, predicted, counts[i][j], counts[i][j] / sum, i === j));
    return h("tr", {}, h("th", { scope: "row", title: label }, label), cells);
  });
  /**
   * @param {string} label
   * @param {string} predicted
   * @param {number} count
   * @param {number} share
   * @param {boolean} right
   */
  function cell(label, predicted, count, share, right) {
    if (!count) return h("td", { class: "empty" }, h("span", { class: "hidden" }, "0"));
    const level = Math.max(1, Math.ceil(5 * share));
    const isChosen = chosen?.label === label && chosen.predicted === predicted;
    const button = h(
      "button",
      {
        type: "button",
        class: `${right ? "right" : "wrong"} level${level}`,
        "aria-pressed": String(isChosen),
        "aria-label": `${count} images of ${label} taken for ${predicted}`,
        onclick: () => pick(label, predicted),
      },
      count,
    );
    return h("td", {}, button);
  }
  const head = h("tr", {}, h("th", {}, h("span", { class: "note" }, "label \\ model")), classes.map((name) => h("th", { scope: "col", title: name }, name)));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Confusion matrix" }, h("table", { class: "matrix" }, h("thead", {}, head), h("tbody", {}, rows)));
}
