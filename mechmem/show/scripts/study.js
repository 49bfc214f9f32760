// The linked view of a study: a table of paragraphs; the text, loss, heatmaps and heads of the chosen one move together.
const AT_ONCE = 100;

async function unpackedJson(text) { return JSON.parse(new TextDecoder().decode(await unpacked(text))); }

class StudyView {
  constructor(host, data) {
    this.data = data;
    this.root = host.shadowRoot || host.attachShadow({ mode: "open" });
    this.state = { row: 0, column: null, down: true, shown: AT_ONCE };
    this.build();
    followTheme(host, data.theme, (theme) => {
      this.theme = theme;
      for (const part of [this.textPart, this.mapPart]) part.host.dataset.dark = host.dataset.dark;
      if (host.dataset.ready) this.drawText();
      for (const map of this.canvases || []) map.use(theme);
    });
  }

  async show() {
    const { rows } = this.data, content = await unpackedJson(rows.packed);
    Object.assign(rows, content);
    if (rows.tokens) {
      const bytes = await unpacked(rows.tokens);
      rows.places = rows.wide === 2 ? new Uint16Array(bytes.buffer) : new Uint32Array(bytes.buffer);
    }
    if (rows.losses) rows.levels = await unpacked(rows.losses);
    this.fill();
    this.list();
    await this.choose(0);
    this.root.host.dataset.ready = "true";
  }

  build() {
    const { data } = this;
    this.search = element("input", { type: "search", placeholder: "Search text, id or kind", attrs: { "aria-label": "Search the paragraphs" } });
    this.search.oninput = () => { this.state.shown = AT_ONCE; this.list(); };
    this.set = element("select", { attrs: { "aria-label": "Which paragraphs" } });
    this.set.onchange = () => { this.state.shown = AT_ONCE; this.list(); };
    this.found = element("output");
    this.head = element("tr");
    this.body = element("tbody");
    this.more = element("button", { type: "button" });
    this.more.onclick = () => { this.state.shown += AT_ONCE; this.list(); };
    this.table = element("div", { className: "rows" }, element("table", { attrs: { "aria-label": "Paragraphs" } },
      element("thead", {}, this.head), this.body), this.more);
    this.heading = element("h3");
    this.facts = element("p", { className: "facts" });
    this.textPart = this.part("text");
    this.said = element("p", { className: "said" });
    this.note = element("p", { className: "note" });
    this.mapPart = this.part("heatmap");
    this.cell = element("p", { className: "note", attrs: { "aria-live": "polite" } });
    this.headPart = element("div");
    this.body.onkeydown = (event) => this.key(event);
    this.root.replaceChildren(element("style", { textContent: data.styles.study }), element("section", { className: "view" },
      element("h2", { textContent: data.title }),
      element("div", { className: "bar" }, this.search, this.set, this.found), this.table,
      element("article", {}, this.heading, this.facts, this.textPart.host, this.said, this.note, this.mapPart.host, this.cell, this.headPart),
      element("p", { className: "caption", textContent: data.caption }),
      element("p", { className: "caption", textContent: data.facts })));
  }

  // A place with its own style, so that the views that are used here do not meet each other's.
  part(name) {
    const host = element("div"), root = host.attachShadow({ mode: "open" }), box = element("div");
    root.append(element("style", { textContent: this.data.styles[name] }), box);
    return { host, box };
  }

  // The columns' heads, and which paragraphs can be asked for.
  fill() {
    const { rows, kept } = this.data;
    this.head.replaceChildren(...rows.columns.map((column, place) => {
      const button = element("button", { type: "button", textContent: column.label });
      button.onclick = () => this.sort(place);
      const cell = element("th", { scope: "col", className: `${column.numbers ? "number" : ""} ${column.name}` }, button);
      return cell;
    }), element("th", { scope: "col", textContent: "Text" }));
    const sets = rows.columns.find((column) => column.name === "set"), all = this.data.all;
    const listed = rows.count < all ? `${rows.count.toLocaleString("en")} of ${all.toLocaleString("en")} paragraphs` : `all ${all.toLocaleString("en")} paragraphs`;
    const options = [["", listed], ...(sets ? sets.words : []).map((word) => [word, word]), ["kept", `with heatmap or heads (${Object.keys(kept).length})`]];
    this.set.replaceChildren(...options.map(([value, textContent]) => element("option", { value, textContent })));
  }

  value(column, row) { return column.numbers ? column.numbers[row] : column.words[column.places[row]]; }

