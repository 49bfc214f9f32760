"""Section 2: where in the network do the memories sit?"""

import numpy as np
import xarray as xr

from mechmem.report import figures
from mechmem.report.page import Block, Figure, Section, Table
from mechmem.report.sections.patching import patching_blocks, patching_sentences
from mechmem.report.sections.wording import best_heads, head_name, listed, percent, signed
from mechmem.report.study_files import StudyFiles
from mechmem.show.charts import heatmap_figures

NAMED_HEADS = 5
GRADIENTS = (
    'mm.show.gradients(*(study.results["gradients"].max_gradient.sel(set=name) for name in ("memorized", "other")), '
    'names=("memorized", "other"))'
)
SHARES = 'study.results["gradients"].layer_share.to_pandas()'
HEADS = 'mm.show.heads(study.results["heads"].sel(set="{}"), measure="em_change")'
LIMITS = (
    "Ablation shows what the model needs, not what is stored where: a head can be needed because later ones rely on "
    "it, and two heads that can replace each other cost little one at a time.",
    "A gradient shows where the loss responds to a small change, not where a text was written.",
    "Patching covers a few pairs, each with the one replaced token that does the most harm.",
)
READING = (
    "Gradients and ablation answer different questions. A gradient says how strongly the loss on the paragraphs "
    "responds to a small change of a weight: where the text could be changed. Ablation replaces the output of a head "
    "and measures what the model can no longer reproduce: which heads the text needs.",
    "In the gradient maps each cell is the largest absolute gradient within one component of one layer: the query "
    "(Q), key (K), value (V) and output (O) weights of a head, or the two matrices of the MLP. Brighter means "
    "larger. Text that the model knows well has a low loss and hence small gradients everywhere, so compare the "
    "shares, not only the sizes.",
    "Layers and heads are counted from zero: L1H2 is the third head of the second layer.",
)


def where_section(study: StudyFiles) -> Section:
    """Gradients by component and layer, and what ablating each head costs."""
    answer: list[str] = []
    blocks: list[Block] = []
    missing: list[str] = []
    heads = study.heads
    if heads is None:
        missing.append("Head ablation has not been run: there is no heads.nc in the study folder.")
    else:
        answer += _head_sentences(heads)
    if study.gradients is None:
        missing.append("The gradients have not been computed: there is no gradients.nc in the study folder.")
    else:
        answer += _gradient_sentences(study.gradients)
        blocks += _gradient_figures(study.gradients)
    if heads is not None:
        blocks += [*_head_figures(heads), _head_table(heads)]
    if study.patching is None:
        missing.append("No paragraph has been patched: there is no patching.nc in the study folder.")
    else:
        answer += patching_sentences(study.patching)
        blocks += patching_blocks(study.patching)
    question = "Which layers, weights and attention heads carry the memorized paragraphs?"
    return Section("where", "Where does it sit?", question, answer, blocks, READING, missing, LIMITS)


