// Requests to copy: the same that the page sends, as curl and as Python.

const MOST = 8; // texts in a request that is to be read
const VARIABLE = "RAYBERT_API_KEY";

/** Snippets [{title, text}] for {kind, base, model, texts, query, options, keyed, search}; `base` ends with a slash. */
export function snippets(request) {
  const made = request.kind === "embedding" ? embedding(request) : task(request);
  if (request.search) made.push({ title: "curl, search", text: curl(request, "search", request.search) });
  return made;
}

/** How many of the texts stand in the snippets. */
export const shownTexts = (texts) => Math.min(texts.length, MOST);

function embedding(request) {
  const input = request.texts.slice(0, MOST);
  return [
    { title: "curl", text: curl(request, "v1/embeddings", { model: request.model, input, ...request.options }) },
    { title: "Python, openai", text: openai(request, input) },
  ];
}

/** A model with a head: TEI's routes. */
function task(request) {
  const [path, body] = request.kind === "reranker"
    ? ["rerank", { model: request.model, query: request.query, texts: request.texts.slice(0, MOST), ...request.options }]
    : ["predict", { model: request.model, inputs: request.texts.slice(0, MOST).map((text) => [text]), raw_scores: false, ...request.options }];
  return [
    { title: "curl", text: curl(request, path, body) },
    { title: "Python, requests", text: requests(request, path, body) },
  ];
}

function curl({ base, keyed }, path, body) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("\n", "\n  ").replaceAll("'", "'\\''");
  const lines = [`curl ${base}${path}`, `-H 'content-type: application/json'`];
  if (keyed) lines.push(`-H "authorization: Bearer $${VARIABLE}"`);
  return [...lines, `-d '${quoted}'`].join(" \\\n  ");
}

function openai({ base, keyed, model, options }, input) {
  const more = Object.keys(options).length ? `\n    extra_body=${python(options)},` : "";
  const texts = input.map((text) => `\n        ${python(text)},`).join("");
  return `${keyed ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(
    base_url=${python(`${base}v1`)},
    api_key=${keyed ? `os.environ["${VARIABLE}"]` : '"none"'},
)
answer = client.embeddings.create(
    model=${python(model)},
    input=[${texts}
    ],${more}
)
vectors = [each.embedding for each in answer.data]`;
}

function requests({ base, keyed }, path, body) {
  const fields = Object.entries(body).map(([name, value]) => `\n        ${python(name)}: ${listed(value)},`).join("");
  const headers = keyed ? `\n    headers={"authorization": "Bearer " + os.environ["${VARIABLE}"]},` : "";
  return `${keyed ? "import os\n\n" : ""}import requests

answer = requests.post(
    ${python(base + path)},${headers}
    json={${fields}
    },
)
print(answer.json())`;
}

/** A literal, of a list an entry a line. */
function listed(value) {
  if (!Array.isArray(value)) return python(value);
  return `[${value.map((each) => `\n            ${python(each)},`).join("")}\n        ]`;
}

/** A literal. JSON's strings and numbers are Python's, too. */
function python(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, each]) => `${python(name)}: ${python(each)}`).join(", ")}}`;
}
