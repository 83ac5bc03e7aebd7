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
  const details = /^#m[0-9]+$/.test(hash) && find(hash.slice(1))?.querySelector("details.model");
  if (details) details.open = true;
}
