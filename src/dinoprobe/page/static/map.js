/** The map: each image a point, near those that look like it. Hover shows it, a lasso opens many. */

import { points as ask } from "./api.js";
import { caption, selection } from "./annotate.js";
import { Cloud, abgr } from "./cloud.js";
import { h, picture, plural, say, shortName } from "./dom.js";
import { viewKeys } from "./keys.js";
import { NONE, RIGHT, WRONG, colour } from "./palette.js";
import { place, remember } from "./router.js";
import { listen, predicted, state } from "./state.js";

const COLOURINGS = { label: "Label", prediction: "Model", error: "Right or wrong", part: "Part" };
const LAYOUTS = { pca: "PCA", tsne: "t-SNE" };

/** @type {Record<string, [number, number]>} */
const STEPS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

/** @param {HTMLElement} main @returns {Promise<() => void>} */
export async function map(main) {
  const canvas = h("canvas", { tabindex: "0", role: "application", "aria-label": "Map of the images. Arrows move, plus and minus zoom, Shift with a drag draws a lasso." });
  const cloud = new Cloud(canvas);
  Object.assign(canvas, { cloud });
  const hint = h("div", { class: "hover", "aria-hidden": "true" });
  const legend = h("div", { class: "legend" });
  const note = h("p", { class: "note", "aria-live": "polite" });
  const found = h("div", { class: "images" });
  const lassoButton = h("button", { type: "button", "aria-pressed": "false", onclick: () => setLasso(!lassoing) }, h("kbd", {}, "S"), " select");
  const layout = choice("layout", "Layout", LAYOUTS, () => void load());
  const colouring = choice("by", "Colour", COLOURINGS, paint);
  const fit = h("button", { type: "button", onclick: home }, h("kbd", {}, "H"), " whole map");
  main.replaceChildren(
    h("div", { class: "row" }, h("div", { class: "buttons" }, layout.element, colouring.element, lassoButton, fit), note),
    h("div", { class: "map-area" }, h("div", {}, h("div", { class: "map" }, canvas, hint), legend), found),
  );
  let lassoing = false;
  let alive = true;

  /** @param {boolean} on */
  function setLasso(on) {
    lassoing = on;
    lassoButton.setAttribute("aria-pressed", String(on));
    canvas.classList.toggle("lasso", on);
  }

  function home() {
    cloud.camera = { scale: 1, x: 0, y: 0 };
    cloud.draw();
  }

  async function load() {
    const kind = layout.value();
    note.textContent = kind === "tsne" ? "t-SNE is computed: 10 to 30 s for 3,000 images …" : "";
    try {
      for (;;) {
        const points = await ask(kind);
        if (!alive || layout.value() !== kind) return;
        if (points) {
          cloud.points = points;
          break;
        }
        if (!cloud.points.length) cloud.points = (await ask("pca")) ?? cloud.points;
        paint();
        await new Promise((resolve) => setTimeout(resolve, 700));
      }
    } catch (error) {
      say(error instanceof Error ? error.message : String(error));
      return;
    }
    note.textContent = kind === "tsne" && state.keys.length > 3000 ? "t-SNE of 3,000 images; the others stand at their nearest ones." : plural(state.keys.length, "image");
    home();
    paint();
  }

  function paint() {
    const { of, names } = colours(colouring.value());
    cloud.background = abgr(getComputedStyle(document.body).backgroundColor);
    const inks = names.map(([, ink]) => abgr(ink));
    cloud.colours = Uint32Array.from(state.keys, (_, row) => (state.dropped[row] ? cloud.background : inks[of(row)]));
    legend.replaceChildren(
      ...names.slice(0, 40).map(([name, ink]) => {
        const swatch = h("span", { class: "swatch" });
        swatch.style.background = ink;
        return h("span", {}, swatch, name);
      }),
      names.length > 40 ? `and ${names.length - 40} more` : "",
    );
    cloud.draw();
  }

  const resize = new ResizeObserver(() => {
    const { width, height } = canvas.getBoundingClientRect();
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    cloud.draw();
  });
  resize.observe(canvas);

  /** @param {MouseEvent} event @returns {[number, number]} */
  function at(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
  }

  /** @type {[number, number] | null} */
  let last = null;
  let drawing = false;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
    drawing = lassoing || event.shiftKey;
    if (drawing) cloud.lasso = [last];
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event);
    if (!last) return hover(now);
    if (drawing) cloud.lasso.push(now);
    else cloud.pan(now[0] - last[0], now[1] - last[1]);
    last = now;
    cloud.draw();
  });
  canvas.addEventListener("pointerup", () => {
    last = null;
    if (!drawing) return;
    drawing = false;
    select(cloud.within());
    cloud.lasso = [];
    setLasso(false);
  });
  canvas.addEventListener("pointerleave", () => hint.replaceChildren());
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      cloud.zoom(Math.exp(-event.deltaY / 300), ...at(event));
    },
    { passive: false },
  );

  /** @param {[number, number]} place */
  function hover(place) {
    const row = cloud.nearest(...place);
    if (hint.dataset.row === String(row)) return;
    hint.dataset.row = String(row);
    if (row < 0) return hint.replaceChildren();
    const [x, y] = cloud.at(row);
    const ratio = canvas.width / canvas.clientWidth;
    hint.style.left = `${Math.min(x / ratio + 14, canvas.clientWidth - 170)}px`;
    hint.style.top = `${Math.min(y / ratio + 14, canvas.clientHeight - 190)}px`;
    const key = state.keys[row];
    hint.replaceChildren(picture(key, 128), h("b", {}, shortName(key)), h("span", {}, caption(row)));
  }

  /** @param {number[]} rows */
  function select(rows) {
    const kept = rows.filter((row) => !state.dropped[row]);
    cloud.marked = kept.length ? new Uint8Array(state.keys.length) : null;
    kept.forEach((row) => cloud.marked && (cloud.marked[row] = 1));
    found.replaceChildren();
    if (kept.length) found.append(selection(kept, "Selected:"));
    say(`${plural(kept.length, "image")} selected`);
    cloud.draw();
  }

  const middle = () => /** @type {[number, number]} */ ([canvas.width / 2, canvas.height / 2]);
  viewKeys([
    { keys: ["s"], text: "Select with a lasso (or drag with Shift)", run: () => setLasso(!lassoing) },
    { keys: ["v"], text: "Select what is in view", run: () => select(inView(cloud)) },
    { keys: ["Escape"], text: "Select nothing", run: () => select([]) },
    { keys: ["+", "="], text: "Closer", run: () => cloud.zoom(1.3, ...middle()) },
    { keys: ["-"], text: "Farther", run: () => cloud.zoom(1 / 1.3, ...middle()) },
    { keys: ["h"], text: "The whole map", run: home },
    { keys: Object.keys(STEPS), text: "Move", run: /** @param {string} key */ (key) => cloud.pan(...STEPS[key]) },
  ]);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", paint);
  const end = listen(paint);
  void load();
  return () => {
    alive = false;
    end();
    resize.disconnect();
    dark.removeEventListener("change", paint);
  };
}

