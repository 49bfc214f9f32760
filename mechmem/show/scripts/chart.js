// A chart of plotly: waits for the library, draws, and follows the page's width and theme. The plot itself stays
// outside of the shadow root, because plotly.js has one style sheet for the page.
const PATIENCE = 3000;
const MISSING = "This chart waits for plotly.js, which a notebook keeps in the cell that showed its first chart. Scroll " +
  "to that cell, run it again, or run mm.show.load_plotly() in a new cell.";
const plotlyJs = () => window.mechmemPlotly || new Promise((resolve) => {
  window.addEventListener("mechmem-plotly", () => resolve(window.mechmemPlotly), { once: true });
});

class ChartView {
  constructor(host, data) {
    this.host = host;
    this.data = data;
    const root = host.shadowRoot || host.attachShadow({ mode: "open" });
    this.line = element("p", { className: "line", hidden: true, attrs: { role: "status" } });
    this.plot = element("div", { attrs: { role: "img", "aria-label": data.title } });
    this.plot.style.height = `${data.height}px`;
    host.replaceChildren(this.plot);
    root.replaceChildren(element("style", { textContent: data.style }), element("section", { className: "view" },
      element("h2", { textContent: data.title }), this.line, element("slot"),
      ...data.caption.split("\n").map((textContent) => element("p", { className: "caption", textContent }))));
    followTheme(host, data.theme, () => this.paint());
  }

  template() { return this.data.templates[this.host.dataset.dark === "true" ? "dark" : "light"]; }

  paint() {
    if (this.plotly && !this.data.layout.template) this.plotly.relayout(this.plot, { template: this.template() });
  }

  say(text) {
    this.line.textContent = text;
    this.line.hidden = !text;
  }

  async show() {
    const patience = setTimeout(() => this.say(MISSING), PATIENCE);
    const can = (what) => window.matchMedia(what).matches;
    try {
      const plotly = await plotlyJs();
      clearTimeout(patience);
      this.say("");
      const { data, layout } = this.data;
      const shown = { template: this.template(), ...layout };
      // On a touch screen a drag scrolls the page, and buttons would always lie on the figure.
      if (can("(pointer: coarse)")) shown.dragmode = false;
      await plotly.newPlot(this.plot, data, shown, {
        displaylogo: false,
        displayModeBar: can("(hover: hover)") ? "hover" : false,
        modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      });
      this.plotly = plotly;
      new ResizeObserver(() => this.plot.clientWidth && plotly.Plots.resize(this.plot)).observe(this.plot);
      this.host.dataset.ready = "true";
    } catch (error) {
      clearTimeout(patience);
      this.say(String(error.message || error));
    }
  }
}
