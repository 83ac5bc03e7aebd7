"use strict";
// Everything shown here is set as text, never as markup: names come from models.
(() => {
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

  // All models.
  function overview() {
    const body = find("models").tBodies[0];
    const rows = [...body.rows];
    const value = (row, column) => {
      const cell = row.cells[column];
      if (!("value" in cell.dataset)) return cell.textContent;
      return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    };
    sortable([...find("models").tHead.rows[0].cells], (column, sign) => {
      const order = sign ? [...rows].sort((a, b) => directed(value(a, column), value(b, column), sign)) : rows;
      body.append(...order);
    });
    const sections = rows.map((row) => find(row.dataset.section));
    const names = rows.map((row) => row.cells[0].textContent.toLowerCase());
    const filter = () => {
      const wanted = find("find").value.toLowerCase();
      let shown = 0;
      rows.forEach((row, index) => {
        const hit = names[index].includes(wanted) && (!find("failing").checked || "failed" in row.dataset);
        shown += hit;
        row.classList.toggle("hidden", !hit);
        sections[index].classList.toggle("hidden", !hit);
      });
      find("found").textContent = `${shown} of ${rows.length} shown`;
    };
    find("find").addEventListener("input", filter);
    find("failing").addEventListener("change", filter);
    filter();
    body.addEventListener("click", (event) => {
      const link = event.target.closest("a");
      if (!link) return;
      reveal(link.hash);
      // Inside MLflow's page the report is a blob in a sandbox, whose own addresses do not load.
      if (location.protocol === "blob:") {
        event.preventDefault();
        find(link.hash.slice(1))?.scrollIntoView();
      }
    });
    window.addEventListener("hashchange", () => reveal(location.hash));
    reveal(location.hash);
  }

  function reveal(hash) {
    const details = /^#m[0-9]+$/.test(hash) && find(hash.slice(1))?.querySelector("details");
    if (details) details.open = true;
  }

  // What changed.
  function changes(title, list) {
    const [top, heads] = head([["What"], ["Where"], ["Before"], ["After"], ["Moved", "number"], ["Why"]]);
    const body = make("tbody", null);
    const rows = list.map(([kind, path, before, after, moved, delta, why]) => ({
      keys: [kind, path, before, after, delta, why],
      row: make("tr", null, {}, make("td", kind, { class: "kind" }), make("th", path, { scope: "row", class: "name" }),
        make("td", before, { class: "text" }), make("td", after, { class: "text" }),
        make("td", moved, { class: "number" }), make("td", why, { class: "text" })),
    }));
    const show = (some) => body.append(...some.map(({ row }) => row));
    sortable(heads, (column, sign) =>
      show(sign ? [...rows].sort((a, b) => directed(a.keys[column], b.keys[column], sign)) : rows));
    show(rows);
    const table = make("table", null, { class: "changes" }, make("caption", title, { class: "quiet" }), top, body);
    return make("div", null, { class: "scroll high", tabindex: "0" }, table);
  }

  // A tree of layers; rows are made when they are first shown.
  class Tree {
    constructor(rows) {
      this.rows = rows;
      this.children = new Map([[-1, []]]);
      rows.forEach((row, index) => {
        this.children.set(index, this.children.get(index) ?? []);
        this.children.get(row[PARENT]).push(index);
      });
      this.total = this.children.get(-1).reduce((sum, index) => sum + rows[index][HELD], 0);
      this.open = new Set(rows.length <= MOST_OPEN ? rows.keys() : this.children.get(-1).length < 3 ? this.children.get(-1) : []);
      this.elements = new Map();
      this.order = null;
      this.current = 0;
    }

    table() {
      const [top, heads] = head([["Layer (type)"], ["Output shape"], ["Params", "number"], ["Share", "number"], ["FLOPs", "number"], ["Connected to"], ["Why"]]);
      this.body = make("tbody", null);
      const keys = [NAME, OUTPUT, HELD, HELD, WORK, FROM, WHY];
      sortable(heads, (column, sign) => {
        this.order = sign ? (a, b) => directed(this.rows[a][keys[column]], this.rows[b][keys[column]], sign) || a - b : null;
        this.show();
      });
      const table = make("table", null, { role: "treegrid", class: "layers", "aria-label": "Layers" }, top, this.body);
      table.addEventListener("keydown", (event) => this.key(event));
      this.body.addEventListener("click", (event) => {
        const row = event.target.closest("tr");
        if (event.target.closest(".fold")) this.toggle(Number(row.dataset.row));
        this.focus(Number(row.dataset.row));
      });
      this.show();
      return make("div", null, { class: "scroll high" }, table);
    }

    element(index, level) {
      if (!this.elements.has(index)) this.elements.set(index, this.build(index, level));
      const element = this.elements.get(index);
      if (this.children.get(index).length) {
        const open = this.open.has(index);
        element.setAttribute("aria-expanded", open);
        element.querySelector(".fold").textContent = open ? "\u25BE" : "\u25B8";
      }
      element.tabIndex = index === this.current ? 0 : -1;
      return element;
    }

    build(index, level) {
      const row = this.rows[index];
      const fold = make("button", "\u25B8", { type: "button", class: "fold", tabindex: "-1", "aria-label": "fold or unfold" });
      if (!this.children.get(index).length) fold.classList.add("leaf");
      const name = make("td", null, { class: "name", title: row[PATH] }, fold, make("bdi", row[NAME]), " ", make("span", `(${row[TYPE]})`, { class: "type" }));
      name.style.paddingLeft = `${Math.min(level - 1, 12) * 1.1 + 0.3}rem`;
      const bar = make("span", null, { class: "bar" });
      bar.style.width = `${this.total ? (100 * row[HELD]) / this.total : 0}%`;
      const part = make("td", row[HELD] ? share(row[HELD], this.total) : "", { class: "number share" });
      if (row[HELD]) part.append(bar);
      return make("tr", null, { "aria-level": level, "data-row": index },
        name, make("td", row[OUTPUT], { class: "text" }), make("td", row[PARAMS], { class: "number" }), part,
        make("td", row[FLOPS], { class: "number" }), make("td", row[FROM], { class: "text" }), make("td", row[WHY], { class: "text" }));
    }

    shown() {
      const found = [];
      const walk = (parent, level) => {
        const below = this.children.get(parent);
        for (const index of this.order ? [...below].sort(this.order) : below) {
          found.push([index, level]);
          if (this.open.has(index)) walk(index, level + 1);
        }
      };
      walk(-1, 1);
      return found;
    }

    show() {
      this.visible = this.shown();
      if (!this.visible.some(([index]) => index === this.current)) this.current = this.visible[0]?.[0] ?? 0;
      this.body.replaceChildren(...this.visible.map(([index, level]) => this.element(index, level)));
    }

    toggle(index, open = !this.open.has(index)) {
      if (!this.children.get(index).length || open === this.open.has(index)) return;
      if (open) this.open.add(index);
      else this.open.delete(index);
      this.show();
    }

    all(open) {
      this.open = new Set(open ? this.rows.keys() : []);
      this.show();
    }

    focus(index) {
      const before = this.elements.get(this.current);
      if (before) before.tabIndex = -1;
      this.current = index;
      const element = this.elements.get(index);
      element.tabIndex = 0;
      element.focus();
    }

    // Opens what is around a row and goes there.
    reveal(index) {
      for (let above = this.rows[index][PARENT]; above >= 0; above = this.rows[above][PARENT]) this.open.add(above);
      this.show();
      this.focus(index);
      this.elements.get(index).scrollIntoView({ block: "center" });
    }

    key(event) {
      if (!event.target.closest("tbody tr")) return;
      const place = this.visible.findIndex(([index]) => index === this.current);
      const go = (to) => this.focus(this.visible[Math.max(0, Math.min(to, this.visible.length - 1))][0]);
      const open = this.open.has(this.current) && this.children.get(this.current).length > 0;
      const actions = {
        ArrowDown: () => go(place + 1),
        ArrowUp: () => go(place - 1),
        Home: () => go(0),
        End: () => go(this.visible.length - 1),
        ArrowRight: () => (open ? go(place + 1) : this.toggle(this.current, true)),
        ArrowLeft: () => (open ? this.toggle(this.current, false) : this.rows[this.current][PARENT] >= 0 && this.focus(this.rows[this.current][PARENT])),
        Enter: () => this.toggle(this.current),
        " ": () => this.toggle(this.current),
      };
      if (!(event.key in actions) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const current = this.current;
      actions[event.key]();
      if (this.current === current) this.focus(current);
    }
  }

  // Rectangles whose areas are in proportion, as near to squares as can be: rows are filled along the shorter side.
  function squares(sizes, width, height) {
    const placed = [];
    const sum = sizes.reduce((a, b) => a + b, 0);
    let [left, top, wide, high] = [0, 0, width, height];
    let rest = sizes.map((size) => (size * width * height) / sum);
    const worst = (row, side) => {
      const area = row.reduce((a, b) => a + b, 0);
      return Math.max((side * side * Math.max(...row)) / (area * area), (area * area) / (side * side * Math.min(...row)));
    };
    while (rest.length) {
      const side = Math.min(wide, high);
      let count = 1;
      while (count < rest.length && worst(rest.slice(0, count + 1), side) <= worst(rest.slice(0, count), side)) count += 1;
      const row = rest.slice(0, count);
      const thick = row.reduce((a, b) => a + b, 0) / side;
      let along = 0;
      for (const area of row) {
        placed.push(wide >= high ? [left, top + along, thick, area / thick] : [left + along, top, area / thick, thick]);
        along += area / thick;
      }
      if (wide >= high) [left, wide] = [left + thick, wide - thick];
      else [top, high] = [top + thick, high - thick];
      rest = rest.slice(count);
    }
    return placed;
  }

  // Where the params are: a click on a part goes into it, on a layer to its row.
  class Treemap {
    constructor(tree) {
      this.tree = tree;
      this.crumbs = make("nav", null, { class: "crumbs", "aria-label": "Parts of the treemap" });
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
      const content = high > 18 && wide > 30 ? [make("span", words), ...(high > 40 ? [make("span", params, { class: "size" })] : [])] : [];
      const inner = index === undefined
        ? make("div", null, { class: "tile", title: spoken }, ...content)
        : make("button", null, { type: "button", class: into ? "tile part" : "tile", title: spoken, "aria-label": spoken,
            onclick: () => (into ? this.draw(index, true) : this.tree.reveal(index)) }, ...content);
      if (into && high > 80 && wide > 60) this.inside(inner, index, wide - 14, high - 46);
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
        const box = make("div", width > 36 && height > 18 ? rows[parts[number]][NAME] : "");
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

  async function fill(details) {
    const body = details.querySelector(".body");
    if (body.dataset.filled) return;
    body.dataset.filled = "yes";
    const data = await unpack(details.querySelector(".data").textContent.trim());
    if (data.changes.length) body.append(make("h3", "What changed"));
    for (const [title, list] of data.changes) body.append(changes(title, list));
    if (!data.rows.length) return;
    const tree = new Tree(data.rows);
    const map = new Treemap(tree);
    if (tree.total > 0) {
      body.append(make("h3", "Where the params are"), map.crumbs, map.list);
      map.draw();
    }
    const tools = make("div", null, { class: "tools" },
      make("button", "Unfold all", { type: "button", onclick: () => tree.all(true) }),
      make("button", "Fold all", { type: "button", onclick: () => tree.all(false) }),
      make("span", "In the table: arrow keys move, fold and unfold.", { class: "quiet" }));
    body.append(make("h3", "Layers"), tools, tree.table());
  }

  document.querySelectorAll("details").forEach((details) => {
    details.addEventListener("toggle", () => details.open && fill(details));
    if (details.open) fill(details);
  });
  find("theme").addEventListener("change", (event) => {
    document.documentElement.dataset.theme = event.target.value;
  });
  overview();
})();
