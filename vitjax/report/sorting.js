"use strict";
// Tables of class "sortable": a click on a column's head sorts by it, again reverses.
(() => {
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim().replaceAll("−", "-").replaceAll(",", "");
    const number = parseFloat(text);
    return Number.isNaN(number) ? text : number;
  };

  // Numbers first, by size; then words; what is missing last, whichever way.
  function compare(one, other, way) {
    const missing = (v) => v === "" || v === "–";
    if (missing(one) || missing(other)) return missing(one) - missing(other);
    if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
    return way * (typeof one === "number" ? one - other : one.localeCompare(other));
  }

  function sort(table, heads, column) {
    const descending = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...table.rows].slice(1);
    rows.sort((one, other) => compare(value(one, column), value(other, column), descending ? -1 : 1));
    rows[0]?.parentNode.append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, heads, column));
    });
  }
})();
