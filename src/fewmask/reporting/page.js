"use strict";
// Sorting: a click on a column's heading; again turns it round; a third time gives the plan's order.
const number = (text) => {
  const found = text.replace(/\u2212/g, "-").match(/[-+]?\d+(\.\d+)?/);
  return found ? parseFloat(found[0]) : NaN;
};
const value = (cell) => (cell.dataset.sort === undefined ? cell.textContent.trim() : cell.dataset.sort);
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const order = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = now === null ? "descending" : now === "descending" ? "ascending" : null;
      for (const other of heads) other.removeAttribute("aria-sort");
      if (next) head.setAttribute("aria-sort", next);
      table.classList.toggle("sorted", next !== null);
      const sign = next === "ascending" ? 1 : -1;
      const rows = next === null ? order : [...order].sort((a, b) => {
        const [x, y] = [value(a.cells[column]), value(b.cells[column])];
        const [m, n] = [number(x), number(y)];
        if (column > 0 && !(isNaN(m) && isNaN(n))) {
          if (isNaN(m) || isNaN(n)) return isNaN(m) - isNaN(n); // without a number: last
          return sign * (m - n);
        }
        return sign * -x.localeCompare(y);
      });
      body.append(...rows);
    });
  });
}
// Zoom: a picture opens as large as it is, over the page; Escape or a click closes it.
const dialog = document.createElement("dialog");
dialog.setAttribute("aria-label", "Picture, enlarged");
dialog.addEventListener("click", () => dialog.close());
document.body.append(dialog);
for (const picture of document.querySelectorAll("figure picture")) {
  const image = picture.querySelector("img");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "zoom";
  button.setAttribute("aria-label", "Enlarge: " + image.alt);
  picture.replaceWith(button);
  button.append(picture);
  button.addEventListener("click", () => {
    const large = document.createElement("img");
    large.src = image.currentSrc;
    large.alt = image.alt;
    dialog.replaceChildren(large);
    dialog.showModal();
  });
}