  labels(row) {
    const { rows } = this.data;
    if (!rows.places) return rows.texts[row];
    return Array.from(rows.places.subarray(row * rows.length, (row + 1) * rows.length), (place) => rows.labels[place]);
  }

  text(row) {
    this.lower ||= [];
    this.lower[row] ||= [...this.data.rows.columns.filter((column) => column.words).map((column) => this.value(column, row)), this.labels(row).join("")]
      .join(" ").toLowerCase();
    return this.lower[row];
  }

  sort(place) {
    const { state } = this, column = this.data.rows.columns[place];
    // The largest number is what one looks for first.
    state.down = state.column === place ? !state.down : Boolean(column.numbers);
    state.column = place;
    [...this.head.children].forEach((head, at) => {
      if (at === place) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    this.list();
  }

  matching() {
    const { rows, kept } = this.data, { column, down } = this.state, wanted = this.search.value.toLowerCase(), set = this.set.value;
    const sets = rows.columns.find((one) => one.name === "set");
    const found = Array.from({ length: rows.count }, (_, row) => row).filter((row) =>
      (!set || (set === "kept" ? kept[row] : this.value(sets, row) === set)) && (!wanted || this.text(row).includes(wanted)));
    if (column === null) return found;
    const by = rows.columns[column], sign = down ? -1 : 1;
    const compare = by.numbers
      ? (a, b) => (by.numbers[a] === null) - (by.numbers[b] === null) || sign * (by.numbers[a] - by.numbers[b])
      : (a, b) => sign * this.value(by, a).localeCompare(this.value(by, b), "en", { numeric: true });
    return found.sort((a, b) => compare(a, b) || a - b);
  }

  list() {
    const { rows, kept } = this.data, found = this.matching(), shown = found.slice(0, this.state.shown);
    this.found.textContent = found.length === 1 ? "1 paragraph" : `${found.length.toLocaleString("en")} paragraphs`;
    this.body.replaceChildren(...shown.map((row) => {
      const cells = rows.columns.map((column) => {
        const value = this.value(column, row);
        const textContent = value === null ? "–" : column.name === "nll" ? value.toFixed(3) : column.numbers ? value.toLocaleString("en") : value;
        return element("td", { textContent, className: `${column.numbers ? "number" : ""} ${column.name}` });
      });
      const button = element("button", { type: "button", className: "open", tabIndex: -1, textContent: this.labels(row).join("").slice(0, 180) });
      if (kept[row]) cells[0].append(element("span", { className: "kept", textContent: " ●", title: "has a heatmap or heads" }));
      const line = element("tr", {}, ...cells, element("td", { className: "text" }, button));
      line.dataset.row = row;
      line.onclick = () => this.choose(row);
      return line;
    }));
    this.more.hidden = found.length <= shown.length;
    this.more.textContent = `Show ${Math.min(AT_ONCE, found.length - shown.length)} more`;
    this.mark();
  }

  // One row is chosen and takes the keyboard; arrow keys go on from it.
  mark() {
    const lines = [...this.body.children];
    for (const line of lines) {
      const here = Number(line.dataset.row) === this.state.row;
      line.classList.toggle("chosen", here);
      if (here) line.setAttribute("aria-current", "true"); else line.removeAttribute("aria-current");
      line.querySelector(".open").tabIndex = here ? 0 : -1;
    }
    if (lines.length && !lines.some((line) => line.classList.contains("chosen"))) lines[0].querySelector(".open").tabIndex = 0;
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const lines = [...this.body.children], at = lines.findIndex((line) => line.contains(this.root.activeElement));
    const next = lines[Math.max(0, Math.min(lines.length - 1, at + step))];
    if (!next) return;
    this.choose(Number(next.dataset.row));
    next.querySelector(".open").focus();
  }

  async choose(row) {
    const { data, state } = this, { rows } = data;
    state.row = row;
    this.mark();
    const about = rows.columns.map((column) => [column.label, this.value(column, row)]).filter(([, value]) => value !== null);
    this.heading.textContent = `Paragraph ${about[0][1]}`;
    this.facts.replaceChildren(...about.slice(1).map(([label, value]) =>
      element("span", {}, element("b", { textContent: `${label} ` }), typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 3 }) : value)));
    this.drawText();
    this.drawSaid();
    await this.drawKept();
  }

  em(row) {
    const column = this.data.rows.columns.find((one) => one.name === "em");
    return column ? column.numbers[row] : null;
  }

