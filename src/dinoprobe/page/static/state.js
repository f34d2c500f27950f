/** What this tab knows: rows, labels as they stand, and the model. The server's file is the truth. */

import { ApiError, get, post } from "./api.js";
import { plural, say } from "./dom.js";

/**
 * @typedef {object} Model
 * @property {number | null} version
 * @property {string[]} classes
 * @property {number[]} predicted
 * @property {number[]} probability
 * @property {number[]} novel
 */

export const state = {
  /** @type {Record<string, any>} */
  info: {},
  /** @type {string[]} */
  keys: [],
  /** @type {(string | null)[]} */
  splits: [],
  /** @type {(string | null)[]} */
  source: [],
  /** @type {(string | null)[]} */
  labels: [],
  /** @type {boolean[]} */
  dropped: [],
  /** @type {Map<string, number>} */
  rows: new Map(),
  /** @type {string[]} */
  classes: [],
  version: 0,
  saveCommand: "",
  /** @type {number | null} */
  modelVersion: null,
  /** @type {Model} */
  model: { version: null, classes: [], predicted: [], probability: [], novel: [] },
  /** @type {Set<number>} */
  novel: new Set(),
  /** @type {Record<string, any> | null} */
  refit: null,
  online: true,
};

/** @type {Set<() => void>} */
const listeners = new Set();

/** @param {() => void} listener called after each change @returns {() => void} ends that */
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function changed() {
  for (const listener of [...listeners]) listener();
}

export async function start() {
  const [info, rows] = await Promise.all([get("info"), get("rows")]);
  state.info = info;
  state.keys = rows.keys;
  state.splits = rows.splits;
  state.source = rows.labels;
  state.labels = [...rows.labels];
  state.dropped = rows.labels.map(() => false);
  state.rows = new Map(state.keys.map((key, row) => [key, row]));
  await sync();
  await loadModel();
  setInterval(poll, 1500);
}

async function poll() {
  if (document.hidden) return;
  try {
    await sync();
    if (!state.online) say("Connected again.");
    state.online = true;
  } catch (error) {
    if (state.online) say(error instanceof Error ? error.message : String(error));
    state.online = false;
  }
}

/** @type {Promise<void> | null} */
let syncing = null;

/** Takes over what any tab or process has written since. */
export async function sync() {
  while (syncing) await syncing;
  syncing = syncNow();
  try {
    await syncing;
  } finally {
    syncing = null;
  }
}

async function syncNow() {
  const told = await get("labels", { since: state.version });
  for (const change of told.changes) {
    const row = state.rows.get(change.key);
    if (row === undefined) continue;
    state.labels[row] = change.new;
    state.dropped[row] = change.dropped;
  }
  const isNew = told.version !== state.version || told.model_version !== state.modelVersion;
  const modelChanged = state.modelVersion !== null && told.model_version !== state.model.version;
  state.version = told.version;
  state.classes = told.classes;
  state.saveCommand = told.save_command;
  state.modelVersion = told.model_version;
  if (modelChanged) await loadModel();
  else if (isNew) changed();
}

export async function loadModel() {
  state.model = await get("model");
  state.modelVersion = state.model.version;
  state.novel = new Set(state.model.novel);
  changed();
}

/** @param {number} row @returns {string | null} */
export function predicted(row) {
  const code = state.model.predicted[row];
  return code === undefined ? null : state.model.classes[code];
}

export function correctedCount() {
  let n = 0;
  for (let row = 0; row < state.keys.length; row++) {
    if (state.dropped[row] || state.labels[row] !== state.source[row]) n++;
  }
  return n;
}

/**
 * @param {number[]} rows
 * @param {{label?: string | null, dropped?: boolean}} to
 */
async function change(rows, to) {
  const changes = rows
    .map((row) => ({
      key: state.keys[row],
      old: state.labels[row],
      old_dropped: state.dropped[row],
      new: to.label === undefined ? state.labels[row] : to.label,
      dropped: to.dropped ?? false,
    }))
    .filter((c) => c.old !== c.new || c.old_dropped !== c.dropped);
  if (!changes.length) return true;
  return attempt(() => post("labels", { changes }));
}

/**
 * @param {() => Promise<unknown>} work
 * @returns {Promise<boolean>} whether it was done
 */
async function attempt(work) {
  try {
    await work();
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say(error.message);
    return false;
  } finally {
    await sync().catch(() => undefined);
  }
}

/** @param {number[]} rows @param {string} label */
export async function relabel(rows, label) {
  const done = await change(rows, { label });
  if (done) say(`${rows.length === 1 ? "Labelled" : plural(rows.length, "image") + " labelled"} ${label}`);
  return done;
}

/** @param {number[]} rows */
export async function drop(rows) {
  const done = await change(rows, { dropped: true });
  if (done) say(`${plural(rows.length, "image")} left out`);
  return done;
}

export async function undo() {
  if (await attempt(() => post("undo"))) say("Undone");
}

export async function refit() {
  say("Refitting …");
  const done = await attempt(async () => {
    state.refit = await post("refit");
    await loadModel();
  });
  if (done && state.refit) say(refitSentence(state.refit));
  return done;
}

/** @param {Record<string, any>} told */
export function refitSentence(told) {
  const where = `Refitted on ${plural(told.n_train, "image")} in ${told.seconds.toFixed(2)} s`;
  const judged = told.test ?? told.out_of_fold;
  if (!judged) return `${where}.`;
  const after = (judged.after ?? judged).accuracy;
  const text = `${(100 * after).toFixed(1)} %`;
  if (!judged.before) return `${where}: ${text} right ${told.test ? "on the test part" : "out of fold"}.`;
  return `${where}: ${(100 * judged.before.accuracy).toFixed(1)} % → ${text} on the test part.`;
}
