"""Section 3: what do the heads attend to?"""

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from mechmem.report.page import Block, Cell, Figure, Section, Table, View
from mechmem.report.sections.wording import best_heads, head_name, listed, signed
from mechmem.report.study_files import StudyFiles
from mechmem.show.charts import heatmap_figures
from mechmem.show.patterns.attention_picture import attention_picture
from mechmem.show.patterns.attention_side import Side
from mechmem.show.token_labels import shortened

NAMED_HEADS = 5
FINDINGS = {"memorized": "the most needed heads", "rare": "the heads that attend most to rare tokens"}
LIMITS = (
    "Attention shows where a head looks, not what it does with what it finds there: the ablation above measures that.",
    "A head that attends to names or to fixed places can look like one that attends to rare tokens.",
)
READING = (
    "Rare tokens identify a paragraph better than common ones, so a head that retrieves memorized text may attend to "
    "tokens that are rare in the corpus.",
    "Excess is the attention on the rarest tokens of the prefix minus what would be expected there if rarity did not "
    "matter: above zero, the head attends to rare tokens more. Spearman's coefficient is the rank correlation of the "
    "attention that a token gets with its frequency: below zero means that rarer tokens get more.",
    "In the attention matrices a row is the query token, a column the key token, and darker means more attention. In "
    "the text below, each token is as dark as the attention that it receives on average from later tokens. The first "
    "token often gets attention that is not needed elsewhere (an attention sink).",
)


def attention_section(study: StudyFiles) -> Section:
    """Which heads attend to rare tokens, whether those are the needed ones, and some attention patterns."""
    answer: list[str] = []
    blocks: list[Block] = []
    missing: list[str] = []
    if study.rare is None:
        missing.append("Attention to rare tokens has not been measured: there is no rare.nc in the study folder.")
    else:
        answer += _rare_sentences(study.rare)
        blocks += _rare_figures(study.rare)
        if study.heads is not None:
            answer.append(_needed_and_rare(study.heads, study.rare))
    if study.attention is None:
        missing.append("No attention patterns were kept: there is no attention.nc in the study folder.")
    else:
        blocks += _views(study)
    if study.rare is not None:
        blocks.append(_rare_table(study.rare))
    question = "Do the heads that memorized text needs attend to rare tokens, and what else do they attend to?"
    return Section("attention", "What do the heads attend to?", question, answer, blocks, READING, missing, LIMITS)


def _rare_sentences(rare: xr.Dataset) -> list[str]:
    (name, most), *_ = best_heads(rare.excess, 1)
    (ranked, rising), *_ = best_heads(-rare.spearman, 1)
    if most > 0:
        first = (
            f"Head {name} attends most to rare tokens: it puts {100 * most:.1f} percentage points more attention on "
            f"the rarest tokens of the prefix than expected from {_expectation(rare)}."
        )
    else:
        first = (
            f"No head attends to rare tokens more than expected: the largest excess is {signed(100 * most, 2)} "
            "percentage points."
        )
    if rising > 0:
        second = (
            f"Attention rises most steadily with rarity in head {ranked} (Spearman {signed(-rising, 2)} with token "
            "frequency)."
        )
    else:
        second = "In no head does attention rise as tokens get rarer."
    return [first, _beyond_chance(rare), second]


def _expectation(rare: xr.Dataset) -> str:
    """What the excess was compared with, as the stage that measured it says."""
    return str(rare.excess.attrs["expectation"])


def _beyond_chance(rare: xr.Dataset) -> str:
    clear = int(((rare.p_value < 0.05) & (rare.excess > 0)).sum())
    return (
        f"{clear or 'None'} of {rare.excess.size} heads {'has' if clear < 2 else 'have'} an excess beyond chance (p < "
        "0.05, corrected for the number of heads)."
    )


def _needed_and_rare(heads: xr.Dataset, rare: xr.Dataset) -> str:
    """Are the heads that memorized text needs the ones that attend to rare tokens?"""
    fall, excess = xr.align(-heads.em_change.sel(set="memorized"), rare.excess, join="inner")
    (name, _), *_ = best_heads(fall, 1)
    ranking = [head for head, _ in best_heads(excess, int(excess.size))]
    place = (
        f"The most needed head, {name}, is number {ranking.index(name) + 1} of {len(ranking)} by attention to rare "
        "tokens"
    )
    if excess.size < 3 or len(np.unique(fall)) < 2 or len(np.unique(excess)) < 2:
        return place + "."
    result = spearmanr(fall.values.ravel(), excess.transpose(*fall.dims).values.ravel())
    rho, p = float(result[0]), float(result[1])  # pyright: ignore
    if p >= 0.05:
        return (
            f"{place}; over all heads, how much a head is needed and its attention to rare tokens are not related "
            f"(Spearman {signed(rho, 2)}, p = {p:.2g})."
        )
    relation = "more" if rho > 0 else "less"
    return (
        f"{place}; over all heads, those needed more attend to rare tokens {relation} than the others (Spearman "
        f"{signed(rho, 2)}, p = {p:.2g})."
    )


