// Heatmaps with choosers above them, the text below, and beside them a view of what is clicked.
class HeatmapPage {
  constructor(host, data) {
    this.data = data;
    this.root = host.shadowRoot || host.attachShadow({ mode: "open" });
    this.chosen = data.choosers.map(() => 0);
    this.maps = [];
    this.cell = null;
    this.build();
    followTheme(host, data.theme, (theme) => {
      this.theme = theme;
      for (const map of this.maps) map.use(theme);
      if (host.dataset.ready) this.drawText();
    });
    let width = 0;
    new ResizeObserver(([entry]) => {
      const now = Math.round(entry.contentRect.width);
      if (width && Math.abs(now - width) > 8) for (const map of this.maps) if (map.map) map.paint();
      width = now;
    }).observe(host);
  }

  build() {
    const { data } = this;
    this.bar = element("div", { className: "bar" });
    data.choosers.forEach((chooser, number) => {
      if (chooser.options.length < 2) return;
      const select = element("select", { attrs: { "aria-label": chooser.name } },
        ...chooser.options.map((option, value) => element("option", { value, textContent: option })));
      select.onchange = () => { this.chosen[number] = Number(select.value); this.show(); };
      this.bar.append(element("label", {}, `${chooser.name} `, select));
    });
    if (data.panels.some((panel) => panel.some((map) => map.kind === "diverging"))) {
      const small = element("input", { type: "checkbox" });
      small.onchange = () => { this.rooted = small.checked; this.show(); };
      this.bar.append(element("label", { title: "Colours grow with the square root of a value" }, small, " show small values"));
    }
    this.bar.hidden = !this.bar.childNodes.length;
    this.panels = element("div", { className: "maps" });
    this.note = element("p", { className: "said", textContent: data.hint, attrs: { "aria-live": "polite" } });
    this.text = element("p", { className: "text", hidden: true });
    this.beside = element("div", { className: "beside", hidden: true });
    this.tip = element("div", { className: "tip", hidden: true });
    const facts = element("p", { className: "caption", textContent: data.facts, hidden: !data.facts });
    this.root.replaceChildren(element("style", { textContent: data.style }), element("section", { className: "view" },
      element("h2", { textContent: data.title }), this.bar, this.panels, this.note, this.text, this.beside,
      element("p", { className: "caption", textContent: data.caption }), facts, this.tip));
  }

  // The maps of what is chosen.
  panel() {
    const { choosers, panels } = this.data;
    return panels[choosers.reduce((at, chooser, number) => at * chooser.options.length + this.chosen[number], 0)];
  }

  async show() {
    const drawn = await Promise.all(this.panel().map((map) => heatmapOf(map, this.data.axes)));
    while (this.maps.length > drawn.length) this.maps.pop().part.parentElement.remove();
    while (this.maps.length < drawn.length) this.add();
    drawn.forEach((map, number) => {
      // Few columns: several maps stand in a line.
      this.maps[number].part.parentElement.classList.toggle("small", map.columns.labels.length <= 16 && !map.words);
      this.maps[number].rooted = Boolean(this.rooted);
      this.maps[number].draw(map);
    });
    if (this.cell && !(this.cell.at < drawn.length && this.inside(this.cell))) this.cell = null;
    this.drawText();
    this.drawBeside();
    this.root.host.dataset.ready = "true";
  }

  inside({ at, row, column }) {
    return row < this.maps[at].lines() && column < this.maps[at].count();
  }

  add() {
    const at = this.maps.length, host = element("div", { className: "panel" });
    this.panels.append(host);
    const map = new HeatmapCanvas(host, {
      point: (row, column, event) => this.point(at, row, column, event),
      leave: () => this.leave(),
      choose: (row, column, event) => this.choose(at, row, column, event),
    });
    map.use(this.theme);
    this.maps.push(map);
  }

  leave() {
    this.tip.hidden = true;
    for (const token of this.tokens || []) token.classList.remove("pointed");
  }

  // What is known of a cell; the column's mark belongs to it.
  lines(at, row, column) {
    const map = this.maps[at], mark = map.map.columns.marks[column];
    const meaning = { changed: "changed token", diverges: "first token that differs in the continuation" }[mark];
    return [...map.told(row, column), ...(meaning ? [meaning] : [])];
  }

