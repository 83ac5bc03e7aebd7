// Rectangles whose areas are in proportion, as near to squares as can be.
function squares(sizes, width, height) {
  if (!sizes.length) return [];
  const root = d3.hierarchy({ children: sizes.map((size) => ({ size })) }).sum(({ size }) => size);
  d3.treemap().size([width, height]).tile(d3.treemapSquarify.ratio(1))(root);
  return root.children.map(({ x0, y0, x1, y1 }) => [x0, y0, x1 - x0, y1 - y0]);
}

// Where the params are: a click on a part goes into it, on a layer to its row.
class Treemap {
  constructor(tree, model, name) {
    this.tree = tree;
    this.model = model;
    this.crumbs = make("nav", null, { class: "crumbs map-part", "aria-label": `Part of ${name} in the treemap` });
    this.list = make("ul", null, { class: "map" });
    let root = -1;
    for (let below = this.parts(root); below.length === 1 && this.parts(below[0]).length; below = this.parts(root)) root = below[0];
    this.root = root;
  }

  parts(index) {
    const { rows, children } = this.tree;
    return children.get(index).filter((child) => rows[child][HELD] > 0).sort((a, b) => rows[b][HELD] - rows[a][HELD] || a - b);
  }

  draw(root = this.root, focus = false) {
    const { rows, total } = this.tree;
    const parts = this.parts(root);
    const held = root < 0 ? total : rows[root][HELD];
    const tiles = parts.slice(0, MOST_TILES).map((index) => ({ index, size: rows[index][HELD] }));
    const others = parts.slice(MOST_TILES);
    const inside = parts.reduce((sum, index) => sum + rows[index][HELD], 0);
    if (others.length) tiles.push({ label: `${others.length} smaller`, size: others.reduce((sum, index) => sum + rows[index][HELD], 0) });
    if (held > inside) tiles.push({ label: "its own", size: held - inside });
    tiles.sort((a, b) => b.size - a.size);
    const [width, height] = [this.list.clientWidth || 1000, this.list.clientHeight || 384];
    const places = squares(tiles.map(({ size }) => size), width, height);
    this.list.replaceChildren(...tiles.map((tile, number) => this.tile(tile, places[number], width, height)));
    this.trail(root);
    if (focus) this.list.querySelector("button")?.focus();
  }

  tile({ index, label, size }, [left, top, wide, high], width, height) {
    const { rows, total } = this.tree;
    const words = label ?? rows[index][NAME];
    const params = `${size.toLocaleString("en-US")} (${share(size, total)})`;
    const into = index !== undefined && this.parts(index).length > 0;
    const spoken = `${label ?? rows[index][PATH]}, ${params} params${into ? ", open" : ""}`;
    const content = high > 18 && wide > 30 ? [make("span", words), ...(high > 40 ? [" ", make("span", params, { class: "size" })] : [])] : [];
    const inner = index === undefined
      ? make("div", null, { class: "tile", title: spoken }, ...content)
      : make("button", null, { type: "button", class: into ? "tile part" : "tile", title: spoken, "aria-label": spoken,
          onclick: () => (into ? this.draw(index, true) : this.tree.reveal(index)) }, ...content);
    if (into && high > 80 && wide > 60) this.inside(inner, index, wide - 14, high - 46);
    if (index !== undefined && this.model.touched[index]) inner.classList.add(TOUCHED.has(this.model.state[index]) ? this.model.state[index] : "within");
    inner.style.backgroundColor = `color-mix(in srgb, var(--accent) ${(4 + (26 * size) / total).toFixed(1)}%, var(--back))`;
    const item = make("li", null, {}, inner);
    item.style.left = `${(100 * left) / width}%`;
    item.style.top = `${(100 * top) / height}%`;
    item.style.width = `${(100 * wide) / width}%`;
    item.style.height = `${(100 * high) / height}%`;
    return item;
  }

  // A first look at what is in a part; its own tiles come when it is opened.
  inside(tile, index, wide, high) {
    const { rows } = this.tree;
    const parts = this.parts(index).slice(0, MOST_TILES);
    const frame = make("div", null, { class: "inside", "aria-hidden": "true" });
    squares(parts.map((part) => rows[part][HELD]), wide, high).forEach(([left, top, width, height], number) => {
      const box = make("div", "", { "data-name": width > 36 && height > 18 ? rows[parts[number]][NAME] : "" });
      box.style.left = `${(100 * left) / wide}%`;
      box.style.top = `${(100 * top) / high}%`;
      box.style.width = `${(100 * width) / wide}%`;
      box.style.height = `${(100 * height) / high}%`;
      frame.append(box);
    });
    tile.append(frame);
  }

  trail(root) {
    const path = [];
    for (let index = root; index >= 0; index = this.tree.rows[index][PARENT]) path.unshift(index);
    const steps = [["whole model", -1], ...path.map((index) => [this.tree.rows[index][NAME], index])];
    this.crumbs.replaceChildren(...steps.map(([words, index], number) => number === steps.length - 1
      ? make("span", words, { "aria-current": "true" })
      : make("button", words, { type: "button", onclick: () => this.draw(index, true) })));
  }
}
