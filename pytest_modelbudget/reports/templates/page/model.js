// A model as a graph: rows as in the tables, then rows that are gone; which holds which, what feeds which, what changed.
class Model {
  constructor({ rows, sources, shapes, inputs, comparison, compared }) {
    const { changed = [], removed = [] } = comparison ?? {};
    this.compared = comparison ? compared : "";
    this.kept = rows.length;
    this.rows = [...rows, ...removed.map(([row, parent]) => row.map((value, key) => (key === PARENT ? parent : value)))];
    this.inputs = new Map(inputs);
    this.state = this.rows.map((_, index) => (index < rows.length ? "" : "removed"));
    this.earlier = new Map();
    this.sentences = new Map();
    const far = (index) => (source) => (isRow(source) ? index - source : source);
    this.unknown = sources.map((list) => list === null);
    this.sources = sources.map((list, index) => (list ?? []).map(far(index)));
    this.shapes = new Map(shapes.map(([index, distance, shape]) => [`${index - distance}>${index}`, shape]));
    this.lost = this.rows.map(() => []);
    for (const [index, state, earlier, sentences, lost] of changed) {
      this.state[index] = state;
      if (earlier) this.earlier.set(index, earlier);
      this.sentences.set(index, sentences);
      this.lost[index] = lost.map(far(index));
    }
    removed.forEach(([, , , fed], number) => {
      this.sources.push([]);
      this.lost[rows.length + number] = fed.map(far(rows.length + number));
    });
    this.nest(removed);
    this.marks = new Map();
    this.ids = new Map();
  }

  // Children in their order; a row that is gone stands behind the one it stood behind.
  nest(removed) {
    this.children = new Map([[-1, []], ...this.rows.map((_, index) => [index, []])]);
    for (let index = 0; index < this.kept; index += 1) this.children.get(this.rows[index][PARENT]).push(index);
    removed.forEach(([, parent, neighbour], number) => {
      const siblings = this.children.get(parent);
      siblings.splice(siblings.indexOf(neighbour) + 1, 0, this.kept + number);
    });
    // How much is touched in each row, itself included.
    this.touched = this.state.map((state) => (TOUCHED.has(state) ? 1 : 0));
    const count = (index) => {
      for (const child of this.children.get(index)) this.touched[index] += count(child);
      if (["added", "removed"].includes(this.state[index])) this.touched[index] = 1; // with all it holds
      return this.touched[index];
    };
    this.children.get(-1).forEach(count);
  }

  inside(index) {
    return [index, ...this.children.get(index).flatMap((child) => this.inside(child))];
  }

  holds(outer, index) {
    for (let at = index; at >= 0; at = this.rows[at][PARENT]) if (at === outer) return true;
    return outer === -1;
  }

  // A number that two rows share when they, and all they hold, look the same and are wired the same inside.
  mark(index) {
    if (this.marks.has(index)) return this.marks.get(index);
    const row = this.rows[index];
    const content = this.inside(index);
    const wires = content.map((at) => this.sources[at].map((source) => (isRow(source) && this.holds(index, source) ? at - source : "outside")));
    const text = JSON.stringify([
      row[TYPE], row[OUTPUT], row[PARAMS], row[FLOPS], this.state[index], this.earlier.get(index)?.[PARAMS] ?? "", wires,
      this.children.get(index).map((child) => [this.rows[child][NAME], this.mark(child)]),
    ]);
    if (!this.ids.has(text)) this.ids.set(text, this.ids.size);
    this.marks.set(index, this.ids.get(text));
    return this.marks.get(index);
  }
}

// What feeds a row is another row, by its place, or an input, by its name, which may look like a number.
const isRow = (source) => typeof source === "number";

// States of rows that are told apart in the drawing; what only follows, or has another name, is drawn quietly.
const TOUCHED = new Set(["added", "removed", "changed"]);