def _gradient_sentences(gradients: xr.Dataset) -> list[str]:
    size, share = gradients.max_gradient, gradients.layer_share
    if not {"memorized", "other"} <= set(size.set.values):
        return []
    totals = size.sum("component")
    memorized, other = totals.sel(set="memorized"), totals.sel(set="other")
    ratio = float(memorized.sum() / other.sum())
    smaller = int((memorized < other).sum())
    word, shown = ("smaller", 1 / max(ratio, 1e-12)) if ratio < 1 else ("larger", ratio)
    layers = share.sizes["layer"]
    difference = share.sel(set="memorized") - share.sel(set="other")
    gained = [f"L{layer}" for layer in share.layer.values[difference.values > 0.01]]
    half = share.isel(layer=slice(0, layers // 2 or 1)).sum("layer")
    return [
        f"Gradients on memorized text are {shown:.1f} times {word} in total than on other text, and smaller in "
        f"{smaller} of {layers} layers.",
        f"The lower half of the layers holds {percent(float(half.sel(set='memorized')))} of the memorized total "
        f"against {percent(float(half.sel(set='other')))} of the other; "
        + (
            f"the share of {listed(gained)} is larger for memorized text."
            if gained
            else "no layer's share is clearly larger for memorized text."
        ),
    ]


def _gradient_figures(gradients: xr.Dataset) -> list[Block]:
    size = gradients.max_gradient
    caption = (
        "The largest |gradient| of the mean NLL in each component, in nats per token per unit of weight, on a "
        "logarithmic colour scale that both sets share. Brighter means that the loss on {} text responds more to a "
        "change here."
    )
    positive = size.where(size > 0)
    span = (float(positive.min()), float(positive.max()))
    blocks: list[Block] = [
        Figure(
            heatmap_figures.component_heatmap(
                size.sel(set=name),
                title=f"Gradient on {name} text (brighter = larger)",
                unit="max |gradient|",
                kind="log",
                span=span,
            ),
            caption.format(name),
            code=GRADIENTS,
        )
        for name in size.set.values
    ]
    if {"memorized", "other"} <= set(size.set.values):
        memorized, other = size.sel(set="memorized"), size.sel(set="other")
        part = 100 * (memorized / memorized.sum() - other / other.sum())
        figure = heatmap_figures.component_heatmap(
            part,
            title="Share of the gradient, memorized minus other (blue = larger on memorized text)",
            unit="percentage points",
            kind="diverging",
        )
        reading = (
            "Each component's percentage of its set's total, memorized minus other, in percentage points. Blue: a "
            "larger share for memorized text than for other text; orange: a smaller one."
        )
        blocks.append(Figure(figure, reading, code=GRADIENTS))
    reading = (
        "Percent of the set's gradient total; the bars of one colour add up to 100 %. Where the bar of memorized text "
        "is higher, the layer matters relatively more for it."
    )
    return [*blocks, Figure(figures.layer_shares(gradients.layer_share), reading, code=SHARES)]


def _head_sentences(heads: xr.Dataset) -> list[str]:
    fall = -heads.em_change.sel(set="memorized")
    best = best_heads(fall, NAMED_HEADS)
    method = heads.attrs["method"]
    name, value = best[0]
    if value < 0.5:
        first = (
            f"No single head is needed: ablating any one ({method} ablation) lowers EM on memorized text by at most "
            f"{value:.2f} tokens."
        )
        return [first]
    average = float(fall.mean())
    sentences = [
        f"Memorized text needs head {name} most: without it EM falls by {value:.1f} tokens on average ({method} "
        f"ablation; {average:.1f} tokens for the average head).",
        f"The {len(best)} most needed heads are "
        + listed([f"{head} ({signed(-tokens)})" for head, tokens in best])
        + "; they account for "
        + percent(sum(max(tokens, 0) for _, tokens in best) / max(float(fall.clip(min=0).sum()), 1e-9))
        + " of the summed falls of all heads.",
    ]
    if "other" in heads.set.values:
        sentences.append(_specific(heads, name))
    return sentences


def most_needed(heads: xr.Dataset) -> tuple[str, xr.Dataset]:
    """The head whose ablation lowers EM on memorized text most, and its numbers on that text."""
    own = heads.sel(set="memorized")
    (name, _), *_ = best_heads(-own.em_change, 1)
    layer, head = (int(part) for part in name[1:].split("H"))
    return name, own.sel(layer=layer, head=head)


def _specific(heads: xr.Dataset, name: str) -> str:
    """Is the most needed head needed for memorized text alone? By NLL: other text has little EM to lose."""
    change = heads.em_change.sel(set="memorized")
    place = {dim: int(index) for dim, index in change.argmin(("layer", "head")).items()}  # pyright: ignore
    rise = heads.nll_change.isel(place)
    memorized, other = float(rise.sel(set="memorized")), float(rise.sel(set="other"))
    if memorized > 2 * max(other, 0):
        verdict = "so it matters to memorized text in particular"
    elif memorized > other:
        verdict = "so it matters to all text, and more to memorized text"
    else:
        verdict = "so it is not specific to memorized text: other text needs it as much"
    return (
        f"Without {name} the loss rises by {memorized:.2f} nats per token on memorized and by {other:.2f} on other "
        f"text, {verdict}."
    )


def _head_figures(heads: xr.Dataset) -> list[Block]:
    limit = float(np.nanmax(np.abs(heads.em_change.values), initial=0)) or 1.0
    blocks: list[Block] = []
    for name in heads.set.values:
        figure = heatmap_figures.head_heatmap(
            heads.em_change.sel(set=name),
            title=f"EM change without each head, {name} text",
            unit="tokens",
            limit=limit,
            blue="lowest",
            top=NAMED_HEADS if name == "memorized" else 0,
        )
        reading = (
            f"Mean change of EM on {name} text if this head alone is ablated, in tokens, after minus before. Blue, "
            "below zero: the head is needed; orange, above zero: the model does better without it. Both sets share one "
            "scale"
            + (f"; the {NAMED_HEADS} most needed heads are framed, with their rank." if name == "memorized" else ".")
        )
        blocks.append(Figure(figure, reading, wide=heads.sizes["set"] == 1, code=HEADS.format(name)))
    return blocks


def _head_table(heads: xr.Dataset) -> Table:
    sets = [str(name) for name in heads.set.values]
    columns = ["Head"] + [f"{what} change, {name}" for what in ("EM", "NLL") for name in sets]
    rows = []
    for layer in heads.layer.values:
        for head in heads["head"].values:
            one = heads.sel(layer=layer, head=head)
            values = [float(change.sel(set=name)) for change in (one.em_change, one.nll_change) for name in sets]
            rows.append([head_name(int(layer), int(head)), *values])
    rows.sort(key=lambda row: np.nan_to_num(row[1], nan=np.inf))
    note = (
        "Ablated minus intact: EM in tokens, NLL in nats per token. The lower the change of EM and the higher that of "
        "NLL, the more the head is needed."
    )
    return Table("All heads as numbers", columns, rows, note)
