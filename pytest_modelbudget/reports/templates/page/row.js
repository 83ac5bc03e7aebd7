// What is known of the chosen item, beside the drawing: as it was, and as it is.
function Facts({ model, item, onOpen, onEach, onZoom, onShow, open, each }) {
  if (!item) return h("div", { class: "facts quiet" }, h("p", null, "Choose a node to see its row here."));
  const row = model.rows[item.members[0]];
  const state = itemState(model, item);
  const words = { within: `${item.touched} rows inside changed`, follows: "follows from what changed elsewhere" }[state] ?? state;
  const button = (text, onclick) => h("button", { type: "button", onClick: onclick }, text);
  return h("div", { class: "facts", role: "group", "aria-label": "The chosen row" },
    h("h4", null, h("bdi", null, item.kind === "row" ? row[PATH] : itemName(model, item)), " ", words ? h("span", { class: `state ${state}` }, words) : null),
    item.kind === "row" ? h(RowFacts, { model, index: item.members[0] }) : h(GroupFacts, { model, item }),
    h("p", { class: "tools" },
      opens(model, item) ? button(open ? "Close" : item.kind === "repeat" && model.children.get(item.members[0]).length ? "Open one" : "Open", onOpen) : null,
      item.kind === "repeat" && model.children.get(item.members[0]).length ? button(each ? "As one" : `Show all ${item.members.length}`, onEach) : null,
      item.kind === "row" && model.children.get(item.members[0]).length ? button("Zoom in", onZoom) : null,
      item.members[0] < model.kept ? button("Show in the table", onShow) : null));
}

function RowFacts({ model, index }) {
  const row = model.rows[index];
  const earlier = model.earlier.get(index);
  const facts = [["Type", TYPE], ["Output", OUTPUT], ["Params", PARAMS], ["FLOPs", FLOPS], ["Connected to", FROM], ["Why", WHY]];
  const sentences = model.sentences.get(index) ?? [];
  if (sentences.length) facts.pop(); // they say why it changed, which says why it is so
  const shown = facts.filter(([, key]) => (row[key] && row[key] !== "-") || earlier?.[key]);
  return [
    h("dl", null, shown.map(([title, key]) => [h("dt", null, title), h("dd", null, h(Moved, { before: earlier?.[key], after: row[key], known: key !== FLOPS }))])),
    h("ul", null, sentences.map((sentence) => h("li", null, sentence))),
  ];
}

// A value with the one before it where it is another; of FLOPs snapshots know the total alone.
function Moved({ before, after, known }) {
  if (before === undefined || before === after || !known) return h("bdi", null, after || "-");
  return [h("del", null, before || "-"), " \u2192 ", h("ins", null, after || "-")];
}

function GroupFacts({ model, item }) {
  const first = model.rows[item.members[0]];
  const held = item.members.reduce((sum, index) => sum + (model.rows[index][HELD] ?? 0), 0);
  const equal = item.kind === "repeat";
  return [
    h("p", null, equal ? `${item.members.length} equal blocks, ${held.toLocaleString("en-US")} params together; the first of them:` : `${item.members.length} rows, ${held.toLocaleString("en-US")} params together.`),
    equal ? h(RowFacts, { model, index: item.members[0] }) : h("p", null, h("bdi", null, `${first[PATH]} to ${model.rows[item.members.at(-1)][PATH]}`)),
  ];
}
