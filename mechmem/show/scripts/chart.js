// A chart: waits for plotly.js, draws, and follows the page's width and its light or dark theme. The figure comes as
// JSON beside it; words around it are text nodes already.
window.mechmemChart ||= (name) => {
  const host = document.getElementById(name), json = document.getElementById(`${name}-data`);
  if (!host || !json || host.dataset.begun) return;
  host.dataset.begun = "true";
  const { data, layout, theme, templates } = JSON.parse(json.textContent);
  const place = host.querySelector(".mechmem-plot"), line = host.querySelector(".mechmem-line");
  const can = (what) => window.matchMedia(what).matches;
  let dark;
  const paint = () => {
    dark = window.mechmemDark(theme, host);
    host.style.background = dark ? "#151a20" : "#ffffff";
    host.style.color = dark ? "#d5dbe3" : "#2b333d";
    return templates[dark ? "dark" : "light"];
  };
  const template = paint();
  if (!layout.template) layout.template = template;
  const own = layout.template === template;
  // On a touch screen a drag scrolls the page, and buttons would always lie on the figure.
  if (can("(pointer: coarse)")) layout.dragmode = false;
  const settings = {
    displaylogo: false,
    displayModeBar: can("(hover: hover)") ? "hover" : false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  const say = (text) => { line.textContent = text; line.hidden = !text; };
  const patience = setTimeout(() => say(
    "This chart waits for plotly.js, which the notebook keeps in the cell that showed its first chart. Scroll to that " +
    "cell, run it again, or run mm.show.load_plotly() in a new cell."), 3000);
  window.mechmemPlotly.then(async (plotly) => {
    clearTimeout(patience);
    say("");
    await plotly.newPlot(place, data, layout, settings);
    new ResizeObserver(() => { if (place.clientWidth) plotly.Plots.resize(place); }).observe(place);
    window.mechmemOnTheme(() => {
      const before = dark, template = paint();
      if (dark !== before && own && place.isConnected) plotly.relayout(place, { template });
    });
    host.dataset.ready = "true";
  }).catch((error) => { clearTimeout(patience); say(String(error.message || error)); });
};
