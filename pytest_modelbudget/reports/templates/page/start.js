async function fill(details) {
  const body = details.querySelector(".body");
  if (body.dataset.filled) return;
  body.dataset.filled = "yes";
  const data = await unpack(details.querySelector(".data").textContent.trim());
  if (data.rows.length) draw(details, data);
  if (data.changes.length) body.append(make("h3", "What changed, in words"));
  for (const [title, list] of data.changes) body.append(changes(title, list));
  if (data.rows.length) body.append(...layers(details.tree));
}

// The pictures stand above the numbers, and are made once the place for them has its width.
function draw(details, data) {
  const picture = details.querySelector(".picture");
  const tree = new Tree(data.rows);
  details.tree = tree;
  const model = new Model(data);
  const name = details.closest("section").querySelector("h2 bdi").textContent;
  picture.append(make("h3", model.compared ? `The model, changes ${model.compared} in colour` : "The model"), graphView(model, tree, name));
  if (!(tree.total > 0)) return;
  const map = new Treemap(tree, model, name);
  picture.append(make("h3", "Where the params are"), map.crumbs, map.list);
  map.draw();
}

function layers(tree) {
  const tools = make("div", null, { class: "tools" },
    make("button", "Unfold all", { type: "button", onclick: () => tree.all(true) }),
    make("button", "Fold all", { type: "button", onclick: () => tree.all(false) }),
    make("span", "In the table: arrow keys move, fold and unfold.", { class: "quiet" }));
  return [make("h3", "Layers"), tools, tree.table()];
}

document.querySelectorAll("details.model").forEach((details) => {
  details.addEventListener("toggle", () => details.open && fill(details));
  if (details.open) fill(details);
});
find("theme").addEventListener("change", (event) => {
  document.documentElement.dataset.theme = event.target.value;
});
overview();
