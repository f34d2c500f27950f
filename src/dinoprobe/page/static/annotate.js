/** One image large, the others of its list small, and keys that label it: what review and labelling
 * from nothing share. */

import { h, imageUrl, percent, picture, plural, shortName } from "./dom.js";
import { askLabel, digitLabels } from "./labels.js";
import { drop, predicted, relabel, state } from "./state.js";

/**
 * @typedef {object} Item
 * @property {string} key
 * @property {string} [kind]
 * @property {string | null} [suggestion]
 * @property {string | null} [other]
 * @property {string} [text]
 */

/**
 * @typedef {object} Annotator
 * @property {HTMLElement} element
 * @property {import("./keys.js").Binding[]} keys
 * @property {() => void} update
 * @property {(items: Item[], at?: number) => void} show
 * @property {() => number} at
 */

const SHOWN = 400;

/**
 * @param {{
 *   onMove?: (at: number) => void,
 *   onDone?: () => void,
 *   empty: string,
 * }} options
 * @returns {Annotator}
 */
export function annotator(options) {
  /** @type {Item[]} */
  let items = [];
  let at = 0;
  /** @type {Set<string>} */
  const kept = new Set();
  const list = h("div", { class: "strip", role: "listbox", "aria-label": "Images", tabindex: "0" });
  const stage = h("div", { class: "stage" });
  const element = h("div", { class: "annotator" }, stage, list);

  /** @param {Item} item */
  const row = (item) => state.rows.get(item.key);

  /** @param {Item} item */
  function isDone(item) {
    const found = row(item);
    if (found === undefined) return kept.has(item.key);
    const isChanged = state.dropped[found] || state.labels[found] !== state.source[found];
    return isChanged || kept.has(item.key);
  }

  /** @param {number} to */
  function move(to) {
    if (!items.length) return;
    at = Math.max(0, Math.min(items.length - 1, to));
    options.onMove?.(at);
    update();
  }

  function next() {
    if (items.every(isDone)) options.onDone?.();
    const open = items.findIndex((item, i) => i > at && !isDone(item));
    move(open >= 0 ? open : at + 1);
  }

  /** @param {(row: number) => Promise<boolean>} work */
  async function onCurrent(work) {
    const item = items[at];
    const found = item && row(item);
    if (found === undefined) return;
    if (await work(found)) next();
    else update();
  }

  /** @param {string | undefined | null} label */
  async function give(label) {
    if (!label) return;
    const item = items[at];
    const found = item && row(item);
    if (found !== undefined && state.labels[found] === label) kept.add(item.key);
    await onCurrent((each) => relabel([each], label));
  }

  const bindings = [
    {
      keys: ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"],
      text: "Give this label, and go on",
      run: /** @param {string} key */ (key) => give(digitLabels().get(key)),
    },
    { keys: ["Enter"], text: "Take the suggested label", run: () => give(items[at]?.suggestion) },
    { keys: ["l"], text: "Choose a label from all, or a new one", run: choose },
    { keys: ["k", " "], text: "Keep it as it is, and go on", run: keep },
    { keys: ["x"], text: "Leave this image out", run: () => onCurrent((each) => drop([each])) },
    { keys: ["ArrowLeft"], text: "The image before", run: () => move(at - 1) },
    { keys: ["ArrowRight"], text: "The next image", run: () => move(at + 1) },
    { keys: ["ArrowUp"], text: "A row up", run: () => move(at - columns()) },
    { keys: ["ArrowDown"], text: "A row down", run: () => move(at + columns()) },
  ];

  async function choose() {
    const item = items[at];
    if (item) await give(await askLabel(`Label of ${shortName(item.key)}`));
  }

  function keep() {
    const item = items[at];
    if (!item) return;
    kept.add(item.key);
    next();
  }

  function columns() {
    const [first, ...others] = /** @type {HTMLElement[]} */ ([...list.children]);
    const below = others.findIndex((other) => other.offsetTop > first.offsetTop);
    return below < 0 ? 1 : below + 1;
  }

  function thumbs() {
    const start = Math.max(0, Math.min(at - SHOWN / 2, items.length - SHOWN));
    const shown = items.slice(start, start + SHOWN);
    return shown.map((item, offset) => {
      const index = start + offset;
      const current = index === at;
      const done = isDone(item);
      return h(
        "div",
        {
          role: "option",
          id: `thumb-${index}`,
          class: `thumb${done ? " done" : ""}`,
          "aria-selected": String(current),
          "aria-label": `${shortName(item.key)}${done ? ", done" : ""}`,
          onclick: () => move(index),
        },
        row(item) === undefined ? h("span", { class: "no-image" }, "no image") : picture(item.key, 128, ""),
      );
    });
  }

  function update() {
    const item = items[at];
    if (!item) {
      stage.replaceChildren(h("p", { class: "note" }, options.empty));
      list.replaceChildren();
      return;
    }
    stage.replaceChildren(...stageOf(item, row(item)));
    list.replaceChildren(...thumbs());
    list.setAttribute("aria-activedescendant", `thumb-${at}`);
    document.getElementById(`thumb-${at}`)?.scrollIntoView({ block: "nearest" });
  }

  /**
   * @param {Item} item
   * @param {number | undefined} found
   */
  function stageOf(item, found) {
    const head = h(
      "p",
      { class: "where" },
      h("b", {}, `${at + 1} of ${items.length}`),
      " ",
      h("span", { class: "key", title: item.key }, item.key),
    );
    if (found === undefined) {
      return [head, h("p", { class: "finding" }, item.text), h("p", { class: "note" }, "It has no features: mend or remove the file.")];
    }
    const pictures = [h("figure", {}, picture(item.key, 640, shortName(item.key)), h("figcaption", {}, caption(found)))];
    const beside = item.other ? state.rows.get(item.other) : undefined;
    if (item.other && beside !== undefined) {
      pictures.push(h("figure", {}, picture(item.other, 640, `beside it: ${shortName(item.other)}`), h("figcaption", {}, `${shortName(item.other)}: ${caption(beside)}`)));
    }
    const body = h("div", { class: "body" }, h("div", { class: "pictures" }, pictures), buttons(item, found));
    return item.text ? [head, h("p", { class: "finding" }, item.text), body] : [head, body];
  }

  /**
   * @param {Item} item
   * @param {number} found
   */
  function buttons(item, found) {
    const now = state.labels[found];
    const digits = [...digitLabels()].map(([digit, name]) =>
      h(
        "button",
        {
          type: "button",
          class: name === item.suggestion ? "suggested" : null,
          "aria-pressed": String(name === now && !state.dropped[found]),
          onclick: () => give(name),
        },
        h("kbd", {}, digit),
        ` ${name}`,
      ),
    );
    const more = [
      h("button", { type: "button", onclick: choose }, h("kbd", {}, "L"), " other label …"),
      h("button", { type: "button", onclick: keep }, h("kbd", {}, "K"), " keep"),
      h("button", { type: "button", class: "danger", "aria-pressed": String(state.dropped[found]), onclick: () => onCurrent((each) => drop([each])) }, h("kbd", {}, "X"), " leave out"),
    ];
    return h("div", { class: "answers" }, h("div", { class: "buttons", role: "group", "aria-label": "Labels" }, digits), h("div", { class: "buttons" }, more));
  }

  return {
    element,
    keys: bindings,
    update,
    at: () => at,
    show(given, start = 0) {
      items = given;
      at = 0;
      move(start);
      if (!items.length) update();
    },
  };
}

