// Tables that one sorts and filters.

// choose(name): returns what a click on the name of a class does, or nothing.
function enhanceTable(box, choose) {
  const [table, body] = [box.querySelector("table"), box.querySelector("tbody")];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === (head.className ? "descending" : "ascending");
      const direction = head.className ? (up ? "ascending" : "descending") : up ? "descending" : "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction);
      sortRows(rows, column, head.className === "number", direction === "ascending");
      body.append(...rows);
    });
  });
  const filter = box.querySelector("input");
  if (filter) {
    filter.addEventListener("input", () => {
      const part = filter.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(part);
    });
  }
  for (const column of heads.keys()) {
    if (!["class", "taken for", "nearest class", "most often taken for"].includes(heads[column].textContent)) continue;
    for (const row of rows) {
      const cell = row.cells[column];
      const act = choose(cell.textContent);
      if (!act) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "name";
      button.textContent = cell.textContent;
      button.addEventListener("click", act);
      cell.replaceChildren(button);
    }
  }
}

// Sorts rows by a column; cells without a value come last.
function sortRows(rows, column, isNumber, ascending) {
  const value = (row) => {
    const text = row.cells[column].textContent;
    return isNumber ? parseFloat(text.replace(/,/g, "")) : text;
  };
  const values = new Map(rows.map((row) => [row, value(row)]));
  const sign = ascending ? 1 : -1;
  rows.sort((a, b) => {
    const [x, y] = [values.get(a), values.get(b)];
    if (!isNumber) return sign * x.localeCompare(y, undefined, { numeric: true });
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return sign * (x - y);
  });
}