  point(at, row, column, event) {
    this.leave();
    if (this.texted === at && this.tokens[column]) this.tokens[column].classList.add("pointed");
    const [value, ...more] = this.lines(at, row, column);
    placeTip(this.tip, this.root.host, event);
    this.tip.replaceChildren(element("b", { textContent: value }), ...more.map((line) => element("div", { textContent: line })));
    if (!(event instanceof Event)) this.note.textContent = [...more, value].join("; ");
  }

  choose(at, row, column, event) {
    const again = this.cell && this.cell.at === at && this.cell.row === row && this.cell.column === column;
    this.cell = again ? null : { at, row, column };
    this.maps.forEach((map, number) => map.point(...(this.cell && number === at ? [row, column] : [null])));
    const [value, ...more] = this.lines(at, row, column);
    this.note.textContent = again ? this.data.hint : [more[0], value, ...more.slice(1)].join("; ");
    if (event) this.point(at, row, column, event);
    this.drawText();
    this.drawBeside();
  }

  // The text of a map whose columns are its tokens: coloured by the row of the chosen cell, or by each token's strongest.
  drawText() {
    const at = this.cell && this.maps[this.cell.at].map.columns.text ? this.cell.at : this.maps.findIndex((map) => map.map.columns.text);
    this.text.hidden = at < 0;
    if (at < 0) return;
    const map = this.maps[at], { columns } = map.map, chosen = this.cell && this.cell.at === at ? this.cell : null, seen = new Map();
    columns.labels.forEach((label) => seen.set(label, (seen.get(label) || 0) + 1));
    const strongest = (column) => {
      let best = 0, value = -1;
      for (let row = 0; row < map.lines(); row += 1) {
        const size = Math.abs(map.shade(map.value(row, column)) ?? 0);
        if (size > value) { value = size; best = row; }
      }
      return best;
    };
    this.texted = at;
    this.tokens = columns.labels.map((label, column) => {
      const row = chosen ? chosen.row : strongest(column), shade = map.shade(map.value(row, column));
      const token = element("span", { className: "token", textContent: label });
      if (shade !== null) token.style.background = map.ink(shade);
      token.classList.toggle("inked", Math.abs(shade ?? 0) > 0.5);
      token.classList.toggle("pinned", Boolean(chosen) && chosen.column === column);
      token.classList.toggle("begins", columns.begins === column);
      token.classList.toggle("marked", column in columns.marks);
      if (seen.get(label) > 1) token.append(element("sub", { textContent: column }));
      token.onmouseenter = (event) => this.point(at, row, column, event);
      token.onmouseleave = () => this.leave();
      token.onclick = () => this.choose(at, row, column, null);
      return token;
    });
    this.text.replaceChildren(...this.tokens);
  }

  // The pattern of the head that was clicked.
  drawBeside() {
    const { beside } = this.data;
    if (!beside || !this.cell) { this.beside.hidden = true; return; }
    const { at, row, column } = this.cell, { rows, columns } = this.maps[at].map;
    const head = [this.maps[at].cell(row, column), rows.names[row], columns.names[column]]
      .map((name) => beside.heads.indexOf(name)).find((place) => place >= 0);
    const paragraph = beside.of[this.chosen[beside.chooser]], host = element("div");
    this.beside.hidden = false;
    if (head === undefined || paragraph === null) {
      this.beside.replaceChildren(element("p", { textContent: head === undefined ? beside.missing : beside.unknown }));
      return;
    }
    this.beside.replaceChildren(host);
    const sides = beside.paragraphs[paragraph].map((side) => ({ ...side, packed: side.packs[head] }));
    new AttentionView(host, {
      title: `Attention of ${beside.heads[head]}, ${sides[0].title}`, heads: [beside.heads[head]], columns: 1, labels: null, rows: null, chosen: 0, widest: 520,
      names: beside.names, difference: beside.difference, hint: "", caption: beside.caption, style: this.data.style,
      theme: this.data.theme, paragraphs: [{ title: sides[0].title, sides }],
    }).show();
  }
}
