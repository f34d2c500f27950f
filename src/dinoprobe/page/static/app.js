/** Starts the page: rows and labels, the bar, the view that the address names. */

import { byId, h } from "./dom.js";
import { pageKeys, showHelp, viewKeys } from "./keys.js";
import { bar, commands } from "./model.js";
import { review } from "./review.js";
import { place } from "./router.js";
import { refit, start, state, undo } from "./state.js";

/** @typedef {(main: HTMLElement) => Promise<() => void>} View */

/** @type {Record<string, {title: string, show: View, command: () => string[]}>} */
const VIEWS = {
  review: { title: "Review", show: review, command: () => [state.info.save_command] },
};

/** @type {() => void} */
let leave = () => undefined;
let shown = "";

function first() {
  return "review";
}

async function show() {
  const asked = place().view;
  const name = asked in VIEWS ? asked : first();
  const main = byId("main");
  leave();
  leave = () => undefined;
  viewKeys([]);
  links(name);
  main.setAttribute("aria-busy", "true");
  commands(VIEWS[name].command());
  shown = name;
  try {
    const end = await VIEWS[name].show(main);
    if (shown === name) leave = end;
    else end();
  } catch (error) {
    main.replaceChildren(h("p", { class: "problem", role: "alert" }, error instanceof Error ? error.message : String(error)));
  }
  main.removeAttribute("aria-busy");
}

/** @param {string} current */
function links(current) {
  byId("views").replaceChildren(
    ...Object.entries(VIEWS).map(([name, view]) =>
      h("a", { href: `#${name}`, "aria-current": name === current ? "page" : null }, view.title),
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
  window.addEventListener("hashchange", show);
  await show();
}

void begin();
