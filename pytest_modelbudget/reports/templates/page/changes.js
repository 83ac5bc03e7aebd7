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
