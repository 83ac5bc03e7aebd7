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
