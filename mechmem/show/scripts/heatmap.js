// One heatmap on a canvas: labelled numbers, a colour bar, a cursor. `new HeatmapCanvas(element, listeners)`, then
// `use(theme)` and `draw(map)`, as often as wanted; `heatmapOf(map, axes)` makes such a map of a page's data.
const HEAT = {
  cell: 34, readable: 9, word: 52, row: 22, rowLeast: 13, tokens: 14, font: "system-ui, -apple-system, sans-serif",
  faintest: 0.07, symbols: { changed: "▲", diverges: "◆" },
};

// Three digits, as `three_digits` writes them in Python.
function threeDigits(value, withSign = false) {
  if (Number.isNaN(value)) return "none";
  const size = Number(Math.abs(value).toExponential(2));
  if (size === 0) return "0";
  let text;
  if (size >= 1e6 || size < 1e-3) text = size.toExponential(2).replace("e+", "e");
  else text = size >= 1000 ? Math.round(Math.abs(value)).toLocaleString("en-US") : String(size);
  return (value < 0 ? "−" : withSign ? "+" : "") + text;
}

// Numbers of four digits: three bytes each, first those that weigh most.
async function unpackedNumbers(packed) {
  const planes = await unpacked(packed), count = planes.length / 3, bits = new Uint32Array(count);
  for (let at = 0; at < count; at += 1)
    bits[at] = ((planes[at] << 24) | (planes[count + at] << 16) | (planes[2 * count + at] << 8)) >>> 0;
  return new Float32Array(bits.buffer);
}

// What a canvas draws, of what Python wrote; a map that was decoded before is given back.
async function heatmapOf(map, axes) {
  if (map.values) return map;
  const axis = (at) => ({ ...axes[at], names: axes[at].names || axes[at].labels });
  map.rows = axis(map.rows);
  map.columns = axis(map.columns);
  for (const also of map.also || []) also.values = await unpackedNumbers(also.packed);
  if (map.interval) map.interval = [await unpackedNumbers(map.interval[0]), await unpackedNumbers(map.interval[1])];
  map.values = await unpackedNumbers(map.packed);
  return map;
}

class HeatmapCanvas {
  // listeners: point(row, column), leave() and choose(row, column), each if it is of interest.
  constructor(host, listeners = {}) {
    this.listeners = listeners;
    this.cursor = null;
    this.from = 0;
    this.zoomed = null;
    // Whether colours of a diverging map grow with the square root, so that small values show.
    this.rooted = false;
    this.heading = element("h3");
    this.canvas = element("canvas", { className: "heat", tabIndex: 0, attrs: { role: "img" } });
    // Found from the canvas by whoever drives the page.
    this.canvas.mechmem = this;
    this.legend = element("div", { className: "legend" });
    this.slider = element("input", { type: "range", min: 0, attrs: { "aria-label": "first column" } });
    this.slider.oninput = () => { this.from = Number(this.slider.value); this.paint(); };
    this.zoom = element("button", { type: "button" });
    this.zoom.onclick = () => { this.zoomed = !this.isZoomed(); this.paint(); };
    this.window = element("div", { className: "window" }, this.zoom, this.slider);
    const head = element("div", { className: "head" }, this.heading, this.legend);
    this.part = element("div", { className: "heatmap" }, head, this.canvas, this.window);
    host.append(this.part);
    this.listen();
  }

  use(theme) {
    this.theme = theme;
    this.more = ramp(theme.paper, theme.more, 256);
    this.less = ramp(theme.paper, theme.less, 256);
    if (this.map) this.paint();
  }

  draw(map) {
    const before = this.map;
    this.map = map;
    if (!before || before.columns.labels.length !== map.columns.labels.length) {
      this.from = 0;
      this.zoomed = null;
    }
    if (this.cursor && (this.cursor[0] >= this.lines() || this.cursor[1] >= this.count())) this.cursor = null;
    this.paint();
  }

  lines() { return this.map.rows.labels.length; }
  count() { return this.map.columns.labels.length; }
  value(row, column) { return this.map.values[row * this.count() + column]; }
  cell(row, column) { return `${this.map.rows.names[row]}${this.map.joint}${this.map.columns.names[column]}`; }

