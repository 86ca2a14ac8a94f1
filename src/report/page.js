"use strict";
const table = document.getElementById("errors");
if (table) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const tools = document.querySelector(".tools"), [search, wrong] = tools.querySelectorAll("input");
  const filter = () => {
    const words = search.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = (wrong.checked && row.className !== "wrong") || !row.textContent.toLowerCase().includes(words);
      shown += !row.hidden;
    }
    tools.querySelector("output").textContent = shown + " of " + rows.length;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const falls = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const cell = row => row.cells[column], value = row => cell(row).textContent;
      const order = (a, b) => cell(a).className === "number" ? value(a) - value(b) : value(a).localeCompare(value(b));
      rows.sort((a, b) => falls ? order(b, a) : order(a, b));
      body.append(...rows);
    };
  });
  search.oninput = wrong.onchange = filter;
  tools.hidden = false;
  filter();
}