  drawText() {
    const { rows } = this.data, { row } = this.state, labels = this.labels(row), { box } = this.textPart;
    if (!rows.places) {
      box.replaceChildren(element("p", { className: "text" }, element("span", { className: "bare token", textContent: labels[0] }),
        element("span", { className: "token begins", textContent: labels[1] || "" })));
      return;
    }
    const width = rows.length - rows.prefix, em = this.em(row), scale = new ColourScale({ most: 10, signed: false, blue_is_high: false, is_match: false }, this.theme);
    const loss = (pos) => (rows.levels && pos >= rows.prefix ? rows.nats * (rows.levels[row * width + pos - rows.prefix] / 255) ** 2 : null);
    const values = labels.map((_, pos) => loss(pos));
    const diverges = em !== null && em < width ? rows.prefix + em : null;
    const point = (pos) => this.point(pos, labels, values);
    const text = colouredText({ labels, values, begins: rows.prefix, diverges, rtl: false }, scale, { point });
    text.onclick = (event) => { if (event.target.dataset.pos !== undefined) this.pin(Number(event.target.dataset.pos)); };
    box.replaceChildren(...(rows.levels ? [scale.legend("loss of each token", "nats")] : []), text);
    this.point(null);
  }

  // A token was pointed at: its loss in words, and its column in the heatmap.
  point(pos, labels, values) {
    const stream = this.canvases && this.canvases[0];
    if (stream && stream.map) stream.point(pos === null || stream.map.columns.labels.length <= pos ? null : 0, pos);
    this.cell.textContent = pos === null ? "" :
      `Position ${pos} “${labels[pos]}”${values[pos] === null ? ", given" : `: ${values[pos].toFixed(values[pos] < 1 ? 3 : 2)} nats`}`;
  }

  // A token or a cell was clicked: the heads show this query.
  pin(pos) { if (this.heads) this.heads.pin(pos); }

  drawSaid() {
    const { rows, kept } = this.data, { row } = this.state, said = rows.said[row], perturbed = kept[row] && kept[row].perturbed;
    this.said.replaceChildren();
    if (said) this.said.append(element("b", { textContent: "The model writes: " }), element("bdi", { textContent: said }));
    if (perturbed) {
      const words = perturbed.texts ? `With “${perturbed.texts[1]}” in place of “${perturbed.texts[0]}” at position ${perturbed.pos}` : `With another token at position ${perturbed.pos}`;
      this.said.append(`${words}, the model leaves the text at position ${perturbed.impact}. `);
    }
    this.said.hidden = !this.said.childNodes.length;
  }

  async drawKept() {
    const { data } = this, { row } = this.state, kept = data.kept[row] || {}, notes = [data.missing];
    if (!kept.maps && !kept.attention) notes.push("No stage patched this paragraph or kept its attention; those marked ● have both or one of them.");
    else if (!kept.maps) notes.push("No stage patched this paragraph.");
    else if (!kept.attention) notes.push("Its attention patterns are not in this page.");
    this.note.textContent = notes.filter(Boolean).join(" ");
    this.canvases = [];
    const maps = await Promise.all((kept.maps || []).map((map) => heatmapOf(map, data.axes)));
    if (this.state.row !== row) return;
    this.mapPart.host.hidden = !maps.length;
    this.mapPart.box.replaceChildren();
    maps.forEach((map, number) => {
      const place = element("div");
      this.mapPart.box.append(place);
      const canvas = new HeatmapCanvas(place, {
        point: (line, column) => { this.cell.textContent = canvas.told(line, column).join("; "); },
        leave: () => { this.cell.textContent = ""; },
        choose: (line, column) => { if (number === 0) this.pin(column); else this.openHead(map, line, column); },
      });
      this.canvases.push(canvas);
      canvas.use(this.theme);
      canvas.draw(map);
    });
    this.drawHeads(kept.attention);
  }

  drawHeads(attention) {
    // The head that was looked at before, or else the one that is needed most.
    if (this.heads) this.lookedAt = this.heads.data.heads[this.heads.state.head];
    this.heads = null;
    this.headPart.replaceChildren();
    if (!attention) return;
    const host = element("div"), chosen = Math.max(0, attention.heads.indexOf(this.lookedAt || this.data.head));
    this.headPart.append(host);
    this.heads = new AttentionView(host, { ...attention, chosen, caption: "", theme: this.data.theme, style: this.data.styles.attention });
    this.heads.show();
  }

  openHead(map, line, column) {
    const name = `${map.rows.labels[line]}${map.columns.labels[column]}`, at = this.heads ? this.heads.data.heads.indexOf(name) : -1;
    if (at >= 0) this.heads.choose(at);
  }
}
