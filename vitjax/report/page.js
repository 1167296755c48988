"use strict";
// Contents: a menu that closes on a narrow page; a link opens what is folded.
(() => {
  const contents = document.getElementById("contents");
  const wide = matchMedia("(min-width: 1100px)");
  const fit = () => { if (contents) contents.open = wide.matches; };
  const unfold = (hash) => {
    const target = document.getElementById(hash.slice(1));
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  wide.addEventListener("change", fit);
  fit();
  contents?.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    fit();
    unfold(link.hash);
  });
  unfold(location.hash);
})();
// Tables: numbers stand to the right; a click on a column's head sorts.
(() => {
  const textOf = (row, column) => row.cells[column]?.textContent.trim() ?? "";
  const isMissing = (text) => text === "" || text === "–";
  const numberOf = (text) => parseFloat(text.replaceAll("−", "-").replaceAll(",", ""));

  // Numbers first, by size; then words; what is missing last in either direction.
  function compare(one, other, sign) {
    if (isMissing(one) || isMissing(other)) return isMissing(one) - isMissing(other);
    const [x, y] = [numberOf(one), numberOf(other)];
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return sign * (Number.isNaN(x) ? one.localeCompare(other) : x - y);
  }

  function sort(table, heads, column) {
    const descending = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...table.rows].slice(1);
    const sign = descending ? -1 : 1;
    rows.sort((one, other) => compare(textOf(one, column), textOf(other, column), sign));
    rows[0]?.parentNode.append(...rows);
  }

  for (const table of document.querySelectorAll("table.numbers")) {
    const [first, ...rows] = table.rows;
    const heads = [...first.cells];
    heads.forEach((head, column) => {
      const texts = rows.map((row) => textOf(row, column));
      const numeric = texts.every((text) => isMissing(text) || /^[−\d]/.test(text));
      for (const row of table.rows) row.cells[column].classList.toggle("n", numeric);
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, heads, column));
    });
  }
})();
