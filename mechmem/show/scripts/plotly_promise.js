// One promise of plotly.js a page: every chart waits for it, whichever comes first, the chart or the script.
window.mechmemPlotly ||= (() => {
  let keep;
  const promise = new Promise((resolve) => { keep = resolve; });
  promise.keep = keep;
  return promise;
})();
