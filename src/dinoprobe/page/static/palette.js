/** Colours for classes: eight that are told apart by most eyes (Okabe and Ito), then hues in turn. */

const EIGHT = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800", "#7a5195"];

/** @param {number} index */
export function colour(index) {
  if (index < EIGHT.length) return EIGHT[index];
  return `hsl(${Math.round((index * 137.508) % 360)} 60% 52%)`;
}

export const NONE = "#8a8f98";
export const WRONG = "#d32f2f";
export const RIGHT = "#4f9a94";