  // -1 (orange) to 1 (blue); null where nothing was measured.
  shade(value) {
    const [least, most] = this.map.ends, { kind } = this.map;
    if (Number.isNaN(value)) return null;
    if (kind === "diverging") {
      const part = Math.max(-1, Math.min(1, value / most));
      return this.rooted ? Math.sign(part) * Math.sqrt(Math.abs(part)) : part;
    }
    if (kind === "root") return Math.min(1, Math.sqrt(Math.max(0, value) / most));
    if (kind === "log") {
      if (!(value > 0)) return value === 0 ? 0 : null;
      const part = least > 0 ? Math.log(value / least) / Math.log(most / least) : 0;
      return HEAT.faintest + (1 - HEAT.faintest) * Math.max(0, Math.min(1, part));
    }
    return Math.max(0, Math.min(1, (value - least) / (most - least)));
  }

  ink(shade) {
    if (shade === null) return null;
    return `rgb(${(shade < 0 ? this.less : this.more)[Math.round(255 * Math.abs(shade))].join(",")})`;
  }

  // The number of a cell in words: value, unit, interval.
  said(row, column) {
    const { map } = this, value = this.value(row, column), signed = map.kind === "diverging";
    if (Number.isNaN(value)) return "not measured";
    const at = row * this.count() + column;
    const ends = map.interval && map.interval.map((end) => threeDigits(end[at], signed));
    return `${threeDigits(value, signed)} ${map.unit}`.trim() + (ends && !Number.isNaN(map.interval[0][at]) ? ` [${ends.join(", ")}]` : "");
  }

  // Lines about a cell, the first its number.
  told(row, column) {
    const { map } = this, at = row * this.count() + column;
    const lines = [this.said(row, column), this.cell(row, column)];
    for (const also of map.also || []) lines.push(`${also.label}: ${threeDigits(also.values[at])}`);
    if (map.words) lines.push(`“${map.words[map.word[at]]}”`);
    if ((map.framed || []).some(([line, place]) => line === row && place === column)) lines.push(map.framed_as);
    return lines;
  }

  point(row, column) {
    this.cursor = row === null ? null : [row, column];
    this.paint();
  }

