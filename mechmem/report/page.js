"use strict";
(() => {
  const read = (element) => JSON.parse(element.textContent);

  // Figures: the template follows the reader's light or dark setting, now and when it changes.
  const templates = read(document.getElementById("plot-templates"));
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const scheme = () => (dark.matches ? templates.dark : templates.light);
  const settings = {
    responsive: true,
    displaylogo: false,
    // Where nothing can hover the buttons would always lie on top of the figure.
    displayModeBar: window.matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  const figures = [...document.querySelectorAll("script.plot-data")];
  const draw = (Plotly) => {
    for (const data of figures) {
      const { data: traces, layout } = read(data);
      layout.template = scheme();
      // On a touch screen a drag must scroll the page, not zoom the figure.
      if (window.matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
      const target = document.getElementById(data.dataset.for);
      Plotly.newPlot(target, traces, layout, settings);
      const repaint = (template) => Plotly.relayout(target, { template });
      dark.addEventListener("change", () => repaint(scheme()));
      // Paper is white, and narrower than a screen.
      window.addEventListener("beforeprint", () => { target.style.width = "660px"; Plotly.Plots.resize(target); repaint(templates.light); });
      window.addEventListener("afterprint", () => { target.style.width = ""; Plotly.Plots.resize(target); repaint(scheme()); });
    }
  };
  const undrawn = (error) => {
    for (const data of figures) document.getElementById(data.dataset.for).textContent = `The figure was not drawn: ${error}`;
  };
  if (figures.length) window.mechmemPlotly.then(draw).catch(undrawn);

  // Tables: sort by a click on the column's head.
  for (const block of document.querySelectorAll(".table-block")) {
    const body = block.querySelector("tbody");
    const rows = [...body.rows];
    const heads = [...block.querySelectorAll("th")];
    heads.forEach((head, column) => {
      head.firstElementChild.addEventListener("click", () => {
        const numeric = head.classList.contains("number");
        // Numbers are first sorted downwards: the largest is what one looks for.
        const descending = head.ariaSort ? head.ariaSort === "ascending" : numeric;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const sign = descending ? -1 : 1;
        const number = (row) => Number(row.cells[column].dataset.key);
        const text = (row) => row.cells[column].textContent;
        const order = numeric ? (a, b) => number(a) - number(b) || 0 : (a, b) => text(a).localeCompare(text(b), "en", { numeric: true });
        body.append(...[...rows].sort((a, b) => sign * order(a, b)));
      });
    });
    for (const clamp of block.querySelectorAll(".clamp")) {
      const toggle = () => clamp.classList.toggle("opened");
      clamp.addEventListener("click", toggle);
      clamp.addEventListener("keydown", (event) => { if (event.key === "Enter") toggle(); });
    }
  }

  // The table of contents marks the section that one is reading.
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const tracked = [...document.querySelectorAll(".tracked")];
  const mark = () => {
    const current = tracked.filter((part) => part.getBoundingClientRect().top < Math.min(window.innerHeight / 3, 240)).pop() || tracked[0];
    for (const [name, link] of links) link.classList.toggle("current", name === current.id);
  };
  document.addEventListener("scroll", mark, { passive: true });
  mark();
})();
