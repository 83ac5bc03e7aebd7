// What is drawn of a model: items, each a row, equal rows as one (`repeat`), or a run of rows (`run`); open ones hold items.
const MOST_ITEMS = 40, LONG_LEVEL = 14, MOST_AT_FIRST = 30;
const NUMBERED = /^(.*?)(\d+)$/s;

function rowItem(model, index) {
  return { id: `r${index}`, kind: "row", members: [index], touched: model.touched[index] };
}

function group(kind, items) {
  const members = items.flatMap((item) => item.members);
  return { id: `${kind}${members[0]}-${members.at(-1)}`, kind, members, items, touched: items.reduce((sum, item) => sum + item.touched, 0) };
}

// Neighbours that differ in their number alone, as one item.
function repeats(model, rows) {
  const items = [];
  const stem = (index) => NUMBERED.exec(model.rows[index][NAME])?.[1];
  for (let start = 0; start < rows.length;) {
    let end = start + 1;
    const first = rows[start];
    if (stem(first) !== undefined)
      while (end < rows.length && stem(rows[end]) === stem(first) && model.mark(rows[end]) === model.mark(first)) end += 1;
    const members = rows.slice(start, end).map((index) => rowItem(model, index));
    items.push(members.length > 1 ? group("repeat", members) : members[0]);
    start = end;
  }
  return items;
}

// In a long level, runs in which nothing changed are one item each.
function quiet(model, items) {
  if (!model.compared || items.length <= LONG_LEVEL) return items;
  const folded = [];
  for (let start = 0; start < items.length;) {
    let end = start;
    while (end < items.length && !items[end].touched) end += 1;
    if (end - start >= 3) folded.push(group("run", items.slice(start, end)));
    else folded.push(...items.slice(start, Math.max(end, start + 1)));
    start = Math.max(end, start + 1);
  }
  return folded;
}

// So many items are never drawn at once: neighbours stand together.
function chunked(items) {
  if (items.length <= MOST_ITEMS) return items;
  const size = Math.ceil(items.length / Math.min(MOST_ITEMS, Math.ceil(Math.sqrt(items.length))));
  const chunks = [];
  for (let start = 0; start < items.length; start += size) {
    const part = items.slice(start, start + size);
    chunks.push(part.length > 1 ? group("run", part) : part[0]);
  }
  return chunks;
}

const level = (model, rows) => chunked(quiet(model, repeats(model, rows)));

// What an item holds when it is open: the inside of a row, of the first of equal rows, or the items of a run.
function contents(model, item, each) {
  if (item.kind === "run") return chunked(item.items);
  if (item.kind === "repeat" && (each.has(item.id) || !model.children.get(item.members[0]).length)) return chunked(item.items);
  return level(model, model.children.get(item.members[0]));
}

function opens(model, item) {
  return item.kind !== "row" || model.children.get(item.members[0]).length > 0;
}

// The items below a row, each open one with its own; `each` are the repeats that are shown one by one.
function items(model, root, open, each) {
  const fill = (item) =>
    opens(model, item) && open.has(item.id) ? { ...item, inner: contents(model, item, each).map(fill) } : item;
  return level(model, model.children.get(root)).map(fill);
}

// At first what changed is opened, from outside inwards, as long as all can still be seen at a glance.
function openedAtFirst(model, root) {
  const open = new Set();
  let waiting = level(model, model.children.get(root));
  let shown = waiting.length;
  while (waiting.length) {
    const next = [];
    for (const item of waiting) {
      if (!item.touched || !opens(model, item) || item.members.every((index) => ["added", "removed"].includes(model.state[index]))) continue;
      const inner = contents(model, item, new Set());
      if (shown + inner.length > MOST_AT_FIRST) continue;
      open.add(item.id);
      shown += inner.length;
      next.push(...inner);
    }
    waiting = next;
  }
  return open;
}

// The part of a model that is worth a picture: not a wrapper around all of it.
function firstRoot(model) {
  let root = -1;
  for (let below = model.children.get(root); below.length === 1 && model.children.get(below[0]).length; below = model.children.get(root)) root = below[0];
  return root;
}

function itemName(model, item) {
  const [first, last] = [model.rows[item.members[0]][NAME], model.rows[item.members.at(-1)][NAME]];
  if (item.kind === "row") return first;
  if (item.kind === "run") return `${first} \u2026 ${last}`;
  return `${first}\u2013${NUMBERED.exec(last)[2]}`;
}

function itemState(model, item) {
  const states = new Set(item.members.map((index) => model.state[index]));
  if (item.kind !== "run" && states.size === 1) {
    const [state] = states;
    if (TOUCHED.has(state)) return state;
    return item.touched ? "within" : state === "inside" ? "" : state;
  }
  return item.touched ? "within" : "";
}
