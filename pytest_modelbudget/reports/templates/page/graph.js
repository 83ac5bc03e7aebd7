// The drawing of a model. Nodes are buttons above the lines: one stop for the tab key, arrows move, Enter opens.
const { h } = preact;
const { useState, useMemo, useRef, useLayoutEffect } = preactHooks;

const READABLE = 0.8; // the scale below which letters are too small, so that one scrolls instead

function Graph({ model, table, name }) {
  const [root, setRoot] = useState(() => firstRoot(model));
  const [open, setOpen] = useState(() => openedAtFirst(model, firstRoot(model)));
  const [each, setEach] = useState(new Set());
  const [chosen, setChosen] = useState(null);
  const [scale, setScale] = useState(0);
  const view = useRef(null), refocus = useRef(false);
  const drawn = useMemo(() => items(model, root, open, each), [model, root, open, each]);
  const wires = useMemo(() => new Wires(model, root, drawn), [drawn]);
  const graph = useMemo(() => place(model, drawn, wires), [wires]);
  const nodes = drawn.flatMap(allItems);
  const item = nodes.find(({ id }) => id === chosen) ?? (chosen === null ? nodes.find((node) => TOUCHED.has(itemState(model, node))) : undefined);
  const { width, height } = graph.graph();

  const fit = (least) => Math.min(1, Math.max(least, (view.current.clientWidth - 12) / width));
  useLayoutEffect(() => setScale(fit(READABLE)), [root]);
  useLayoutEffect(() => {
    const at = graph.node((item ?? nodes[0])?.id);
    if (!scale || !at) return;
    const { clientWidth, clientHeight } = view.current;
    view.current.scrollTo(at.x * scale - clientWidth / 2, at.y * scale - clientHeight / 2);
  }, [root, scale]);
  useLayoutEffect(() => {
    if (refocus.current) view.current.querySelector("[data-current]")?.focus();
    refocus.current = false;
  }, [drawn]);

  const toggled = (set, id) => new Set(set.has(id) ? [...set].filter((other) => other !== id) : [...set, id]);
  const toggle = (target) => {
    if (!opens(model, target)) return;
    refocus.current = true;
    setOpen(toggled(open, target.id));
  };
  const showEach = (target) => {
    setEach(toggled(each, target.id));
    setOpen(new Set([...open, target.id]));
  };
  const zoom = (index) => {
    setRoot(index);
    setOpen(openedAtFirst(model, index));
    setChosen(null);
  };
  const current = (item ?? nodes[0])?.id;
  const key = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = nodes.find(({ id }) => id === current);
    if (event.key === "Enter") toggle(target);
    else if (event.key in DIRECTIONS) {
      const next = neighbour(graph, nodes, current, DIRECTIONS[event.key]);
      if (next) view.current.querySelector(`[data-item="${CSS.escape(next.id)}"]`).focus();
    } else return;
    event.preventDefault();
  };

  return h("div", { class: "graph" },
    h(Bar, { model, name, root, zoom, scale, setScale, fit, wires }),
    h("div", { class: "beside" },
      h("div", { class: "view", ref: view, role: "group", "aria-label": "Graph of the model. Arrow keys move, Enter opens and closes.", onKeyDown: key },
        h("div", { class: "sized", style: { width: `${width * scale}px`, height: `${height * scale}px` } },
          h("div", { class: "canvas", style: { width: `${width}px`, height: `${height}px`, transform: `scale(${scale})` } },
            nodes.filter(({ inner }) => inner).map((frame) => h("div", { class: "frame", style: box(graph.node(frame.id)), key: `frame ${frame.id}` })),
            h(Lines, { graph, wires }),
            [...wires.ends.values()].map((end) => h("div", { class: "end", style: box(graph.node(end.id)), key: end.id, title: end.name }, cut(end.name))),
            nodes.map((node) => h(Node, { model, node, at: graph.node(node.id), current: node.id === current, chosen: node === item, key: node.id,
              onFocus: () => setChosen(node.id), onOpen: () => toggle(node) }))))),
      h(Facts, { model, item, open: item && open.has(item.id), each: item && each.has(item.id), onOpen: () => toggle(item), onEach: () => showEach(item),
        onZoom: () => zoom(item.members[0]), onShow: () => table.reveal(item.members[0]) })));
}

const allItems = (item) => [item, ...(item.inner ?? []).flatMap(allItems)];
const box = ({ x, y, width, height }) => ({ left: `${x - width / 2}px`, top: `${y - height / 2}px`, width: `${width}px`, height: `${height}px` });

