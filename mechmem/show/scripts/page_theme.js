// Whether a view is dark: as its theme says, else as the notebook or the page around it, else as the browser.
window.mechmemDark ||= (theme, host) => {
  if (theme !== "auto") return theme === "dark";
  const { body, documentElement: root } = document;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  if (body.classList.contains("vscode-light") || body.classList.contains("vscode-high-contrast-light")) return false;
  if (body.classList.contains("vscode-dark") || body.classList.contains("vscode-high-contrast")) return true;
  if (root.getAttribute("theme")) return root.getAttribute("theme") === "dark";
  for (let part = host.parentElement; part; part = part.parentElement) {
    const [red, green, blue, alpha = 1] = (getComputedStyle(part).backgroundColor.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
    if (alpha > 0.5) return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
  }
  return window.matchMedia("(prefers-color-scheme: dark)").matches;
};
// Calls back when the notebook, the page or the browser changes between light and dark.
window.mechmemOnTheme ||= (changed) => {
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  const watch = { attributes: true, attributeFilter: ["class", "theme", "data-theme", "data-jp-theme-light"] };
  for (const part of [document.body, document.documentElement]) new MutationObserver(changed).observe(part, watch);
};
