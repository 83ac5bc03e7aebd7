// The totals of very many models: a page of rows at a time, since a browser is slow with a hundred thousand of them.
const PAGE = 100;
const NUMBERS = ["params", "trainable_params", "flops", "weight_bytes"];

class Totals {
  constructor(data) {
    this.data = data;
    this.lower = data.names.map((name) => name.toLowerCase());
    this.atLeast = new Set(data.at_least);
    this.all = data.names.map((_, index) => index);
    this.sort = null;
    const [heading, cells] = head([["Model", ""], ["State", ""], ["Params", "number"], ["Trainable", "number"],
      ["FLOPs", "number"], ["Weights, bytes", "number"], ["Budget used", ""]]);
    this.body = make("tbody", null);
    find("all-models").append(make("caption", "A click on a heading sorts.", { class: "quiet" }), heading, this.body);
    this.columns = [(i) => data.names[i], (i) => data.words[data.states[i]], ...NUMBERS.map((name) => (i) => data[name][i]),
      (i) => data.used[i]];
    sortable(cells, (column, sign) => {
      this.sort = sign ? [column, sign] : null;
      this.select();
    });
    for (const id of ["find", "find-all"]) find(id).addEventListener("input", (event) => this.search(event.target.value));
    find("failing").addEventListener("change", () => this.select());
    find("back").addEventListener("click", () => this.show(this.first - PAGE));
    find("forward").addEventListener("click", () => this.show(this.first + PAGE));
    this.select();
  }

  // The field at the top looks in both tables.
  search(wanted) {
    find("find-all").value = wanted;
    this.select();
  }

  select() {
    const wanted = find("find-all").value.toLowerCase();
    const failing = find("failing").checked;
    const { failed, states } = this.data;
    this.order = this.all.filter((i) => this.lower[i].includes(wanted) && (!failing || failed[states[i]]));
    if (this.sort) {
      const [column, sign] = this.sort;
      const value = this.columns[column];
      const key = column > 1 && column < 6 ? (i) => (value(i) === null ? null : Number(value(i))) : value;
      this.order.sort((a, b) => directed(key(a), key(b), sign));
    }
    this.show(0);
  }

  show(first) {
    this.first = first;
    const last = Math.min(first + PAGE, this.order.length);
    this.body.replaceChildren(...this.order.slice(first, last).map((i) => this.row(i)));
    find("back").disabled = first === 0;
    find("forward").disabled = last === this.order.length;
    const range = last ? `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ` : "";
    find("range").textContent = `${range}${this.order.length.toLocaleString("en")}`;
  }

  row(i) {
    const { names, words, failed, states } = this.data;
    const word = words[states[i]];
    const look = failed[states[i]] ? "failed" : word.startsWith("warn") ? "warned" : "passed";
    return make("tr", null, {},
      make("th", names[i], { scope: "row", class: "name" }), make("td", word, { class: look }),
      ...NUMBERS.map((name) => make("td", this.number(name, i), { class: "number" })), make("td", this.data.used[i]));
  }

  number(name, i) {
    const value = this.data[name][i];
    const bound = name === "flops" && this.atLeast.has(i) ? ">= " : "";
    return value === null ? "?" : bound + BigInt(value).toLocaleString("en");
  }
}

unpack(document.querySelector("#all > .data").textContent.trim()).then((data) => new Totals(data));
