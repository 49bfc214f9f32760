// What models write after the same prefixes: the true text, the original's and a chosen step's, side by side.
class DiffView {
  constructor(host, data) {
    this.data = data;
    this.root = host.shadowRoot || host.attachShadow({ mode: "open" });
    this.state = { step: data.steps.length - 1, start: 0 };
    this.build();
    followTheme(host, data.theme, (theme) => {
      this.scale = new ColourScale(data.scale, theme);
      if (host.dataset.ready) this.show();
    });
  }

  build() {
    const { data } = this, several = data.steps.length > 2, last = data.steps.length - 1;
    this.tip = element("div", { className: "tip", hidden: true, attrs: { "aria-live": "polite" } });
    this.list = element("div");
    this.legends = element("div");
    this.where = element("output", { className: "step" });
    const bar = element("div", { className: "bar" });
    if (several) {
      this.slider = element("input", { type: "range", min: 1, max: last, value: last, attrs: { "aria-label": "step" } });
      this.slider.oninput = () => { this.state.step = Number(this.slider.value); this.show(); };
      bar.append(element("label", {}, "step ", this.slider), this.where);
    } else bar.append(this.where);
    this.pager = new Pager(this.state, data.paragraphs.length, () => this.show());
    bar.append(this.pager.box);
    this.root.replaceChildren(element("style", { textContent: data.style }), element("section", { className: "view" },
      element("h2", { textContent: data.title }), bar, this.legends, this.list,
      element("p", { className: "caption", textContent: data.caption }), this.tip));
  }

  show() {
    const { data, state } = this, step = data.steps[state.step];
    const said = (one) => element("div", {}, element("b", {}, element("bdi", { textContent: one.name })), `: ${one.said}`);
    this.where.replaceChildren(said(data.steps[0]), said(step));
    this.pager.say();
    this.legends.replaceChildren(this.scale.legend("NLL", "nats"));
    this.list.replaceChildren(...data.paragraphs.slice(state.start, state.start + PAGE).map((one) => this.article(one)));
    this.root.host.dataset.ready = "true";
  }

  labels(places) { return places.map((place) => this.data.vocabulary.labels[place]); }

  article(one) {
    const { data, state } = this, { prefix } = one, first = one.steps[0], chosen = one.steps[state.step];
    const names = [data.steps[0].name, data.steps[state.step].name], true_ = one.tokens.slice(prefix);
    const box = element("article");
    // A text from some position on; `lines` says what is known of its token at a place.
    const text = (from, places, values, lines, about = {}) => colouredText(
      { labels: this.labels(places), values, first: from, rtl: one.rtl, ...about }, this.scale,
      { point: (pos, event) => this.point(box, pos, event, places[pos - from], () => lines(pos - from)) });
    const worded = (name, value) => `NLL ${name}: ${numberText(value)} nats`;
    const column = (name, words, made) => element("div", { className: "column" },
      element("h4", {}, element("bdi", { textContent: name })), element("p", { className: "facts", textContent: words }), made);
    const model = (name, step) => {
      const words = `EM ${step.em} of ${data.full}, edit distance ${step.distance}, NLL ${step.nll} nats per token`;
      const lines = (place) => [worded(name, step.said_nll[place]), `true token: “${this.labels([true_[place]])[0]}”`];
      const diverges = step.diverges === null ? null : prefix + step.diverges;
      return column(name, words, text(prefix, step.said, step.said_nll, lines, { diverges, fresh: [...step.fresh].map(Number) }));
    };
    const given = text(0, one.tokens.slice(0, prefix), [], () => ["given to all models"]);
    given.classList.add("prefix");
    const trueLines = (place) => [worded(names[0], first.true_nll[place]), worded(names[1], chosen.true_nll[place])];
    box.append(
      element("header", {}, ...one.facts.map((fact) => element("span", { textContent: fact }))), given,
      element("div", { className: "columns" },
        column("true text", `coloured by its NLL under ${names[1]}`, text(prefix, true_, chosen.true_nll, trueLines)),
        model(names[0], first), model(names[1], chosen)));
    return box;
  }

  point(box, pos, event, place, lines) {
    markPosition(box, pos);
    if (pos === null) { this.tip.hidden = true; return; }
    const { labels, ids, counts } = this.data.vocabulary;
    const count = counts ? [`${counts[place].toLocaleString("en")} in the corpus`] : [];
    describeToken(this.tip, this.root.host, event, labels[place], [`position ${pos}, id ${ids[place]}`, ...count, ...lines()]);
  }
}
