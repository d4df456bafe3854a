// What the page asks of the service that it came from, and what went wrong, in words.

let key = "";

/** A request that got no answer, or an error for one; the message is for whoever reads the page. */
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The key to send from now on. It is kept here and nowhere else. */
export function useKey(text) {
  if (!/^[\x21-\x7e]*$/.test(text)) throw new Problem("A key has no blanks and no letters beyond ASCII.");
  key = text;
}

/** Whether a key is sent. */
export const hasKey = () => key !== "";

/** The answer to a GET, or with a body to a POST: {data, headers, milliseconds}. Throws Problem. */
export async function ask(path, body = undefined, signal = undefined) {
  const headers = { accept: "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const started = performance.now();
  let response, data;
  try {
    const method = body === undefined ? "GET" : "POST";
    response = await fetch(path, { method, headers, signal, cache: "no-store", body: JSON.stringify(body) });
    data = await response.json().catch((error) => {
      if (error.name === "AbortError") throw error;
      return null;
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service does not answer. Is it still running?");
  }
  const milliseconds = performance.now() - started;
  if (!response.ok) throw new Problem(words(response, data), response.status);
  if (data === null) throw new Problem("The service gave an answer that is no JSON.");
  return { data, headers: response.headers, milliseconds };
}

/** Milliseconds of a response header; 0 where there is none. */
export const time = (headers, name) => Number(headers.get(name) ?? 0);

function words(response, data) {
  const told = sentence(data?.error?.message ?? data?.error ?? "");
  const wait = response.headers.get("retry-after");
  switch (response.status) {
    case 401:
      return key ? "The service does not know this key." : "The service asks for a key.";
    case 413:
      return `That is too much for one request. ${told}`.trim();
    case 429:
      return `The service is busy. Try again in ${wait ?? "a few"} ${wait === "1" ? "second" : "seconds"}.`;
    case 503:
      return `The service is not healthy. ${told}`.trim();
    default:
      return told || `The service answered with the error ${response.status}.`;
  }
}

/** The service counts from 0 and names fields; the page has lines. */
function sentence(message) {
  if (typeof message !== "string" || !message) return "";
  const plain = message
    .replace(/\b(?:inputs?|texts)\[(\d+)\]/g, (_, place) => `text ${Number(place) + 1}`)
    .replace(/\binputs? has\b/, "the text has")
    .replace("shorten it, or set truncate to true", "shorten it, or let texts be cut");
  const start = plain.charAt(0).toUpperCase() + plain.slice(1);
  return /[.!?]$/.test(start) ? start : `${start}.`;
}