def _rare_figures(rare: xr.Dataset) -> list[Block]:
    excess = heatmap_figures.head_heatmap(
        100 * rare.excess,
        title="Excess attention on rare tokens (blue = more)",
        unit="percentage points",
        top=NAMED_HEADS,
    )
    # The range of a correlation; the lowest is blue, so that blue means rare tokens in both figures.
    spearman = heatmap_figures.head_heatmap(
        rare.spearman,
        title="Attention by frequency (blue = rarer tokens)",
        unit="Spearman's coefficient",
        limit=1.0,
        top=NAMED_HEADS,
        blue="lowest",
    )
    return [
        Figure(
            excess,
            f"Attention on the rarest tokens of the prefix minus the expectation ({_expectation(rare)}), in percentage "
            f"points. Bluer means more on rare tokens; the top {NAMED_HEADS} are framed, with their rank.",
            wide=False,
            code='mm.show.rare_tokens(study.results["rare"])',
        ),
        Figure(
            spearman,
            "Rank correlation (Spearman) of the attention that a token gets with its frequency, from −1 to 1. Blue, "
            "below zero: rarer tokens get more; the "
            f"{NAMED_HEADS} lowest are framed, with their rank.",
            wide=False,
            code='study.results["rare"].spearman.to_pandas()',
        ),
    ]


def _rare_table(rare: xr.Dataset) -> Table:
    columns = {
        "excess": "Excess",
        "mass_over_uniform": "Over uniform",
        "spearman": "Spearman",
        "kendall": "Kendall",
        "p_value": "p",
    }
    rows: list[list[Cell]] = []
    for layer in rare.layer.values:
        for head in rare["head"].values:
            one = rare.sel(layer=layer, head=head)
            rows.append([head_name(int(layer), int(head)), *(float(one[name]) for name in columns)])
    rows.sort(key=lambda row: -np.nan_to_num(row[1], nan=-np.inf))  # pyright: ignore
    note = (
        f"Excess as a share (0 to 1) of the head's attention, compared with {_expectation(rare)}: higher means more on "
        "rare tokens. Over uniform: the same compared with evenly spread attention. Spearman and Kendall with token "
        "frequency: lower means that rarer tokens get more. p: how likely such a value is by chance."
    )
    return Table("All heads and rare tokens as numbers", ["Head", *columns.values()], rows, note)


def _views(study: StudyFiles) -> list[Block]:
    """One view for each finding: its heads on the paragraphs that were kept."""
    assert study.attention is not None
    prefix = None if study.paragraphs is None else study.paragraphs.prefix_len
    blocks: list[Block] = []
    for finding, words in FINDINGS.items():
        views = study.attention.isel(view=np.flatnonzero(study.attention.finding.values == finding))
        if not views.sizes["view"]:
            continue
        sides = [side_of(views.isel(view=number), prefix) for number in range(views.sizes["view"])]
        names = listed([head_name(*pair) for pair in sides[0].heads])
        blocks.append(
            View(
                f"Attention of {words}: {names}",
                attention_picture([[side] for side in sides]),
                "Darker means more attention. Click a head for its matrix; point at a token or a cell for its value.",
                _line(study, views),
            )
        )
    return blocks


def side_of(view: xr.Dataset, prefix_len: int | None) -> Side:
    """One view of `attention.nc` as `show.attention` draws it."""
    heads = [(int(layer), int(head)) for layer, head in zip(view.layer.values, view["head"].values, strict=True)]
    text = [shortened(str(token)) or "∅" for token in view.token.values]
    title = f"paragraph {view.paragraph_id.item()}"
    return Side(title, heads, text, None, prefix_len, view.pattern.values.astype(float))


def _line(study: StudyFiles, views: xr.Dataset) -> str:
    """The call that makes the view in a notebook."""
    if study.paragraphs is None:
        return ""
    ids = study.paragraphs.ids.tolist()
    rows = [ids.index(found) for found in views.paragraph_id.values.tolist() if found in ids]
    one = views.isel(view=0)
    names = [head_name(int(layer), int(head)) for layer, head in zip(one.layer.values, one["head"].values, strict=True)]
    return f"mm.show.attention(study.model, study.paragraphs[{rows}], heads={names})"
