// The page: it asks the service what it serves, and shows what fits.

import { Problem, ask, hasKey, time, useKey } from "./api.js";
import { amount, decimal, el } from "./dom.js";
import { shownTexts, snippets } from "./snippets.js";
import { comparison, hits, labels, ranks, timings } from "./views.js";

const MOST = 500; // texts; more are for a program
const EXAMPLES = [
  "How do I read a gzip file?",
  "Open a compressed archive and print its lines",
  "The cat sleeps on the warm windowsill",
  "A kitten naps in the sun",
  "Interest rates rose again this quarter",
  "The central bank raised borrowing costs",
];
const KINDS = {
  embedding: { title: "Compare texts", verb: "Compare", doing: "Comparing…", run: compare },
  classifier: { title: "Label texts", verb: "Label", doing: "Labelling…", run: label },
  reranker: { title: "Rank texts for a query", verb: "Rank", doing: "Ranking…", run: rank },
};

const $ = (id) => document.getElementById(id);
const here = new URL(".", location.href).href;
const service = { names: [], name: "", infos: {}, kind: "embedding" };

/** Ask what there is. Where a key is needed, wait for one. */
async function start() {
  const [models, told] = await Promise.all([ask("v1/models"), ask("info")]);
  service.names = models.data.data.map((each) => each.id);
  service.infos = told.data.models ?? { [service.names[0]]: told.data };
  $("model").replaceChildren(...service.names.map((name) => el("option", { value: name }, name)));
  const several = service.names.length > 1;
  $("model").hidden = $("model-label").hidden = !several;
  $("model-name").hidden = several;
  $("key-form").hidden = true;
  choose(service.names[0]);
}

/** Show what a model can do. */
function choose(name) {
  const info = service.infos[name] ?? {};
  service.name = name;
  service.kind = Object.keys(info.model_type ?? {}).find((kind) => kind in KINDS) ?? "embedding";
  const kind = KINDS[service.kind];
  $("model-name").textContent = name;
  $("version").textContent = info.version ? `raybert ${info.version}` : "raybert";
  document.title = `${name} · raybert`;
  $("facts").replaceChildren(...facts(info).map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
  $("work-title").textContent = kind.title;
  work.stop();
  searches.stop();
  $("against-field").hidden = service.kind !== "reranker";
  const prompts = service.kind === "embedding" ? info.prompts ?? [] : [];
  $("prompt-field").hidden = !prompts.length;
  $("prompt").replaceChildren(el("option", { value: "" }, "the model’s own"), ...prompts.map((each) => el("option", { value: each }, each)));
  $("results").replaceChildren(el("p", { class: "empty" }, "Results will appear here."));
  $("search").hidden = !info.search;
  if (info.search) {
    $("search-about").textContent = `The rows nearest to a text, of ${info.search.rows.toLocaleString("en")}.`;
    $("filter-hint").textContent = info.search.columns ? `Columns: ${info.search.columns.join(", ")}. As in: id != 'a' and num_tokens > 10` : "";
  }
  $("work").hidden = $("code").hidden = false;
  refresh();
}

function facts(info) {
  const type = info.model_type ?? {};
  return [
    ["dimensions", info.dimension && amount(info.dimension)],
    ["max tokens", info.max_input_length && amount(info.max_input_length)],
    ["pooling", type.embedding?.pooling],
    ["dtype", info.model_dtype],
    ["device", info.device],
  ].filter(([, value]) => value);
}

const texts = () => $("texts").value.split("\n").map((line) => line.trim()).filter(Boolean);

function options() {
  const chosen = {};
  if (!$("prompt-field").hidden && $("prompt").value) chosen.prompt_name = $("prompt").value;
  if ($("truncate").checked) chosen.truncate = true;
  return chosen;
}

/** The snippets and the count of texts, as the form stands now. */
function refresh() {
  const given = texts();
  $("count").textContent = given.length === 1 ? "1 text" : `${given.length} texts`;
  const search = $("search").hidden ? null : { model: service.name, ...searchBody() };
  const made = snippets({ ...service, base: here, model: service.name, texts: given, query: $("against").value, options: options(), keyed: hasKey(), search });
  const left = given.length - shownTexts(given);
  $("code-note").textContent = left ? `With the first ${given.length - left} of your ${given.length} texts.` : "";
  $("snippets").replaceChildren(...made.map(snippet));
}

function snippet({ title, text }) {
  const button = el("button", { type: "button", class: "quiet", "aria-label": `Copy ${title}`, onclick: () => copy(text, button, title) }, "Copy");
  return el("figure", { class: "card snippet" }, el("figcaption", { class: "above" }, el("h3", {}, title), button), el("pre", { tabindex: "0", role: "region", "aria-label": title }, el("code", {}, text)));
}

async function copy(text, button, what) {
  const before = (button.dataset.name ??= button.textContent);
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = copyOld(text);
  }
  button.textContent = done ? "Copied" : "Not copied";
  $("copied").textContent = done ? `Copied: ${what}` : "The browser does not let the page copy; select the text instead.";
  setTimeout(() => (button.textContent = before), 2000);
}

