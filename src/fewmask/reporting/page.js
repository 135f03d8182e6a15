"use strict";
// Sorting: a click on a column's heading; again turns it round; a third time gives the plan's order.
// Numbers begin with the largest, words with A. A reason in a number's place ("no answer: ...",
// "1 repeat: too few to tell") comes last.
const number = (text) => {
  const plain = text.replace(/\u2212/g, "-");
  const found = plain.match(/^(?:(?:about|at most|at least) )?([-+]?\d+(?:\.\d+)?)/);
  return found && !plain.includes(": ") ? parseFloat(found[1]) : NaN;
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
      const numbers = column > 0 && order.some((row) => !isNaN(number(value(row.cells[column]))));
      const turns = numbers ? ["descending", "ascending", null] : ["ascending", "descending", null];
      const next = turns[(turns.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      for (const other of heads) other.removeAttribute("aria-sort");
      if (next) head.setAttribute("aria-sort", next);
      table.classList.toggle("sorted", next !== null);
      const sign = next === "ascending" ? 1 : -1;
      const rows = next === null ? order : [...order].sort((a, b) => {
        const [x, y] = [value(a.cells[column]), value(b.cells[column])];
        const [m, n] = [number(x), number(y)];
        if (numbers && !(isNaN(m) && isNaN(n))) {
          return isNaN(m) || isNaN(n) ? isNaN(m) - isNaN(n) : sign * (m - n);
        }
        return sign * x.localeCompare(y);
      });
      body.append(...rows);
    });
  });
}
// What is folded away is printed with the rest.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
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
