// The view of attention patterns: a grid of heads, one head's matrix, and the text.
const CELL = 560, THUMB_LEAST = 22, THUMB_MOST = 64, LISTED = 5;
const percent = (weight) => `${(100 * weight).toFixed(weight < 0.1 ? 1 : 0)} %`;
const signed = (change) => `${change < 0 ? "−" : "+"}${(100 * Math.abs(change)).toFixed(1)} pp`;

// Weights come as 255 times their square root, so that small ones keep their digits.
const SQUARES = Float32Array.from({ length: 256 }, (_, byte) => (byte / 255) ** 2);

class AttentionView {
  constructor(host, data) {
    this.data = data;
    this.root = host.shadowRoot || host.attachShadow({ mode: "open" });
    this.state = { paragraph: 0, side: 0, head: data.chosen, query: null, byQuery: false };
    this.build();
    followTheme(host, data.theme, (theme) => this.use(theme));
  }

  // Colours of the page as it is now; the page may change them later.
  use(theme) {
    this.theme = theme;
    this.more = ramp(theme.paper, theme.more, 256);
    this.less = ramp(theme.paper, theme.less, 256);
    this.drawn = null;
    if (this.root.host.dataset.ready) this.show();
  }

  async show() {
    const panels = this.data.paragraphs[this.state.paragraph].sides;
    for (const side of panels) side.weights ||= await unpacked(side.packed);
    if (this.state.query !== null && this.state.query >= this.side().text.length) this.state.query = null;
    this.drawGrid();
    this.drawHead();
    this.root.host.dataset.ready = "true";
  }

  // The side whose text is shown; for the difference, the second.
  side() {
    const sides = this.data.paragraphs[this.state.paragraph].sides;
    return sides[Math.min(this.state.side, sides.length - 1)];
  }

  differs() { return this.state.side === 2; }

  // Weight of a key for a query: after minus before for the difference.
  weight(head, query, key) {
    if (key > query) return 0;
    const at = (side) => {
      const length = side.text.length, whole = (length * (length + 1)) / 2;
      return SQUARES[side.weights[head * whole + (query * (query + 1)) / 2 + key]];
    };
    const sides = this.data.paragraphs[this.state.paragraph].sides;
    return this.differs() ? at(sides[1]) - at(sides[0]) : at(this.side());
  }

  colour(weight) {
    const place = Math.min(255, Math.round(255 * Math.sqrt(Math.abs(weight))));
    return (weight < 0 ? this.less : this.more)[place];
  }

  build() {
    const { data } = this;
    this.note = element("p", { className: "note", attrs: { "aria-live": "polite" } });
    this.tip = element("div", { className: "tip", hidden: true });
    this.grid = element("canvas", { className: "grid", tabIndex: 0, attrs: {
      role: "img", "aria-label": "All heads; arrow keys choose one" } });
    this.matrix = element("canvas", { className: "matrix", attrs: { role: "img" } });
    this.heading = element("h3");
    this.text = element("p", { className: "text" });
    this.details = element("div", { className: "details", attrs: { "aria-live": "polite" } });
    const bar = element("div", { className: "bar" });
    if (data.paragraphs.length > 1) bar.append(this.chooser("paragraph", data.paragraphs.map((one) => one.title)));
    if (data.names.length > 1) bar.append(this.chooser("side", [...data.names, data.difference].filter(Boolean)));
    this.slider = element("input", { type: "range", min: 0, value: 0, attrs: { "aria-label": "query" } });
    this.slider.oninput = () => this.pin(Number(this.slider.value));
    this.where = element("output", { textContent: "all queries" });
    const release = element("button", { type: "button", textContent: "all queries" });
    release.onclick = () => this.pin(null);
    bar.append(element("label", {}, "query ", this.slider), this.where, release);
    const style = element("style", { textContent: data.style });
    const left = element("div", { className: "left" }, this.grid, this.note);
    const right = element("div", { className: "right" }, this.heading, this.matrix);
    if (data.heads.length === 1) left.hidden = true;
    this.root.replaceChildren(style, element("section", { className: "view" },
      element("h2", { textContent: data.title }), bar, element("div", { className: "panes" }, left, right),
      this.text, this.details, element("p", { className: "caption", textContent: data.caption }), this.tip));
    this.listen();
  }

  chooser(name, labels) {
    const select = element("select", { attrs: { "aria-label": name } },
      ...labels.map((label, value) => element("option", { value, textContent: label })));
    select.onchange = () => { this.state[name] = Number(select.value); this.show(); };
    return select;
  }

