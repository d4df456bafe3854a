// Elements, made without HTML in strings: what users and services send is only ever text.

/** An element with properties (`class`, `data-*`, `aria-*`, `on*` listeners, `style` an object) and children. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (name === "style") for (const [key, each] of Object.entries(value)) made.style.setProperty(key, each);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const ROLES = { "thead, tbody": "rowgroup", tr: "row", td: "cell", "th[scope=col]": "columnheader", "th[scope=row]": "rowheader" };

/** A table that scrolls inside of itself; `head` are cells or texts of the first row, `rows` are <tr>. */
export function table(caption, head, rows, kind = "") {
  const cells = head.map((cell) => (typeof cell === "string" ? el("th", { scope: "col" }, cell) : cell));
  const inner = el(
    "table",
    { class: kind },
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, ...cells)),
    el("tbody", {}, ...rows),
  );
  // on narrow screens rows are no longer laid out as rows, and browsers would then not tell of a table
  for (const [tag, role] of Object.entries(ROLES)) {
    for (const each of inner.querySelectorAll(tag)) each.setAttribute("role", role);
  }
  inner.setAttribute("role", "table");
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, inner);
}

/** A number with a bar of that share, 0 to 1, beside it. */
export function bar(share, text) {
  const width = `${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%`;
  return el(
    "span",
    { class: "measure" },
    el("span", { class: "number" }, text),
    el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "bar", style: { width } })),
  );
}

/** A number with so many digits behind the point, and a minus that is read out as one. */
export function decimal(value, digits) {
  const text = value.toFixed(digits);
  return text.startsWith("-") ? (Number(text) ? `−${text.slice(1)}` : text.slice(1)) : text;
}

/** 1234.5 as 1,235; small ones with a digit behind the point. */
export function amount(value) {
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}
