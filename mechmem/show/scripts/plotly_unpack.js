// plotly.js comes as gzip in base64, 1.9 MB instead of 4.8, and runs as an inline script: nothing is loaded. Of several
// copies on a page the first runs. Charts that are on the page already hear of it.
window.mechmemPlotly ||= (async () => {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser is too old for the charts: they need Chrome 80, Firefox 113, Safari 16.4 or newer.");
  }
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const source = await new Response(stream).text();
  // Another plotly.js of the notebook stays what it is, and a module loader of the page gets no part in this.
  const others = window.Plotly, script = document.createElement("script");
  script.textContent = `(function (module, exports, define) {${source}\n}).call(window);`;
  document.head.append(script);
  script.remove();
  const plotly = window.Plotly;
  if (others) window.Plotly = others;
  return plotly;
})();
// A failure is told by each chart.
window.mechmemPlotly.catch(() => {});
window.dispatchEvent(new Event("mechmem-plotly"));