/** Where a page has no clipboard: it does not come from this machine, nor by HTTPS. */
function copyOld(text) {
  const area = el("textarea", { class: "unseen", "aria-hidden": "true", tabindex: "-1" });
  area.value = text;
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

/** Runs what a form asks for: the last one wins; problems are told beside the button, which is named by `verb()`. */
class Attempts {
  constructor(button, error, status, region, verb) {
    Object.assign(this, { button, error, status, region, verb, running: null });
  }

  async run(doing, work) {
    this.stop();
    const mine = (this.running = new AbortController());
    this.button.textContent = doing;
    this.region.setAttribute("aria-busy", "true");
    try {
      const told = await work(mine.signal);
      if (this.running === mine) this.stop(told);
    } catch (problem) {
      if (this.running !== mine) return;
      this.stop();
      this.error.textContent = problem instanceof Problem ? problem.message : `The page failed: ${problem.message}`;
      if (problem.status === 401) askForKey();
    }
  }

  stop(told = "") {
    this.running?.abort();
    this.running = null;
    this.error.textContent = "";
    this.status.textContent = told;
    this.button.textContent = this.verb();
    this.region.removeAttribute("aria-busy");
  }
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

async function compare(given, signal) {
  const body = { model: service.name, input: given, ...options() };
  const answer = await ask("v1/embeddings", body, signal);
  const vectors = answer.data.data.map((each) => each.embedding);
  const tokens = Number(answer.headers.get("x-compute-tokens") ?? answer.data.usage.total_tokens);
  const figures = [["texts", amount(given.length)], ["tokens", amount(tokens)], ["dimensions", amount(vectors[0].length)]];
  const { made, nearest } = comparison(given, vectors, copy);
  $("results").replaceChildren(timings(answer, figures), ...made);
  const best = nearest ? ` Nearest: ${nearest.a + 1} and ${nearest.b + 1}, at ${decimal(nearest.score, 2)}.` : " Give a second one to compare.";
  return `${count(given)} in ${amount(answer.milliseconds)} ms.${best}`;
}

async function label(given, signal) {
  const inputs = given.map((text) => [text]);
  const answer = await ask("predict", { model: service.name, inputs, raw_scores: false, ...options() }, signal);
  const tokens = time(answer.headers, "x-compute-tokens");
  const shown = answer.data.map((each, place) => labels(given[place], place, each));
  $("results").replaceChildren(timings(answer, [["texts", amount(given.length)], ["tokens", amount(tokens)]]), ...shown);
  return `${count(given)} in ${amount(answer.milliseconds)} ms.`;
}

async function rank(given, signal) {
  const query = $("against").value.trim();
  if (!query) throw new Problem("Give a query to rank the texts for.");
  const answer = await ask("rerank", { model: service.name, query, texts: given, ...options() }, signal);
  const tokens = time(answer.headers, "x-compute-tokens");
  $("results").replaceChildren(timings(answer, [["texts", amount(given.length)], ["tokens", amount(tokens)]]), ranks(given, answer.data));
  return `${count(given)} in ${amount(answer.milliseconds)} ms.`;
}

const count = (given) => (given.length === 1 ? "1 text" : `${amount(given.length)} texts`);

function searchBody() {
  const filter = $("filter").value.trim();
  return { query: $("query").value.trim(), k: Number($("hits").value) || 10, ...(filter ? { filter } : {}) };
}

async function find(signal) {
  const body = searchBody();
  if (!body.query) throw new Problem("Give a query to search for.");
  const answer = await ask("search", { model: service.name, ...body }, signal);
  const found = answer.data.hits;
  $("found").replaceChildren(timings(answer, [["hits", amount(found.length)]]), hits(found));
  return `${found.length === 1 ? "1 hit" : `${found.length} hits`} in ${amount(answer.milliseconds)} ms.`;
}

function listen() {
  $("work-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const kind = KINDS[service.kind];
    work.run(kind.doing, async (signal) => {
      const given = texts();
      if (!given.length) throw new Problem("Give a text.");
      if (given.length > MOST) throw new Problem(`The page takes ${MOST} texts at most; send more from a program.`);
      return kind.run(given, signal);
    });
  });
  $("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    searches.run("Searching…", find);
  });
  $("texts").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("work-form").requestSubmit();
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    begin($("key").value.trim());
  });
  $("model").addEventListener("change", () => choose($("model").value));
  for (const form of ["work-form", "search-form"]) $(form).addEventListener("input", refresh);
}

/** Start, with a key or without; what is wrong is told on top. */
async function begin(key = "") {
  $("trouble").textContent = "";
  try {
    useKey(key);
    const focused = $("key-form").contains(document.activeElement);
    await start();
    if (focused) $("texts").focus();
  } catch (problem) {
    $("trouble").textContent = problem.message;
    if (problem.status === 401) askForKey();
  }
}

const work = new Attempts($("go"), $("work-error"), $("status"), $("results"), () => KINDS[service.kind].verb);
const searches = new Attempts($("find"), $("search-error"), $("search-status"), $("found"), () => "Search");

$("texts").value = EXAMPLES.join("\n");
listen();
begin();
