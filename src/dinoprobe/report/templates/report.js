"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim().replaceAll(",", "");
    const number = parseFloat(text);
    return heads[column].classList.contains("n") ? (Number.isNaN(number) ? -1 : number) : text;
  };
  heads.forEach((head, column) => {
    if (head.tagName !== "TH") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      const order = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));
      rows.sort(([a], [b]) => (ascending ? order(a, b) : order(b, a)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
