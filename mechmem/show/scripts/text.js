// A text, a span a token, coloured by a number of each; and the legend of the colours.
const YES = 0.22, NO = 0.75;

// Three digits, as the still picture writes them.
const numberText = (value) => {
  const size = Math.abs(value), sign = value < 0 ? "−" : "";
  if (size === 0) return "0";
  if (size < 0.001) return sign + size.toExponential(1).replace("+", "");
  return sign + size.toFixed(size < 1 ? 3 : size < 10 ? 2 : size < 100 ? 1 : 0);
};
// As short as it can be: 4 and not 4.00.
const shortText = (value) => { const text = numberText(value); return text.includes("e") ? text : text.replace(/\.0+$|(\.\d*[1-9])0+$/, "$1"); };
const signedText = (value) => (value > 0 ? "+" : "") + numberText(value);

class ColourScale {
  constructor(about, theme) {
    Object.assign(this, about);
    this.more = ramp(theme.paper, theme.more, 256);
    this.less = ramp(theme.paper, theme.less, 256);
  }

  at(share, blue) { return (blue ? this.more : this.less)[Math.round(255 * share)]; }

  colour(value) {
    if (this.is_match && !this.signed) return value > 0.5 ? this.at(YES, true) : this.at(NO, false);
    const share = Math.min(1, Math.abs(value) / this.most);
    return this.at(this.linear ? share : Math.sqrt(share), (value >= 0) === this.blue_is_high);
  }

  // Colours with their numbers: a bar, or two patches for yes and no.
  legend(name, units) {
    const box = element("div", { className: "legend" });
    const patch = (value, text) => {
      const colour = this.colour(value);
      const made = element("span", { className: "patch", textContent: text });
      made.style.background = `rgb(${colour.join(",")})`;
      made.style.color = letters(colour);
      return made;
    };
    if (this.is_match && !this.signed) {
      box.append(patch(1, "the first choice"), patch(0, "another token is"));
      return box;
    }
    const shares = this.signed ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
    const value = (share) => (this.linear ? share : Math.sign(share) * share * share) * this.most;
    const said = (share) => shortText(Number(value(share).toPrecision(6)));
    const steps = Array.from({ length: 33 }, (_, step) => shares[0] + ((1 - shares[0]) * step) / 32);
    const bar = element("span", { className: "ramp" });
    bar.style.background = `linear-gradient(to right, ${steps.map((share) => `rgb(${this.colour(value(share)).join(",")})`)})`;
    const marks = shares.map((share) => element("span", { textContent: this.signed && share > 0 ? `+${said(share)}` : said(share) }));
    box.append(element("span", { textContent: name }),
      element("span", { className: "scale" }, bar, element("span", { className: "marks" }, ...marks)),
      element("span", { textContent: units }));
    return box;
  }
}

// One text. `about`: labels, values (null where there is none) and whether it is read from the right (`rtl`);
// optionally `first` (the position of the first token; 0), `begins` (where the continuation begins), `diverges` (the
// first token that the model does not say) and `fresh` (of each token, whether another text does not have it there).
// `point(pos, event)`, given by name, is called for the token under the pointer or the arrow keys, with null when there
// is none any more.
function colouredText(about, scale, { point }) {
  const { first = 0 } = about;
  const spans = about.labels.map((label, place) => {
    const span = element("span", { className: "token", textContent: label }), value = about.values[place];
    span.dataset.pos = first + place;
    if (value === null || value === undefined) span.classList.add("bare");
    else {
      const colour = scale.colour(value);
      span.style.background = `rgb(${colour.join(",")})`;
      span.style.color = letters(colour);
    }
    if (first + place === about.begins) span.classList.add("begins");
    if (first + place === about.diverges) span.classList.add("diverges");
    if (about.fresh && about.fresh[place]) span.classList.add("fresh");
    return span;
  });
  // A line of the text ends where its last token says so.
  const parts = spans.flatMap((span) => (/↵ *$/.test(span.textContent) ? [span, element("br")] : [span]));
  const text = element("p", { className: "text", tabIndex: 0, dir: about.rtl ? "rtl" : "ltr" }, ...parts);
  let current = null;
  const look = (span, event) => {
    if (current) current.classList.remove("at");
    current = span;
    if (span) span.classList.add("at");
    point(span ? Number(span.dataset.pos) : null, event);
  };
  text.onmouseover = (event) => { if (event.target.dataset.pos !== undefined) look(event.target, event); };
  text.onmousemove = (event) => { if (event.target === current) look(current, event); };
  text.onmouseleave = () => look(null);
  text.onblur = () => look(null);
  text.onkeydown = (event) => {
    const step = { ArrowLeft: about.rtl ? 1 : -1, ArrowRight: about.rtl ? -1 : 1, Escape: 0 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    if (step === 0) { look(null); return; }
    const next = spans[current ? spans.indexOf(current) + step : step > 0 ? 0 : spans.length - 1];
    if (!next) return;
    const box = next.getBoundingClientRect();
    look(next, { clientX: box.left, clientY: box.bottom - 8 });
  };
  return text;
}

// Several texts of the same tokens: marks one position in all of them; null: none.
function markPosition(box, pos) {
  box.querySelectorAll(".token").forEach((span) => span.classList.toggle("at", Number(span.dataset.pos) === pos));
}

// Says what is known of a token: its label, then line by line.
function describeToken(tip, host, event, label, lines) {
  tip.replaceChildren(element("b", {}, element("bdi", { textContent: `“${label}”` })),
    ...lines.map((line) => element("div", { textContent: line })));
  placeTip(tip, host, event);
}

// Ten texts at a time of many; `state.start` is the first of them.
const PAGE = 10;
class Pager {
  constructor(state, total, show) {
    const turn = (step) => {
      if (state.start + step < 0 || state.start + step >= total) return;
      state.start += step;
      show();
    };
    const button = (text, label, step) => {
      const made = element("button", { type: "button", textContent: text, attrs: { "aria-label": label } });
      made.onclick = () => turn(step);
      return made;
    };
    this.where = element("output");
    this.box = element("span", { className: "pager" },
      button("‹", "earlier paragraphs", -PAGE), this.where, button("›", "later paragraphs", PAGE));
    this.box.hidden = total <= PAGE;
    this.say = () => { this.where.textContent = `${state.start + 1} to ${Math.min(state.start + PAGE, total)} of ${total}`; };
  }
}