function Node({ model, node, at, current, chosen, onFocus, onOpen }) {
  const { name, badge, line, state } = nodeText(model, node);
  const frame = Boolean(node.inner);
  const output = node.kind === "run" ? "" : `, output ${model.rows[node.members[0]][OUTPUT]}`;
  const spoken = `${name}${badge ? `, ${badge}` : ""}, ${line}${output}`;
  const style = frame ? { left: `${at.x - at.width / 2 + 6}px`, top: `${at.y - at.height / 2 + 2}px` } : box(at);
  return h("button", {
    type: "button", class: `node ${frame ? "title" : ""} ${state} ${node.kind} ${chosen ? "chosen" : ""}`, style, title: spoken, "aria-label": spoken, "data-item": node.id,
    tabIndex: current ? 0 : -1, "data-current": current ? "" : undefined, "aria-current": chosen ? "true" : undefined,
    "aria-expanded": opens(model, node) ? String(frame) : undefined, onFocus, onClick: (event) => event.currentTarget.focus(), onDblClick: onOpen,
  }, h("span", { class: "first" }, h("bdi", null, name), " ", badge ? h("span", { class: "badge" }, badge) : null, opens(model, node) ? h("span", { class: "more" }) : null), " ",
  frame ? null : h("span", { class: "second" }, line));
}

function Lines({ graph, wires }) {
  const { width, height } = graph.graph();
  return h("svg", { class: "lines", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    [...wires.edges.values()].map((edge) => {
      const { points, x, y } = graph.edge(edge.from, edge.to);
      const state = edge.states.has("") ? "" : edge.states.has("added") ? "added" : "removed";
      const [tip, before] = [points.at(-1), points.at(-2)];
      const angle = (Math.atan2(tip.y - before.y, tip.x - before.x) * 180) / Math.PI;
      return h("g", { class: `line ${state}`, key: `${edge.from}>${edge.to}` },
        h("path", { d: smooth(points) }),
        h("path", { class: "tip", d: "M0 0L-7 -3.5L-7 3.5Z", transform: `translate(${tip.x} ${tip.y}) rotate(${angle})` }),
        h("text", { x, y: y + 4, "text-anchor": "middle", class: edge.moved ? "moved" : "" }, edgeText(edge)));
    }));
}

// A line that bends at the points in between.
function smooth(points) {
  const middle = (a, b) => `${(a.x + b.x) / 2} ${(a.y + b.y) / 2}`;
  const [first, ...rest] = points;
  const bends = rest.slice(0, -1).map((point, index) => `Q${point.x} ${point.y} ${middle(point, rest[index + 1])}`);
  return `M${first.x} ${first.y}${rest.length > 1 ? `L${middle(first, rest[0])}` : ""}${bends.join("")}L${rest.at(-1).x} ${rest.at(-1).y}`;
}

const DIRECTIONS = { ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] };

// The nearest node in a direction; a frame counts at its title.
function neighbour(graph, nodes, current, [right, down]) {
  const spot = (node) => {
    const { x, y, width, height } = graph.node(node.id);
    return node.inner ? { x: x - width / 2 + 30, y: y - height / 2 } : { x, y };
  };
  const from = spot(nodes.find(({ id }) => id === current));
  const far = nodes.filter(({ id }) => id !== current).map((node) => {
    const to = spot(node);
    const [ahead, aside] = right ? [(to.x - from.x) * right, Math.abs(to.y - from.y)] : [(to.y - from.y) * down, Math.abs(to.x - from.x)];
    return { node, ahead, distance: ahead + 2 * aside };
  });
  return far.filter(({ ahead }) => ahead > 1).sort((a, b) => a.distance - b.distance)[0]?.node;
}

// The way into the model, the size of the drawing, what the colours mean, and what is not known.
function Bar({ model, name, root, zoom, scale, setScale, fit, wires }) {
  const path = [];
  for (let index = root; index >= 0; index = model.rows[index][PARENT]) path.unshift(index);
  const steps = [[-1, "whole model"], ...path.map((index) => [index, model.rows[index][NAME]])];
  const states = [["changed", "changed"], ["added", "added"], ["removed", "removed"], ["within", "holds changes"], ["follows", "follows"]];
  const used = states.filter(([state]) => (state === "within" ? model.touched.some((count, index) => count && !TOUCHED.has(model.state[index])) : model.state.includes(state)));
  const button = (text, label, onClick) => h("button", { type: "button", "aria-label": label, title: label, onClick }, text);
  return h("div", { class: "tools" },
    h("nav", { class: "crumbs", "aria-label": `Part of ${name} that is drawn` }, steps.map(([index, part], number) =>
      number === steps.length - 1 ? h("span", { "aria-current": "true", key: index }, part) : h("button", { type: "button", key: index, onClick: () => zoom(index) }, part))),
    h("span", { class: "sizes" }, button("\u2212", "smaller", () => setScale(Math.max(0.3, scale / 1.25))), button("+", "larger", () => setScale(Math.min(2, scale * 1.25))), button("fit", "fit to the width", () => setScale(fit(0.2)))),
    model.compared && used.length ? h("span", { class: "legend" }, used.map(([state, words]) => h("span", { class: `key ${state}`, key: state }, words))) : null,
    wires.unknown ? h("p", { class: "quiet" }, `What feeds ${wires.unknown === 1 ? "1 row" : `${wires.unknown} rows`} is not known: these have no lines, and stand in the order of the model.`) : null);
}

function graphView(model, table, name) {
  const place = make("div", null, { class: "drawing" });
  preact.render(h(Graph, { model, table, name }), place);
  return place;
}
