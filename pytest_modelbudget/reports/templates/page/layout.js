// Places for what is drawn, by dagre: from top to bottom, open items as frames around what they hold.
const NODE_HEIGHT = 40, TITLE = 16, LONGEST = 30;
const NAME_FONT = "600 13px", LINE_FONT = "12px", EDGE_FONT = "10.5px";
const ruler = document.createElement("canvas").getContext("2d");
const cut = (text, most = LONGEST) => (text.length <= most ? text : `${text.slice(0, most / 2)}\u2026${text.slice(1 - most / 2)}`);
function textWidth(text, font) {
  ruler.font = `${font} ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(text).width;
}

function place(model, drawn, wires) {
  const graph = new dagre.graphlib.Graph({ compound: true });
  graph.setGraph({ rankdir: "TB", nodesep: 22, edgesep: 12, ranksep: 22, marginx: 8, marginy: 22 });
  graph.setDefaultEdgeLabel(() => ({}));
  const add = (item, parent) => {
    if (item.inner) graph.setNode(item.id, {});
    else graph.setNode(item.id, { width: nodeWidth(model, item), height: NODE_HEIGHT });
    if (parent) graph.setParent(item.id, parent);
    item.inner?.forEach((inner) => add(inner, item.id));
  };
  drawn.forEach((item) => add(item));
  wires.ends.forEach((end) => graph.setNode(end.id, { width: 24 + textWidth(cut(end.name), NAME_FONT), height: 26 }));
  const frames = framesAround(drawn);
  wires.edges.forEach((edge) => {
    const label = edgeText(edge);
    const into = (frames.get(edge.to) ?? []).filter((id) => !frames.get(edge.from)?.includes(id)).length;
    graph.setEdge(edge.from, edge.to, { minlen: 1 + into, width: 8 + textWidth(label, EDGE_FONT), height: 16, labelpos: "c" });
  });
  wires.order.forEach(([from, to]) => graph.setEdge(from, to, { hidden: true }));
  dagre.layout(graph);
  drawn.flatMap(allItems).filter(({ inner }) => inner).forEach(({ id }) => { // room for the title
    const frame = graph.node(id);
    frame.y -= TITLE / 2;
    frame.height += TITLE;
  });
  return graph;
}

// For each item the open ones around it; a line into one needs room for its title.
function framesAround(drawn) {
  const around = new Map();
  const walk = (item, above) => {
    around.set(item.id, above);
    item.inner?.forEach((inner) => walk(inner, [...above, item.id]));
  };
  drawn.forEach((item) => walk(item, []));
  return around;
}

function nodeWidth(model, item) {
  const { name, badge, line } = nodeText(model, item);
  const marks = (badge ? 16 + textWidth(badge, LINE_FONT) : 0) + (opens(model, item) ? 16 : 0);
  return Math.min(280, Math.max(90, 22 + Math.max(textWidth(name, NAME_FONT) + marks, textWidth(line, LINE_FONT))));
}

const STATE_BADGES = { added: "added", removed: "removed", changed: "changed", follows: "", renamed: "renamed", within: "" };

function nodeText(model, item) {
  const state = itemState(model, item);
  const row = model.rows[item.members[0]];
  const badge = [
    item.kind === "repeat" ? `\u00d7${item.members.length}` : "",
    STATE_BADGES[state] ?? "",
    state === "within" ? `${item.touched} changed` : "",
  ].filter(Boolean).join(", ");
  const held = item.members.reduce((sum, index) => sum + (model.state[index] === "removed" ? 0 : model.rows[index][HELD] ?? 0), 0);
  const line = item.kind === "run"
    ? `${item.members.length} rows${item.touched || !model.compared ? "" : ", unchanged"}, ${short(held)} params`
    : `${cut(row[TYPE], 22)}${row[HELD] ? `, ${short(row[HELD])} params` : ""}`;
  return { name: cut(itemName(model, item)), badge, line, state };
}

function short(number) {
  if (number < 10000) return number.toLocaleString("en-US");
  return new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 }).format(number);
}

function edgeText(edge) {
  const shapes = [...(edge.shapes.size ? edge.shapes : edge.gone)].filter(Boolean);
  return cut(shapes.length > 2 ? `${shapes.length} shapes` : shapes.join("; "), 34);
}
