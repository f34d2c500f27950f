/** The bar below the title: how many corrections, Refit, what it changed, Save. */

import { get, post } from "./api.js";
import { byId, h, percent, plural, range, say } from "./dom.js";
import { correctedCount, listen, refit, state, undo } from "./state.js";

/** @type {Record<string, any>} */
let saving = { state: "idle" };

export function bar() {
  listen(update);
  update();
}

function update() {
  const corrected = correctedCount();
  const stale = state.modelVersion === null || state.version > state.modelVersion;
  const buttons = [
    h("button", { type: "button", onclick: undo, disabled: state.version === 0 }, h("kbd", {}, "U"), " undo"),
    h("button", { type: "button", class: stale && state.version ? "primary" : null, onclick: refit }, h("kbd", {}, "R"), " refit"),
    h("button", { type: "button", onclick: save, disabled: saving.state === "runs" }, "save as a new run"),
  ];
  byId("bar").replaceChildren(
    h("span", { class: "counts" }, h("b", {}, plural(corrected, "correction")), standing()),
    h("div", { class: "buttons" }, buttons),
    ...result(),
  );
}

function standing() {
  const { info } = state;
  if (state.refit) return "";
  if (info.accuracy === null || info.accuracy === undefined) return state.modelVersion === null ? " · no model yet" : "";
  return ` · run: ${percent(info.accuracy)} of ${plural(info.n_test, "test image")} right (${range(info.interval)})`;
}

function result() {
  const found = [];
  if (state.refit) found.push(refitted(state.refit));
  if (saving.state !== "idle") found.push(saved());
  return found;
}

/** @param {Record<string, any>} told */
function refitted(told) {
  const stale = told.version < state.version ? " Corrections came since: refit again." : "";
  const lines = [];
  if (told.test) lines.push(compared(told.test, told.n_corrected_test ? "test part, labels as they were" : "test part"));
  if (told.test_corrected) lines.push(compared(told.test_corrected, `test part with ${plural(told.n_corrected_test, "corrected label")}`));
  if (told.out_of_fold) {
    const { accuracy, interval, n } = told.out_of_fold;
    lines.push(h("span", {}, h("b", {}, percent(accuracy)), ` right out of fold on ${plural(n, "labelled image")} (${range(interval)}); of images picked to be hard, so no estimate for others.`));
  }
  const how = `${told.head} head${told.stands_in ? " in place of the run's own, which takes minutes," : ""} on ${plural(told.n_train, "image")}, ${told.seconds.toFixed(2)} s.`;
  return h("div", { class: "result", role: "group", "aria-label": "Refit" }, ...lines, h("span", { class: "note" }, `${how}${stale}`));
}

/** @param {Record<string, any>} judged @param {string} where */
function compared(judged, where) {
  const after = percent(judged.after.accuracy);
  if (!judged.before) return h("span", {}, h("b", {}, after), ` right on the ${where} (${range(judged.after.interval)}; n = ${judged.n}).`);
  const points = 100 * judged.difference;
  const [low, high] = judged.difference_interval.map((/** @type {number} */ value) => signed(100 * value));
  const sure = low.startsWith("−") && high.startsWith("+") ? "no difference is shown" : "a difference is shown";
  return h(
    "span",
    {},
    `${percent(judged.before.accuracy)} → `,
    h("b", {}, after),
    ` on the ${where}: ${signed(points)} points, 95 % interval ${low} to ${high} (${sure}; n = ${judged.n}, ${judged.better} better, ${judged.worse} worse).`,
  );
}

/** @param {number} value */
function signed(value) {
  const text = Math.abs(value).toFixed(1);
  return value < 0 ? `−${text}` : `+${text}`;
}

function saved() {
  const children = [h("span", {}, saving.state === "runs" ? `Saving: ${saving.text}` : saving.text)];
  if (saving.accuracy !== null && saving.accuracy !== undefined) {
    children.push(h("span", {}, ` ${percent(saving.accuracy)} on its test part (${range(saving.interval)}).`));
  }
  if (saving.command) children.push(command(saving.command));
  return h("div", { class: `result ${saving.state}`, role: "group", "aria-label": "Save" }, ...children);
}

async function save() {
  try {
    saving = await post("save");
    say("Saving: the whole recipe runs with the corrected labels …");
    while (saving.state === "runs") {
      update();
      await new Promise((resolve) => setTimeout(resolve, 400));
      saving = await get("save");
    }
  } catch (error) {
    saving = { state: "failed", text: error instanceof Error ? error.message : String(error) };
  }
  say(saving.text);
  update();
}

/** A line for a terminal, to be copied. @param {string} text */
export function command(text) {
  const button = h("button", { type: "button", class: "quiet" }, "copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text).then(
      () => say("Copied"),
      () => say("The browser does not let the page copy; mark the line instead."),
    );
  });
  return h("span", { class: "command" }, h("code", {}, text), " ", button);
}

/** What does the same as a view in a terminal. @param {string[]} lines */
export function commands(lines) {
  byId("command").replaceChildren(...(lines.length ? [h("span", { class: "note" }, "In a terminal: "), ...lines.map(command)] : []));
}