  listen() {
    this.grid.onclick = (event) => this.choose(this.headAt(event));
    this.grid.onmousemove = (event) => this.describeHead(this.headAt(event));
    this.grid.onmouseleave = () => this.describeHead(null);
    this.grid.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.data.columns, ArrowDown: this.data.columns }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      this.choose(this.state.head + step);
    };
    this.matrix.onmousemove = (event) => this.describeCell(event);
    this.matrix.onmouseleave = () => { this.tip.hidden = true; };
    this.matrix.onclick = (event) => this.pin(this.cellAt(event)[0]);
  }

  choose(head) {
    if (head === null || head < 0 || head >= this.data.heads.length) return;
    this.state.head = head;
    this.drawGrid();
    this.drawHead();
  }

  pin(query) {
    this.state.query = query;
    this.drawHead();
  }

  headAt(event) {
    const box = this.grid.getBoundingClientRect();
    const [column, row] = [event.clientX - box.left - this.margin, event.clientY - box.top - this.margin]
      .map((distance) => Math.floor(distance / this.step));
    const head = row * this.data.columns + column;
    return column < 0 || row < 0 || column >= this.data.columns || head >= this.data.heads.length ? null : head;
  }

  describeHead(head) {
    if (head === null) { this.note.textContent = this.data.hint; return; }
    const length = this.side().text.length;
    let first = 0, previous = 0;
    for (let query = 1; query < length; query += 1) {
      first += this.weight(head, query, 0);
      previous += this.weight(head, query, query - 1);
    }
    const said = this.differs() ? signed : percent;
    this.note.textContent = `${this.data.heads[head]}: ${said(first / (length - 1))} on the first token, ` +
      `${said(previous / (length - 1))} on the previous one`;
  }

  context(canvas, width, height) {
    const dense = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(dense, dense);
    context.imageSmoothingEnabled = false;
    return context;
  }

  // One head as an image of n x n pixels, or as many as a thumbnail has, each the largest weight that falls on it.
  image(head, size) {
    const length = this.side().text.length, side = Math.min(size, length), best = new Float32Array(side * side);
    const sides = this.data.paragraphs[this.state.paragraph].sides, differs = this.differs();
    const first = sides[0].weights, shown = this.side().weights;
    const places = Uint32Array.from({ length }, (_, pos) => Math.floor((pos * side) / length));
    let at = (head * length * (length + 1)) / 2;
    for (let query = 0; query < length; query += 1) {
      const row = places[query] * side;
      for (let key = 0; key <= query; key += 1, at += 1) {
        const place = row + places[key], weight = SQUARES[shown[at]] - (differs ? SQUARES[first[at]] : 0);
        if (Math.abs(weight) > Math.abs(best[place])) best[place] = weight;
      }
    }
    const image = new ImageData(side, side), pixels = image.data;
    for (let place = 0; place < best.length; place += 1) {
      const [red, green, blue] = this.colour(best[place]);
      pixels[4 * place] = red;
      pixels[4 * place + 1] = green;
      pixels[4 * place + 2] = blue;
      pixels[4 * place + 3] = 255;
    }
    const canvas = element("canvas", { width: side, height: side });
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  // Pixels for a canvas: a column, or the whole width of a narrow page.
  room() {
    const width = this.root.host.getBoundingClientRect().width - 28;
    const most = this.data.heads.length === 1 || this.side().text.length > CELL ? 1024 : CELL;
    return Math.max(200, Math.min(this.data.widest || most, width));
  }

  drawGrid() {
    const { columns, heads, rows } = this.data;
    this.margin = 26;
    this.step = Math.max(THUMB_LEAST, Math.min(THUMB_MOST, Math.floor((this.room() - this.margin) / columns)));
    const lines = Math.ceil(heads.length / columns);
    const context = this.context(this.grid, this.margin + columns * this.step, this.margin + lines * this.step);
    const key = `${this.state.paragraph} ${this.state.side} ${this.step}`;
    if (this.drawn !== key) this.thumbs = heads.map((_, head) => this.image(head, this.step - 3));
    this.drawn = key;
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = getComputedStyle(this.root.host).color;
    for (let column = 0; column < columns && this.data.labels; column += 1)
      context.fillText(this.data.labels[column], this.margin + column * this.step, 16);
    for (let row = 0; row < lines && rows; row += 1)
      context.fillText(rows[row], 0, this.margin + row * this.step + this.step / 2 + 4);
    heads.forEach((_, head) => {
      const x = this.margin + (head % columns) * this.step, y = this.margin + Math.floor(head / columns) * this.step;
      context.drawImage(this.thumbs[head], x, y, this.step - 3, this.step - 3);
      context.lineWidth = head === this.state.head ? 2 : 0.5;
      context.strokeStyle = head === this.state.head ? this.theme.frame : "#8888";
      context.strokeRect(x - 0.5, y - 0.5, this.step - 2, this.step - 2);
    });
    this.describeHead(null);
  }

  drawHead() {
    const side = this.side(), length = side.text.length, { query } = this.state;
    this.heading.textContent = this.data.heads[this.state.head];
    this.matrix.setAttribute("aria-label", `Attention of ${this.heading.textContent}: rows are queries, columns keys`);
    this.slider.max = length - 1;
    this.slider.value = query ?? 0;
    this.where.textContent = query === null ? "all queries" : `${query} ${side.text[query]}`;
    const room = this.room();
    // Whole pixels a cell where they fit; long texts are drawn smaller than they are.
    const extent = length <= room ? length * Math.min(24, Math.floor(room / length)) : room;
    const context = this.context(this.matrix, extent, extent);
    context.drawImage(this.image(this.state.head, length), 0, 0, extent, extent);
    if (query !== null) {
      context.strokeStyle = this.theme.frame;
      context.strokeRect(0, (query * extent) / length, extent, extent / length);
    }
    this.drawText();
  }

  // What each token gets from the chosen query, or on average from the queries that see it.
  received() {
    const { head, query } = this.state, length = this.side().text.length, values = new Array(length).fill(0);
    if (query !== null) return values.map((_, key) => this.weight(head, query, key));
    for (let key = 0; key < length; key += 1) {
      for (let later = key + 1; later < length; later += 1) values[key] += this.weight(head, later, key);
      values[key] /= Math.max(1, length - 1 - key);
    }
    return values;
  }

  drawText() {
    const side = this.side(), values = this.received(), seen = new Map();
    side.text.forEach((text) => seen.set(text, (seen.get(text) || 0) + 1));
    const spans = side.text.map((text, pos) => {
      const span = element("span", { className: "token", textContent: text });
      const colour = this.colour(values[pos]);
      span.style.background = `rgb(${colour.join(",")})`;
      span.style.color = letters(colour);
      if (pos === this.state.query) span.classList.add("pinned");
      if (pos === side.prefix) span.classList.add("begins");
      // Equal tokens are told apart by their position.
      if (seen.get(text) > 1) span.append(element("sub", { textContent: pos }));
      span.onmouseenter = () => this.describeToken(pos);
      span.onclick = () => this.pin(pos);
      return span;
    });
    this.text.replaceChildren(...spans);
    this.describeToken(this.state.query);
  }

  token(pos) {
    const side = this.side(), count = side.counts && side.counts[pos];
    return `${pos} “${side.text[pos]}”${count === null || count === undefined ? "" : `, ${count.toLocaleString("en")} in the corpus`}`;
  }

  describeToken(pos) {
    if (pos === null) { this.details.replaceChildren(); return; }
    const { head } = this.state, length = this.side().text.length, said = this.differs() ? signed : percent;
    const strongest = (places, weight) => places.map((place) => [place, weight(place)])
      .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, LISTED)
      .map(([place, value]) => element("li", { textContent: `${said(value)}: ${this.token(place)}` }));
    const before = Array.from({ length: pos + 1 }, (_, key) => key);
    const after = Array.from({ length: length - pos }, (_, later) => pos + later);
    this.details.replaceChildren(
      element("h4", { textContent: `Token ${this.token(pos)}` }),
      element("div", {}, element("h5", { textContent: "looks at" }),
        element("ol", {}, ...strongest(before, (key) => this.weight(head, pos, key)))),
      element("div", {}, element("h5", { textContent: "is looked at by" }),
        element("ol", {}, ...strongest(after, (later) => this.weight(head, later, pos)))));
  }

  cellAt(event) {
    const box = this.matrix.getBoundingClientRect(), length = this.side().text.length;
    const place = (distance) => Math.max(0, Math.min(length - 1, Math.floor((distance * length) / box.width)));
    return [place(event.clientY - box.top), place(event.clientX - box.left)];
  }

  describeCell(event) {
    const [query, key] = this.cellAt(event);
    const weight = this.weight(this.state.head, query, key);
    placeTip(this.tip, this.root.host, event);
    const value = key > query ? "the query does not see it" : this.differs() ? signed(weight) : weight.toFixed(3);
    this.tip.replaceChildren(element("b", { textContent: value }),
      element("div", { textContent: `query ${this.token(query)}` }),
      element("div", { textContent: `key ${this.token(key)}` }));
  }
}
