// Small helpers. Everything shown is set as text, never as markup: names come from models.
const NAME = 0, PATH = 1, TYPE = 2, OUTPUT = 3, PARAMS = 4, HELD = 5, FLOPS = 6, WORK = 7, FROM = 8, WHY = 9, PARENT = 10;
const MOST_TILES = 60, MOST_OPEN = 60;
const find = (id) => document.getElementById(id);

function make(tag, text, attributes = {}, ...children) {
  const element = document.createElement(tag);
  if (text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(plain).text());
}

function share(part, whole) {
  if (!whole) return "-";
  return part && part < whole / 2000 ? "<0.1%" : `${((100 * part) / whole).toFixed(1)}%`;
}

// Numbers before words, what is not known last, in either direction.
function compare(a, b) {
  const known = (value) => value !== null && value !== "" && value !== undefined;
  if (!known(a) || !known(b)) return known(b) - known(a);
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}
const directed = (a, b, sign) => {
  const order = compare(a, b);
  return a === null || a === "" || b === null || b === "" ? order : sign * order;
};

// A click on a heading sorts upwards, then downwards, then as it was; `sorted(column, sign)` with sign 0 does the last.
function sortable(heads, sorted) {
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const now = { ascending: "descending", descending: "" }[head.getAttribute("aria-sort")] ?? "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (now) head.setAttribute("aria-sort", now);
      sorted(column, { ascending: 1, descending: -1 }[now] ?? 0);
    });
  });
}

function head(titles) {
  const cells = titles.map(([title, kind]) =>
    make("th", null, { scope: "col", ...(kind === "number" && { class: "number" }) }, make("button", title, { type: "button" })));
  return [make("thead", null, {}, make("tr", null, {}, ...cells)), cells];
}
