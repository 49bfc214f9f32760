// Texts coloured by numbers of their tokens, one below the other; two numbers stand beside each other.
class TokensView {
  constructor(host, data) {
    this.data = data;
    this.root = host.shadowRoot || host.attachShadow({ mode: "open" });
    this.state = { start: 0, order: 0, shown: 0 };
    this.build();
    followTheme(host, data.theme, (theme) => {
      this.scale = new ColourScale(data.scale, theme);
      if (data.change) this.change = new ColourScale(data.change, theme);
      if (host.dataset.ready) this.show();
    });
  }

  build() {
    const { data } = this, pair = data.names.length > 1;
    this.tip = element("div", { className: "tip", hidden: true, attrs: { "aria-live": "polite" } });
    this.legends = element("div");
    this.list = element("div");
    const bar = element("div", { className: "bar" });
    if (pair) bar.append(this.chooser("show", "shown", ["side by side", ...data.names, "difference"]));
    if (data.paragraphs.length > 1) bar.append(this.chooser("order", "order", data.orders.map((one) => one.name)));
    this.pager = new Pager(this.state, data.paragraphs.length, () => this.show());
    bar.append(this.pager.box);
    this.root.replaceChildren(element("style", { textContent: data.style }), element("section", { className: "view" },
      element("h2", { textContent: data.title }), bar, this.legends, this.list,
      element("p", { className: "caption", textContent: data.caption }), this.tip));
    bar.hidden = !pair && data.paragraphs.length === 1;
  }

  chooser(label, name, words) {
    const select = element("select", { attrs: { "aria-label": label } },
      ...words.map((text, value) => element("option", { value, textContent: text })));
    select.onchange = () => {
      this.state[name] = Number(select.value);
      if (name === "order") this.state.start = 0;
      this.show();
    };
    return element("label", {}, `${label} `, select);
  }

  // The places of all paragraphs, in the order that was chosen.
  ordered() {
    const places = this.data.paragraphs.map((_, place) => place), { by, largest } = this.data.orders[this.state.order];
    if (!by) return places;
    const value = (place) => (by[place] === null ? (largest ? -Infinity : Infinity) : by[place]);
    return places.sort((a, b) => (value(a) === value(b) ? a - b : largest ? value(b) - value(a) : value(a) - value(b)));
  }

  show() {
    const { data, state } = this, places = this.ordered().slice(state.start, state.start + PAGE);
    this.pager.say();
    const difference = data.names.length > 1 && [0, 3].includes(state.shown), values = state.shown !== 3;
    this.legends.replaceChildren(...[
      values && this.scale.legend(data.quantity, data.units),
      difference && this.change.legend(data.difference, data.units)].filter(Boolean));
    this.list.replaceChildren(...places.map((place) => this.article(data.paragraphs[place])));
    this.root.host.dataset.ready = "true";
  }

  article(one) {
    const { data, state } = this, labels = one.tokens.map((token) => data.vocabulary.labels[token]);
    const sides = data.names.map((name, side) => ({ name, values: one.values[side], diverges: one.diverges[side], scale: this.scale }));
    if (sides.length > 1) {
      const [first, second] = one.values;
      const values = second.map((value, pos) => (value === null || first[pos] === null ? null : value - first[pos]));
      sides.push({ name: data.difference, values, diverges: null, scale: this.change });
    }
    const shown = state.shown === 0 ? sides : [sides[state.shown - 1]];
    const columns = shown.map((side) => {
      const about = { labels, values: side.values, begins: one.prefix, diverges: side.diverges && side.diverges.pos, rtl: one.rtl };
      const text = colouredText(about, side.scale, { point: (pos, event) => this.point(one, box, pos, event) });
      const said = side.diverges ? [element("p", { className: "said" }, ...this.said(one, side.diverges))] : [];
      return element("div", { className: "column" },
        ...(shown.length > 1 ? [element("h4", { textContent: side.name })] : []), text, ...said);
    });
    const facts = one.facts.map((fact) => element("span", { textContent: fact }));
    const box = element("article", {}, element("header", {}, ...facts), element("div", { className: "columns" }, ...columns));
    return box;
  }

  // What the model says instead of the text, at the first token where it leaves it.
  said(one, { pos, says }) {
    const token = (label) => element("bdi", { textContent: `“${label}”` });
    const { labels } = this.data.vocabulary;
    const rest = says === null ? [] : [" the model says ", token(labels[says]), " instead"];
    return [`${this.data.framed || "leaves the text at"} ${pos}`, says === null ? "" : ":", ...rest];
  }

  point(one, box, pos, event) {
    markPosition(box, pos);
    if (pos === null) { this.tip.hidden = true; return; }
    const { data } = this, { labels, ids, counts } = data.vocabulary, token = one.tokens[pos], pair = data.names.length > 1;
    const lines = data.names.map((name, side) => `${pair ? `${name}: ` : ""}${this.worded(one.values[side][pos])}`);
    const [first, second] = one.values.map((values) => values[pos]);
    if (pair && first !== null && second !== null)
      lines.push(`${data.difference}: ${signedText(second - first)} ${data.units}`);
    const count = counts ? [`${counts[token].toLocaleString("en")} in the corpus`] : [];
    describeToken(this.tip, this.root.host, event, labels[token], [`position ${pos}${ids ? `, id ${ids[token]}` : ""}`, ...count, ...lines]);
  }

  worded(value) {
    const { quantity, units, scale } = this.data;
    if (value === null) return `no ${quantity}`;
    if (scale.is_match) return value > 0.5 ? "the model's first choice" : "not the model's first choice";
    return `${quantity} ${numberText(value)} ${units}`;
  }
}