  listen() {
    const { canvas } = this, call = (name, ...given) => this.listeners[name] && this.listeners[name](...given);
    canvas.onmousemove = (event) => {
      const cell = this.cellAt(event);
      if (cell) call("point", ...cell, event); else call("leave");
    };
    canvas.onmouseleave = () => call("leave");
    canvas.onclick = (event) => {
      const cell = this.cellAt(event);
      if (!cell) return;
      this.point(...cell);
      call("choose", ...cell, event);
    };
    canvas.onkeydown = (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -1e6], End: [0, 1e6] }[event.key];
      const [row, column] = this.cursor || [0, this.from];
      if (event.key === "Escape") { this.point(null); call("leave"); return; }
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); call("choose", row, column, this.spot(row, column)); return; }
      if (!step) return;
      event.preventDefault();
      const within = (place, size) => Math.max(0, Math.min(size - 1, place));
      const next = this.cursor ? [within(row + step[0], this.lines()), within(column + step[1], this.count())] : [row, column];
      if (next[1] < this.from) this.from = next[1];
      if (next[1] >= this.from + this.shown) this.from = next[1] - this.shown + 1;
      this.point(...next);
      call("point", ...next, this.spot(...next));
    };
  }

  // Where a cell lies on the screen, as an event of the mouse would say it.
  spot(row, column) {
    const box = this.canvas.getBoundingClientRect();
    return { clientX: box.left + this.left + (column - this.from + 0.5) * this.wide, clientY: box.top + this.top + (row + 0.5) * this.high };
  }

  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - this.left) / this.wide), row = Math.floor((event.clientY - box.top - this.top) / this.high);
    return row < 0 || row >= this.lines() || column < 0 || column >= this.shown ? null : [row, column + this.from];
  }

  // Left edge of a column that is shown, on a whole pixel.
  edge(place) { return this.left + Math.round(place * this.wide); }

  isZoomed() { return this.zoomed ?? (Boolean(this.map.words) && this.map.words.length > 1); }

  // Pixels of the parts, for the room there is.
  measure(context) {
    const { map } = this, room = Math.max(220, this.part.parentElement.getBoundingClientRect().width - 2);
    context.font = `11px ${HEAT.font}`;
    const longest = (labels) => labels.reduce((most, label) => Math.max(most, context.measureText(this.short(label)).width), 0);
    this.left = Math.ceil(longest(map.rows.labels)) + 8;
    this.top = 4;
    const space = room - this.left - 4, count = this.count(), fit = space / count;
    const readable = map.words ? HEAT.word : HEAT.tokens;
    const narrow = fit < readable && (map.words || fit < HEAT.readable);
    this.shown = narrow && this.isZoomed() ? Math.max(1, Math.min(count, Math.floor(space / readable))) : count;
    this.from = Math.max(0, Math.min(this.from, count - this.shown));
    const widest = map.words ? 84 : HEAT.cell;
    const each = Math.min(widest, space / this.shown);
    this.wide = each >= 12 ? Math.floor(each) : each;
    this.high = this.lines() > 20 ? HEAT.rowLeast : HEAT.row;
    this.window.hidden = !narrow;
    this.zoom.textContent = this.isZoomed() ? "show all columns" : "enlarge";
    this.slider.hidden = this.shown === count;
    this.slider.max = count - this.shown;
    this.slider.value = this.from;
    // Labels stand upright unless all are short.
    context.font = `10px ${HEAT.font}`;
    this.deep = longest(map.columns.labels);
    this.flat = this.deep < this.wide - 1;
    this.every = this.wide >= HEAT.readable ? 1 : Math.ceil(12 / this.wide);
    const nice = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500];
    this.every = nice.find((step) => step >= this.every) || 1000;
    this.marked = Object.keys(map.columns.marks).length ? 12 : 0;
    this.below = this.marked + (this.flat ? 14 : this.deep + 6) + (map.columns.groups.length ? 15 : 0);
    return [this.left + this.shown * this.wide + 4, this.top + this.lines() * this.high + this.below + 2];
  }

  short(label) { return label.length <= HEAT.tokens ? label : `${label.slice(0, HEAT.tokens - 1)}…`; }

  paint() {
    const { canvas, map } = this, context = canvas.getContext("2d"), dense = window.devicePixelRatio || 1;
    this.heading.textContent = map.title;
    canvas.setAttribute("aria-label", `${map.title}. Rows: ${map.rows.title}, columns: ${map.columns.title}. Arrow keys move from cell to cell.`);
    const [width, height] = this.measure(context);
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    context.scale(dense, dense);
    this.text = getComputedStyle(this.part).color;
    this.paintCells(context);
    this.paintLabels(context);
    this.paintLegend();
  }

  paintCells(context) {
    const { map } = this, gap = this.wide >= 5 ? 1 : 0, bottom = this.lines() * this.high;
    for (let row = 0; row < this.lines(); row += 1) {
      const y = this.top + row * this.high;
      // Cells narrower than a pixel: of those that share one, the strongest is drawn.
      let best = 0, bestAt = -1;
      for (let place = 0; place < this.shown; place += 1) {
        const column = this.from + place, shade = this.shade(this.value(row, column)), x = this.edge(place);
        if (this.wide < 1) {
          const pixel = Math.floor(place * this.wide);
          if (pixel !== bestAt) { best = 0; bestAt = pixel; }
          if (shade === null || Math.abs(shade) < Math.abs(best)) continue;
          best = shade;
          context.fillStyle = this.ink(shade);
          context.fillRect(this.left + pixel, y, 1, this.high - 1);
          continue;
        }
        if (shade === null) this.hatch(context, x, y, this.edge(place + 1) - x); else {
          context.fillStyle = this.ink(shade);
          context.fillRect(x, y, this.edge(place + 1) - x - gap, this.high - 1);
        }
        if (map.words && this.wide >= 24) this.paintWord(context, row, column, x, y, shade);
      }
    }
    context.strokeStyle = "#8886";
    context.strokeRect(this.left - 0.5, this.top - 0.5, this.shown * this.wide + 0.5, bottom + 0.5);
    for (const [row, column] of map.framed || []) this.frame(context, row, column, 1.5);
    if (this.cursor) this.frame(context, ...this.cursor, 2.5);
  }

  hatch(context, x, y, wide) {
    context.fillStyle = "#8882";
    context.fillRect(x, y, wide, this.high);
    if (wide < 6) return;
    context.strokeStyle = "#8887";
    context.lineWidth = 0.7;
    context.beginPath();
    context.moveTo(x, y + this.high);
    context.lineTo(x + wide, y);
    context.stroke();
    context.lineWidth = 1;
  }

  frame(context, row, column, width) {
    const place = column - this.from;
    if (place < 0 || place >= this.shown) return;
    context.strokeStyle = this.theme.frame;
    context.lineWidth = width;
    context.strokeRect(this.edge(place), this.top + row * this.high, Math.max(2, this.edge(place + 1) - this.edge(place) - 1), this.high - 1);
    context.lineWidth = 1;
  }

  paintWord(context, row, column, x, y, shade) {
    const word = this.map.words[this.map.word[row * this.count() + column]];
    context.save();
    context.beginPath();
    context.rect(x, y, this.wide - 2, this.high);
    context.clip();
    context.font = `11px ${HEAT.font}`;
    context.fillStyle = Math.abs(shade || 0) > 0.5 ? `rgb(${this.theme.paper.join(",")})` : this.text;
    context.fillText(word.trimStart(), x + 2, y + this.high / 2 + 4);
    context.restore();
  }

  paintLabels(context) {
    const { rows, columns } = this.map, bottom = this.top + this.lines() * this.high;
    context.fillStyle = this.text;
    context.font = `11px ${HEAT.font}`;
    context.textAlign = "right";
    const step = Math.ceil(11 / this.high);
    for (let row = 0; row < this.lines(); row += step)
      context.fillText(this.short(rows.labels[row]), this.left - 5, this.top + row * this.high + this.high / 2 + 4);
    context.textAlign = "left";
    for (const [at, mark] of Object.entries(columns.marks)) {
      const place = Number(at) - this.from;
      if (place < 0 || place >= this.shown) continue;
      context.fillStyle = this.theme.frame;
      context.font = `9px ${HEAT.font}`;
      context.textAlign = "center";
      context.fillText(HEAT.symbols[mark] || "▲", this.left + (place + 0.5) * this.wide, bottom + 11);
    }
    this.paintTokens(context, bottom + this.marked);
    this.paintGroups(context, bottom);
    if (columns.begins !== null) this.line(context, columns.begins, bottom + this.below, "#e58a1f", 2);
    context.textAlign = "left";
  }

  paintTokens(context, top) {
    const { labels } = this.map.columns;
    context.font = `10px ${HEAT.font}`;
    for (let column = this.from; column < this.from + this.shown; column += 1) {
      // Columns too narrow for their labels have one at every round number.
      if (column % this.every && !(this.cursor && this.cursor[1] === column)) continue;
      const middle = this.left + (column - this.from + 0.5) * this.wide;
      context.fillStyle = this.cursor && this.cursor[1] === column ? this.theme.frame : this.text;
      if (this.flat) {
        context.textAlign = "center";
        context.fillText(labels[column], middle, top + 11);
        continue;
      }
      context.save();
      context.translate(middle + 3.5, top + 4);
      context.rotate(-Math.PI / 2);
      context.textAlign = "right";
      context.fillText(this.short(labels[column]), 0, 0);
      context.restore();
    }
  }

  paintGroups(context, bottom) {
    context.font = `bold 11px ${HEAT.font}`;
    context.textAlign = "left";
    for (const [name, first] of this.map.columns.groups) {
      this.line(context, first, bottom + this.below, "#8889", 1);
      const place = Math.max(0, first - this.from);
      if (place >= this.shown) continue;
      context.fillStyle = this.text;
      const end = this.left + this.shown * this.wide + 4 - context.measureText(name).width;
      context.fillText(name, Math.min(this.left + place * this.wide + 3, end), bottom + this.below - 3);
    }
  }

  line(context, column, end, colour, width) {
    const place = column - this.from;
    if (place < 0 || place >= this.shown) return;
    context.fillStyle = colour;
    context.fillRect(this.left + place * this.wide - width / 2 - 0.5, this.top - 4, width, end - this.top + 4);
  }

  paintLegend() {
    const { kind, ends, unit } = this.map, signed = kind === "diverging", most = Math.abs(ends[1]);
    const place = (part) => (signed ? (2 * part - 1) * Math.sign(ends[1]) : part);
    const stops = [0, 0.25, 0.5, 0.75, 1].map((part) => `${this.ink(place(part))} ${100 * part}%`);
    const middle = { log: Math.sqrt(ends[0] * ends[1]), root: ends[1] / 4 }[kind] ?? (ends[0] + ends[1]) / 2;
    const labels = signed ? [-most, 0, most] : [ends[0], middle, ends[1]];
    const bar = element("span", { className: "bar-of-colours" });
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    const [low, mid, high] = labels.map((value) => element("span", { textContent: threeDigits(value, signed) }));
    this.legend.replaceChildren(bar, element("span", { className: "ends" }, low, mid, high), element("span", { className: "unit", textContent: unit }));
  }
}