/** @param {Cloud} cloud */
function inView(cloud) {
  const { width, height } = cloud.canvas;
  return state.keys.map((_, row) => row).filter((row) => {
    const [x, y] = cloud.at(row);
    return x >= 0 && x < width && y >= 0 && y < height;
  });
}

/**
 * Which colour each row has, and the names of the colours.
 * @param {string} by
 * @returns {{of: (row: number) => number, names: [string, string][]}}
 */
function colours(by) {
  const places = new Map(state.classes.map((name, i) => [name, i]));
  /** @type {[string, string][]} */
  const classes = [...state.classes.map((name, i) => /** @type {[string, string]} */ ([name, colour(i)])), ["none", NONE]];
  const none = state.classes.length;
  if (by === "prediction") return { of: (row) => places.get(predicted(row) ?? "") ?? none, names: classes };
  if (by === "error") {
    /** @param {number} row */
    const of = (row) => (state.labels[row] === null || predicted(row) === null ? 2 : Number(state.labels[row] !== predicted(row)));
    return { of, names: [["right", RIGHT], ["wrong", WRONG], ["unknown", NONE]] };
  }
  if (by === "part") {
    const parts = ["train", "val", "test"];
    const names = parts.map((name, i) => /** @type {[string, string]} */ ([name, colour(i)]));
    return { of: (row) => (parts.includes(state.splits[row] ?? "") ? parts.indexOf(state.splits[row] ?? "") : 3), names: [...names, ["none", NONE]] };
  }
  return { of: (row) => places.get(state.labels[row] ?? "") ?? none, names: classes };
}

/**
 * @param {string} name what the address calls it
 * @param {string} title
 * @param {Record<string, string>} values
 * @param {() => void} changed
 */
function choice(name, title, values, changed) {
  const select = h("select", { id: name }, Object.entries(values).map(([value, text]) => h("option", { value }, text)));
  const asked = place().query.get(name);
  if (asked && asked in values) select.value = asked;
  select.addEventListener("change", () => {
    remember("map", { [name]: select.value });
    changed();
  });
  return { element: h("label", { for: name }, `${title} `, select), value: () => select.value };
}
