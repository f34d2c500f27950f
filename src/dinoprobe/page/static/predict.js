/** A picture by drop, paste, file or camera: what the model says, and the training images like it. */

import { predict as ask } from "./api.js";
import { caption } from "./annotate.js";
import { h, percent, picture, say, shortName } from "./dom.js";
import { viewKeys } from "./keys.js";
import { state } from "./state.js";

/** @param {HTMLElement} main @returns {Promise<() => void>} */
export async function predict(main) {
  /** @type {string | null} */
  let shownUrl = null;
  /** @type {MediaStream | null} */
  let stream = null;
  const result = h("div", { class: "predicted", "aria-live": "polite" });
  const input = h("input", { type: "file", accept: "image/*", id: "file", class: "hidden" });
  const camera = h("button", { type: "button", onclick: openCamera }, h("kbd", {}, "C"), " camera");
  const stage = h("div", { class: "camera" });
  const choose = h("button", { type: "button", class: "primary", onclick: () => input.click() }, h("kbd", {}, "F"), " choose a file");
  const zone = h(
    "div",
    { class: "dropzone" },
    h("p", {}, h("b", {}, "Drop an image here"), ", or paste one (Ctrl+V)"),
    h("div", { class: "buttons" }, choose, camera),
    h("label", { for: "file", class: "hidden" }, "Image file"),
    input,
  );
  main.replaceChildren(zone, stage, result);
  input.addEventListener("change", () => input.files?.[0] && judge(input.files[0]));
  viewKeys([
    { keys: ["f"], text: "Choose a file", run: () => input.click() },
    { keys: ["c"], text: "Open or close the camera", run: openCamera },
    { keys: [" "], text: "Take the camera's picture", run: shoot },
  ]);

  /** @param {Blob} image */
  async function judge(image) {
    result.replaceChildren(h("p", { class: "note" }, "Looking at it …"));
    const name = image instanceof File ? image.name : "picture";
    try {
      const told = await ask(image);
      if (shownUrl) URL.revokeObjectURL(shownUrl);
      shownUrl = URL.createObjectURL(image);
      result.replaceChildren(...shown(told, shownUrl, name));
    } catch (error) {
      result.replaceChildren(h("p", { class: "problem" }, error instanceof Error ? error.message : String(error)));
    }
  }

  /** @param {DragEvent} event */
  function over(event) {
    event.preventDefault();
    zone.classList.add("over");
  }
  /** @param {DragEvent} event */
  function dropped(event) {
    event.preventDefault();
    zone.classList.remove("over");
    const file = event.dataTransfer?.files[0];
    if (file) void judge(file);
    else say("That was no file. Save the picture first, then drop it.");
  }
  const left = () => zone.classList.remove("over");
  /** @param {ClipboardEvent} event */
  function pasted(event) {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file) void judge(file);
  }

  async function openCamera() {
    if (stream) return closeCamera();
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch {
      say("No camera: there is none, or the browser does not allow it.");
      return;
    }
    const video = h("video", { autoplay: true, muted: true, playsinline: true, "aria-label": "Camera" });
    video.srcObject = stream;
    stage.replaceChildren(video, h("button", { type: "button", class: "primary", onclick: shoot }, h("kbd", {}, "Space"), " take it"));
  }

  function closeCamera() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    stage.replaceChildren();
  }

  function shoot() {
    const video = stage.querySelector("video");
    if (!video?.videoWidth) return;
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d")?.drawImage(video, 0, 0);
    canvas.toBlob((blob) => blob && judge(blob), "image/jpeg", 0.95);
  }

  document.addEventListener("dragover", over);
  document.addEventListener("dragleave", left);
  document.addEventListener("drop", dropped);
  document.addEventListener("paste", pasted);
  return () => {
    closeCamera();
    if (shownUrl) URL.revokeObjectURL(shownUrl);
    document.removeEventListener("dragover", over);
    document.removeEventListener("dragleave", left);
    document.removeEventListener("drop", dropped);
    document.removeEventListener("paste", pasted);
  };
}

/**
 * @param {Record<string, any>} told
 * @param {string} url
 * @param {string} name
 */
function shown(told, url, name) {
  const best = told.top[0];
  const answer = best
    ? h("p", { class: "finding" }, h("b", {}, best.label), ` ${percent(best.probability)}`)
    : h("p", { class: "finding" }, "There is no model yet: label some images, and refit.");
  const strange = told.novel
    ? h("p", { class: "warning" }, "Unlike anything seen: farther from all training images than all but few of their own kind. Do not trust the answer.")
    : told.novel === false && h("p", { class: "note" }, "It looks like the training images.");
  const bars = told.top.map((/** @type {any} */ score) =>
    h(
      "li",
      {},
      h("span", { class: "name" }, score.label),
      meter(score.probability),
      h("span", { class: "number" }, percent(score.probability)),
    ),
  );
  const near = told.neighbours.map((/** @type {any} */ each) => {
    const row = state.rows.get(each.key);
    return h(
      "figure",
      { title: each.key },
      picture(each.key, 128, shortName(each.key)),
      h("figcaption", {}, each.label ?? "no label", h("span", { class: "number" }, ` ${each.similarity.toFixed(3)}`)),
      row === undefined ? null : h("span", { class: "hidden" }, caption(row)),
    );
  });
  return [
    h("figure", { class: "asked" }, h("img", { src: url, alt: name }), h("figcaption", {}, name)),
    h("div", {}, answer, strange, h("ol", { class: "bars", "aria-label": "Most probable labels" }, bars)),
    h("section", { class: "near", "aria-label": "Nearest training images" }, h("h3", {}, "Nearest training images"), h("div", { class: "tiles" }, near)),
  ];
}

/** @param {number} share */
function meter(share) {
  const bar = h("span", { class: "meter", "aria-hidden": "true" }, h("span", {}));
  /** @type {HTMLElement} */ (bar.firstChild).style.width = `${100 * share}%`;
  return bar;
}
