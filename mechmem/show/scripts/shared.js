// What every view begins with. All text enters a page as text nodes, so nothing that a paragraph says can act.
// Each view runs in a function of its own, so that an older one in the same notebook does not meet a newer one's names.
const element = (tag, props = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), props);
  for (const [name, value] of Object.entries(props.attrs || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

// Paper, the colour of what restores or helps, that of the other, and that of what is chosen.
const THEMES = {
  light: { paper: [255, 255, 255], more: [11, 90, 148], less: [179, 88, 6], frame: "#b0307f" },
  dark: { paper: [21, 26, 32], more: [120, 200, 250], less: [245, 160, 70], frame: "#ff7ac8" },
};

// Colours from one to another, in equal steps.
const ramp = (from, to, count) => Array.from({ length: count }, (_, step) =>
  from.map((value, channel) => Math.round(value + ((to[channel] - value) * step) / (count - 1))));

const luminance = (colour) => {
  const [red, green, blue] = colour.map((value) => value / 255)
    .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
// Black or white letters, whichever can be read better: anything lighter than black is hard to read on middle colours.
const letters = (background) => {
  const light = luminance(background);
  return 1.05 / (light + 0.05) > (light + 0.05) / 0.05 ? "#fff" : "#000";
};

// Bytes that Python compressed and wrote as text.
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Whether the page around a view is dark: JupyterLab, VS Code, Colab, the documentation, or the browser says so.
function isDark(theme) {
  if (theme !== "auto") return theme === "dark";
  const { body, documentElement: whole } = document;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  if (body.classList.contains("vscode-dark") || body.classList.contains("vscode-high-contrast")) return true;
  if (body.classList.contains("vscode-light")) return false;
  const said = whole.getAttribute("theme") || body.dataset.theme;
  if (said === "dark" || said === "light") return said === "dark";
  return window.matchMedia("(prefers-color-scheme: dark)").matches;
}

// Calls with the page's theme, now and whenever it changes.
function followTheme(host, wanted, use) {
  const look = () => {
    const dark = isDark(wanted);
    if (host.dataset.dark === String(dark)) return;
    host.dataset.dark = String(dark);
    use(THEMES[dark ? "dark" : "light"]);
  };
  look();
  if (wanted !== "auto") return;
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", look);
  const options = { attributes: true, attributeFilter: ["class", "theme", "data-theme", "data-jp-theme-light"] };
  const watch = new MutationObserver(look);
  watch.observe(document.body, options);
  watch.observe(document.documentElement, options);
}

// Puts a box beside the pointer, inside the view.
function placeTip(tip, host, event) {
  const box = host.getBoundingClientRect();
  tip.hidden = false;
  tip.style.left = `${Math.max(0, Math.min(event.clientX - box.left + 14, box.width - 240))}px`;
  tip.style.top = `${event.clientY - box.top + 14}px`;
}

// Draws the view that a notebook, a page or a frame holds under this name; a picture that is shown twice is there twice.
function openView(View, name) {
  const hosts = [...document.querySelectorAll(`[id="${name}"]`)], data = document.getElementById(`${name}-data`);
  const host = hosts.find((one) => !one.dataset.opened);
  if (!host || !data) return;
  host.dataset.opened = "true";
  new View(host, JSON.parse(data.textContent)).show();
}
