// What the page shows of answers: timings, the similarity of texts, vectors, labels, ranks and hits.

import { time } from "./api.js";
import { amount, bar, decimal, el, table } from "./dom.js";
import { nearestPairs, range, similarities } from "./vectors.js";

const SHOWN = 40; // rows and columns of the heat-map
const PAIRS = 8;
const NUMBERS = 6; // of a vector
const MANY = 8; // texts, from which on the heat-map is set tighter
const LABELS = 6; // of a text, before the rest is folded away

/** Where the time went, from the headers of an answer; `facts` are [name, value] that stand beside it. */
export function timings(answer, facts) {
  const phases = [
    ["tokenizing", time(answer.headers, "x-tokenization-time")],
    ["waiting", time(answer.headers, "x-queue-time")],
    ["model", time(answer.headers, "x-inference-time")],
  ];
  if (answer.headers.has("x-search-time")) phases.push(["search", time(answer.headers, "x-search-time")]);
  const told = phases.reduce((sum, [, value]) => sum + value, 0);
  phases.push(["network", Math.max(0, answer.milliseconds - told)]);
  const total = Math.max(1, answer.milliseconds, told);
  const all = [["round trip", `${amount(answer.milliseconds)} ms`], ...facts];
  const parts = phases.map(([name, value]) =>
    el("span", { class: `part ${name}`, style: { "flex-grow": String(value / total) } }),
  );
  const legend = phases.map(([name, value]) =>
    el("div", {}, el("dt", {}, el("span", { class: `dot ${name}`, "aria-hidden": "true" }), name), el("dd", {}, `${amount(value)} ms`)),
  );
  return el(
    "section",
    { class: "card", "aria-label": "Timings" },
    el("dl", { class: "figures" }, ...all.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    el("div", { class: "parts", "aria-hidden": "true" }, ...parts),
    el("dl", { class: "legend" }, ...legend),
  );
}

/** The heat-map, the nearest pairs, and the vectors themselves. */
export function comparison(texts, vectors, copy) {
  const found = similarities(vectors);
  const made = [];
  if (texts.length > 1) {
    made.push(heatMap(texts, found), pairs(texts, nearestPairs(found, PAIRS), found.length));
  }
  made.push(numbers(texts, vectors, copy));
  return { made, nearest: nearestPairs(found, 1)[0] };
}

function heatMap(texts, found) {
  const shown = texts.slice(0, SHOWN);
  const [low, high] = range(found.slice(0, SHOWN));
  const head = [
    el("th", { scope: "col" }, el("span", { class: "unseen" }, "Text")),
    ...shown.map((text, i) => el("th", { scope: "col", title: text }, String(i + 1), el("span", { class: "unseen" }, ` ${brief(text)}`))),
  ];
  const rows = shown.map((text, a) =>
    el("tr", {}, el("th", { scope: "row", title: text }, numbered(a, text)), ...shown.map((_, b) => cell(found, a, b, low, high))),
  );
  const cut = texts.length > SHOWN ? ` The first ${SHOWN} of ${texts.length} texts.` : "";
  const note = `Cosine of every two vectors: 1 is the same direction, 0 nothing in common.${cut}`;
  const scale = el(
    "p",
    { class: "scale" },
    el("span", {}, decimal(low, 2)),
    el("span", { class: "ramp", "aria-hidden": "true" }),
    el("span", {}, decimal(high, 2)),
    el("span", { class: "unseen" }, "are the least and the greatest of different texts; the colour goes from one to the other"),
  );
  return el(
    "section",
    { class: "card", "aria-labelledby": "heat-title" },
    el("div", { class: "above" }, el("h3", { id: "heat-title" }, "Similarity"), scale),
    el("p", { class: "hint" }, note),
    table("Similarity of every text with every other", head, rows, shown.length > MANY ? "heat tight" : "heat"),
  );
}

function cell(found, a, b, low, high) {
  const value = found[a][b];
  if (a === b) return el("td", { class: "same" }, decimal(value, 2));
  const share = high > low ? (value - low) / (high - low) : 1;
  return el("td", { style: { "--share": `${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%` } }, decimal(value, 2));
}

function pairs(texts, nearest, count) {
  const rows = nearest.map(({ a, b, score }) =>
    el("tr", {}, el("td", { class: "score" }, bar(score, decimal(score, 3))), el("td", {}, numbered(a, texts[a])), el("td", {}, numbered(b, texts[b]))),
  );
  const all = (count * (count - 1)) / 2;
  const note = all > nearest.length ? `The first ${nearest.length} of ${amount(all)} pairs.` : "";
  return el(
    "section",
    { class: "card", "aria-labelledby": "pairs-title" },
    el("h3", { id: "pairs-title" }, "Nearest pairs"),
    note ? el("p", { class: "hint" }, note) : null,
    table("Pairs of texts, the most similar first", ["Cosine", "Text", "Text"], rows, "list pairs"),
  );
}

function numbers(texts, vectors, copy) {
  const rows = vectors.slice(0, SHOWN).map((vector, i) =>
    el("tr", {}, el("th", { scope: "row" }, numbered(i, texts[i])), ...vector.slice(0, NUMBERS).map((x) => el("td", {}, decimal(x, 4)))),
  );
  const width = vectors[0].length;
  const head = ["Text", ...vectors[0].slice(0, NUMBERS).map((_, i) => String(i + 1))];
  const button = el("button", { type: "button", class: "quiet", onclick: () => copy(JSON.stringify(vectors), button, "vectors") }, "Copy all as JSON");
  return el(
    "details",
    { class: "card" },
    el("summary", {}, "The vectors"),
    el("div", { class: "above" }, el("p", { class: "hint" }, `${vectors.length === 1 ? "1 vector" : `${vectors.length} vectors`} of ${width} numbers; the first ${Math.min(NUMBERS, width)} are shown.`), button),
    table("The first numbers of every vector", head, rows, "vectors"),
  );
}

/** What a classifier says of a text, or which entities it found there. */
export function labels(text, number, answer) {
  const spans = answer.some((each) => Number.isInteger(each.start) && Number.isInteger(each.end));
  const title = el("h3", { class: "quote" }, numbered(number, text));
  if (spans) return el("section", { class: "card" }, title, marked(text, answer), table(`Entities of text ${number + 1}`, ["Label", "Words", "Score"], answer.map(entity), "list"));
  if (!answer.length) return el("section", { class: "card" }, title, el("p", { class: "hint" }, "Nothing was found in it."));
  const sorted = [...answer].sort((a, b) => b.score - a.score);
  const rows = sorted.map((each, i) =>
    el("tr", i ? {} : { class: "first" }, el("th", { scope: "row" }, each.label), el("td", { class: "wide" }, bar(each.score, percent(each.score)))),
  );
  const head = ["Label", "Score"];
  const rest = rows.length > LABELS
    ? el("details", {}, el("summary", {}, `${rows.length - LABELS} more`), table(`Further labels of text ${number + 1}`, head, rows.slice(LABELS), "labels"))
    : null;
  return el("section", { class: "card" }, title, table(`Labels of text ${number + 1}`, head, rows.slice(0, LABELS), "labels"), rest);
}

function entity(each) {
  const name = each.entity_group ?? each.label ?? each.entity;
  return el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, each.word ?? each.text ?? ""), el("td", { class: "score" }, bar(each.score, percent(each.score))));
}