/** What is known of a row, in words. @param {number} row */
export function caption(row) {
  const label = state.dropped[row] ? "left out" : (state.labels[row] ?? "no label");
  const source = state.source[row];
  const was = source !== null && (state.dropped[row] || source !== state.labels[row]) ? ` (was ${source})` : "";
  const said = predicted(row);
  const model = said === null ? "" : ` · model: ${said} ${percent(state.model.probability[row], 0)}`;
  const part = state.splits[row] === "test" ? " · test part" : "";
  const novel = state.novel.has(row) ? " · unlike the training images" : "";
  return `${label}${was}${model}${part}${novel}`;
}

/** The pictures of some rows, to choose from and to label together.
 * @param {number[]} rows
 * @param {string} title
 */
export function selection(rows, title) {
  const shown = rows.slice(0, SHOWN);
  const chosen = new Set(rows);
  const head = h("p", { class: "where", "aria-live": "polite" });
  const tiles = shown.map((row) => {
    const key = state.keys[row];
    const tile = h(
      "button",
      { type: "button", class: "tile", "aria-pressed": "true", title: `${key}\n${caption(row)}` },
      h("img", { src: imageUrl(key), alt: "", loading: "lazy" }),
      h("span", {}, state.labels[row] ?? "–"),
    );
    tile.setAttribute("aria-label", `${shortName(key)}: ${caption(row)}`);
    tile.addEventListener("click", () => {
      if (!chosen.delete(row)) chosen.add(row);
      tile.setAttribute("aria-pressed", String(chosen.has(row)));
      told();
    });
    return tile;
  });
  function told() {
    const more = rows.length > shown.length ? `, the first ${shown.length} are shown` : "";
    head.replaceChildren(h("b", {}, title), ` ${plural(rows.length, "image")}${more}; ${chosen.size} chosen`);
  }
  /** @param {string | null | undefined} label */
  const give = async (label) => {
    if (label && chosen.size) await relabel([...chosen], label);
    named();
  };
  const leaveOut = async () => {
    if (chosen.size) await drop([...chosen]);
    named();
  };
  function named() {
    tiles.forEach((tile, i) => {
      const row = shown[i];
      const name = state.dropped[row] ? "left out" : (state.labels[row] ?? "–");
      /** @type {HTMLElement} */ (tile.lastChild).textContent = name;
      tile.setAttribute("aria-label", `${shortName(state.keys[row])}: ${caption(row)}`);
    });
  }
  const all = h("button", { type: "button" }, "all / none");
  all.addEventListener("click", () => {
    const fill = chosen.size === 0;
    chosen.clear();
    if (fill) rows.forEach((row) => chosen.add(row));
    tiles.forEach((tile) => tile.setAttribute("aria-pressed", String(fill)));
    told();
  });
  const label = h("button", { type: "button", class: "primary" }, "Label the chosen …");
  label.addEventListener("click", async () => give(await askLabel(`Label of ${plural(chosen.size, "image")}`)));
  const out = h("button", { type: "button", class: "danger" }, "Leave them out");
  out.addEventListener("click", leaveOut);
  told();
  return h("section", { class: "selection", "aria-label": title }, head, h("div", { class: "buttons" }, label, out, all), h("div", { class: "tiles" }, tiles));
}
