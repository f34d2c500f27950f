/** Starts the page: rows and labels, the bar, the view that the address names. */

import { byId, h } from "./dom.js";
import { evaluate } from "./evaluate.js";
import { pageKeys, showHelp, viewKeys } from "./keys.js";
import { label } from "./label.js";
import { map } from "./map.js";
import { bar, commands } from "./model.js";
import { predict } from "./predict.js";
import { review } from "./review.js";
import { place } from "./router.js";
import { runs } from "./runs.js";
import { listen, refit, start, state, undo } from "./state.js";

/** @typedef {(main: HTMLElement) => Promise<() => void>} View */

/** @type {Record<string, {title: string, show: View}>} */
const VIEWS = {
  review: { title: "Review", show: review },
  evaluate: { title: "Evaluate", show: evaluate },
  map: { title: "Map", show: map },
  label: { title: "Label", show: label },
  predict: { title: "Predict", show: predict },
  runs: { title: "Runs", show: runs },
};

/** What does the same as the view in a terminal. */
function tellCommand() {
  const view = shown || first();
  const found = view === "review" || view === "label" ? state.saveCommand : state.info.commands[view];
  commands(found ? [found] : []);
}

const isRun = () => state.info.kind === "run";

/** Views that make sense for what is open. */
function offered() {
  const unlabelled = state.labels.some((each) => each === null);
  return Object.keys(VIEWS).filter((name) => {
    if (name === "label") return unlabelled || !isRun();
    if (name === "runs") return isRun();
    if (name === "evaluate") return state.splits.includes("test");
    return true;
  });
}

/** @type {() => void} */
let leave = () => undefined;
let shown = "";
/** One view after the other: what a slow one still writes is there before the next one begins. */
let turn = Promise.resolve();

function show() {
  turn = turn.then(showNow);
  return turn;
}

function first() {
  return state.source.every((each) => each === null) ? "label" : "review";
}

async function showNow() {
  const asked = place().view;
  const name = Object.hasOwn(VIEWS, asked) ? asked : first();
  const main = byId("main");
  leave();
  leave = () => undefined;
  viewKeys([]);
  links(name);
  main.setAttribute("aria-busy", "true");
  shown = name;
  tellCommand();
  try {
    leave = await VIEWS[name].show(main);
  } catch (error) {
    main.replaceChildren(h("p", { class: "problem", role: "alert" }, error instanceof Error ? error.message : String(error)));
  }
  main.removeAttribute("aria-busy");
}

/** @param {string} current */
function links(current) {
  byId("views").replaceChildren(
    ...offered().map((name) =>
      h("a", { href: `#${name}`, "aria-current": name === current ? "page" : null }, VIEWS[name].title),
    ),
  );
}

async function begin() {
  pageKeys([
    { keys: ["u"], text: "Undo the last correction", run: undo },
    { keys: ["r"], text: "Refit with the corrected labels", run: refit },
    { keys: ["?"], text: "These keys", run: showHelp },
  ]);
  byId("help-button").addEventListener("click", showHelp);
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("main").focus();
  });
  try {
    await start();
  } catch (error) {
    byId("main").replaceChildren(h("p", { class: "problem", role: "alert" }, error instanceof Error ? error.message : String(error)));
    return;
  }
  document.title = `${state.info.title} – dinoprobe`;
  byId("title").replaceChildren(h("span", {}, state.info.title), h("small", {}, ` ${state.info.encoder}`));
  bar();
  listen(tellCommand);
  window.addEventListener("hashchange", show);
  await show();
}

void begin();