/** The text with what was found marked in it; positions are of Unicode characters, as Python counts them. */
function marked(text, answer) {
  const letters = Array.from(text);
  const line = el("p", { class: "marked" });
  let at = 0;
  for (const each of [...answer].sort((a, b) => a.start - b.start)) {
    if (each.start < at) continue;
    line.append(letters.slice(at, each.start).join(""));
    line.append(el("mark", {}, letters.slice(each.start, each.end).join(""), el("span", { class: "tag" }, each.entity_group ?? each.label ?? each.entity)));
    at = each.end;
  }
  line.append(letters.slice(at).join(""));
  return line;
}

/** What a cross-encoder says: texts, the best for the query first. */
export function ranks(texts, answer) {
  const scores = answer.map((each) => each.score);
  const low = Math.min(0, ...scores);
  const high = Math.max(1, ...scores);
  const rows = [...answer].sort((a, b) => b.score - a.score).map((each) =>
    el("tr", {}, el("td", { class: "score" }, bar((each.score - low) / (high - low), decimal(each.score, 3))), el("td", {}, numbered(each.index, texts[each.index]))),
  );
  return el("section", { class: "card", "aria-labelledby": "ranks-title" }, el("h3", { id: "ranks-title" }, "Ranked for the query"), table("Texts, the best for the query first", ["Score", "Text"], rows, "list"));
}

/** Rows of the index. */
export function hits(found) {
  if (!found.length) return el("p", { class: "empty" }, "No row passes the filter.");
  const names = Object.keys(found[0].row);
  const rows = found.map(({ score, row }) =>
    el("tr", {}, el("td", { class: "score" }, bar(score, decimal(score, 3))), ...names.map((name, i) => value(name, row[name], i === 0))),
  );
  return el("section", { class: "card" }, table("Hits, the best first", ["Score", ...names], rows, "list hits"));
}

function value(name, given, isId) {
  const text = given === null || given === undefined ? "" : typeof given === "string" ? given : JSON.stringify(given);
  const inner = el("div", { class: "clamp" }, text);
  const kind = typeof given === "number" ? "number" : text.length > 40 ? "long" : "";
  return isId ? el("th", { scope: "row", class: "id", "data-name": name }, inner) : el("td", { class: kind, "data-name": name }, inner);
}

function numbered(place, text) {
  return el("span", { class: "numbered" }, el("span", { class: "place" }, String(place + 1)), el("span", { class: "text" }, text));
}

const percent = (score) => `${(100 * score).toFixed(1)} %`;
const brief = (text) => (text.length > 60 ? `${text.slice(0, 60)}…` : text);
