// The table of all clips: sorted by a click on a head, and filtered by words of name and mark.
"use strict";
const table = document.getElementById("all");
const body = table && table.tBodies[0];
const rows = body ? Array.from(body.rows) : [];
let sorted = -1, falling = false;
const key = (row, column) => {
  const text = row.cells[column].dataset.value ?? row.cells[column].textContent;
  return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
};
if (table) {
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    head.addEventListener("click", () => {
      falling = sorted === column && !falling;
      sorted = column;
      const order = falling ? -1 : 1;
      rows.sort((a, b) => {
        const [one, other] = [key(a, column), key(b, column)];
        if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
        return order * (one < other ? -1 : one > other ? 1 : 0);
      });
      body.append(...rows);
      Array.from(table.tHead.rows[0].cells).forEach((cell) => cell.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    });
  });
  document.getElementById("filter").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = (row.cells[0].textContent + " " + row.cells[row.cells.length - 1].textContent).toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
