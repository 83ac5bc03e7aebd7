// The edges between what is drawn: those of all rows, each at the item that stands for the row.
class Wires {
  constructor(model, root, drawn) {
    this.model = model;
    this.root = root;
    this.owner = new Map();
    this.frames = new Map(); // what feeds the row of a frame feeds the first item in it, the last one feeds others
    this.copies = new Map();
    this.edges = new Map();
    this.ends = new Map();
    drawn.forEach((item) => this.own(item));
    this.connect();
    this.keepOrder(drawn);
  }

  // An open item is drawn as a frame, so its rows belong to what is in it; of equal rows one is drawn for all.
  own(item) {
    const { model } = this;
    if (!item.inner) {
      item.members.forEach((member) => model.inside(member).forEach((index) => this.owner.set(index, item)));
      return;
    }
    item.inner.forEach((inner) => this.own(inner));
    const ends = { from: leaves(item).at(-1), to: leaves(item)[0] };
    item.members.filter((member) => !this.owner.has(member)).forEach((member) => this.frames.set(member, ends));
    if (item.kind !== "repeat" || item.inner.some((inner) => inner.members.includes(item.members[0]))) return;
    const [pattern, ...others] = item.members.map((member) => model.inside(member));
    pattern.forEach((index) => this.copies.set(index, `${item.id} 0`));
    others.forEach((rows, number) => rows.forEach((index, place) => {
      this.copies.set(index, `${item.id} ${number + 1}`);
      if (this.owner.has(pattern[place])) this.owner.set(index, this.owner.get(pattern[place]));
      else if (this.frames.has(pattern[place])) this.frames.set(index, this.frames.get(pattern[place]));
    }));
  }

  connect() {
    const { model } = this;
    model.rows.forEach((_, index) => {
      const fresh = model.state[index] === "added";
      for (const source of model.sources[index]) this.edge(source, index, fresh || (isRow(source) && model.state[source] === "added") ? "added" : "");
      for (const source of model.lost[index]) this.edge(source, index, "removed");
    });
  }

  edge(source, target, state) {
    const from = this.end(source, "from"), to = this.end(target, "to");
    if (from.outside && to.outside) return;
    if (from.id === to.id) return;
    const [one, other] = [this.copies.get(source), this.copies.get(target)];
    if (one && other && one !== other && one.split(" ")[0] === other.split(" ")[0]) return; // from one of equal blocks to the next
    if (from.outside) this.ends.set(from.id, from);
    if (to.outside) this.ends.set(to.id, to);
    if (this.frames.has(source) && this.model.holds(source, target)) return;
    const key = `${from.id}>${to.id}`;
    const edge = this.edges.get(key) ?? { from: from.id, to: to.id, states: new Set(), shapes: new Set(), gone: new Set(), moved: false };
    edge.states.add(state);
    const shape = this.shape(source, target);
    (state === "removed" ? edge.gone : edge.shapes).add(shape);
    const earlier = this.model.earlier.get(source);
    if (earlier && !earlier[OUTPUT].split("; ").includes(shape)) edge.moved = true;
    this.edges.set(key, edge);
  }

  // Of a row that is called several times, the shape that this line carries is not always known.
  shape(source, target) {
    if (!isRow(source)) return this.model.inputs.get(source) ?? "";
    const known = this.model.shapes.get(`${source}>${target}`);
    if (known) return known;
    const calls = this.model.rows[source][OUTPUT].split("; ");
    return calls.length > 1 ? `one of ${calls.length} shapes` : calls[0];
  }

  // An item, or what stands outside of the part that is drawn: an input, or the outermost part that is not around it.
  end(row, side) {
    if (!isRow(row)) return { id: `input ${row}`, outside: "input", name: `input ${row}` };
    const item = this.owner.get(row) ?? this.frames.get(row)?.[side];
    if (item) return item;
    let part = row;
    const { rows } = this.model;
    while (rows[part][PARENT] >= 0 && !this.model.holds(rows[part][PARENT], this.root)) part = rows[part][PARENT];
    return { id: `${side} ${part}`, outside: side, name: `${side} ${rows[part][PATH]}`, row: part };
  }

  // What nothing is known to feed, and what feeds nothing, stands below its neighbour, in the order of the model.
  keepOrder(drawn) {
    const flat = drawn.flatMap(leaves);
    const wired = new Set([...this.edges.values()].flatMap(({ from, to }) => [from, to]));
    this.order = [];
    flat.forEach((item, place) => {
      if (place && !wired.has(item.id)) this.order.push([flat[place - 1].id, item.id]);
    });
    this.unknown = this.model.unknown.filter((unknown, index) => unknown && this.owner.has(index) && !this.model.children.get(index).length).length;
  }
}

const leaves = (item) => (item.inner ? item.inner.flatMap(leaves) : [item]);
