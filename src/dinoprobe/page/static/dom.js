/** Elements without a framework: text is always text, so a file name can not become markup. */

const SVG = "http://www.w3.org/2000/svg";

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} name
 * @param {Record<string, any>} [attributes] `onclick` and the like are listeners, null is left out
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  fill(element, attributes, children);
  return element;
}

/**
 * @param {string} name
 * @param {Record<string, any>} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {SVGElement}
 */
export function s(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  fill(element, attributes, children);
  return element;
}

/**
 * @param {Element} element
 * @param {Record<string, any>} attributes
 * @param {(Child | Child[])[]} children
 */
function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/**
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element ${id}`);
  return found;
}

/**
 * @param {string} text
 */
export function say(text) {
  const status = byId("status");
  status.textContent = text;
  status.classList.toggle("shown", text !== "");
  clearTimeout(sayTimer);
  sayTimer = window.setTimeout(() => status.classList.remove("shown"), 6000);
}
let sayTimer = 0;

/** @param {number | null | undefined} value @param {number} [digits] */
export function percent(value, digits = 1) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`;
}

/** @param {number} value */
export function count(value) {
  return value.toLocaleString("en");
}

/** @param {number} value @param {string} one @param {string} [many] */
export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** @param {[number, number] | null | undefined} interval */
export function range(interval) {
  if (!interval) return "";
  const [low, high] = interval.map((value) => (100 * value).toFixed(1));
  return `${low} to ${high}`;
}

/**
 * @param {string} key
 * @param {number} [size]
 */
export function imageUrl(key, size = 128) {
  return `/api/image?size=${size}&key=${encodeURIComponent(key)}`;
}

/** The last part of a key: what a person calls the file. @param {string} key */
export function shortName(key) {
  return key.slice(key.lastIndexOf("/") + 1);
}

/**
 * A picture of the dataset, or a word where it can not be shown.
 * @param {string} key
 * @param {number} [size]
 * @param {string} [alt]
 */
export function picture(key, size = 128, alt = shortName(key)) {
  const image = h("img", { src: imageUrl(key, size), alt, loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(h("span", { class: "no-image" }, "no image")));
  return image;
}
