"""Section 4: what does removing the memories do?"""

import xarray as xr

from mechmem.report import figures
from mechmem.report.page import Block, Cell, Figure, Section, Table
from mechmem.report.sections.attacks import attack_blocks, attack_sentences
from mechmem.report.sections.oracle import oracle_blocks, oracle_sentences
from mechmem.report.sections.wording import percent, signed
from mechmem.report.study_files import StudyFiles
from mechmem.show.charts import heatmap_figures, history_figures

ORIGINAL = "original"
TARGETS, HELD_OUT, OTHER, UNSEEN = "targets", "held-out memorized", "other", "never seen"
# Tokens of EM below which an edit removed nothing; share of EM and nats per token of other text that are a cost.
NOTICEABLE = 1.0
COST_SHARE, COST_NATS = 0.1, 0.1
# A control that removes this share of what the chosen weights remove is said to do as much.
SAME = 0.8
TRADE_OFF = 'study.results["unlearn"][["em", "kl"]].to_dataframe()'
HISTORY = "mm.show.history({name: edit.history for name, edit in study.edits.items()})"
SELECTED = 'study.results["unlearn"].selected_share.to_pandas()'
LIMITS = (
    "The costs are EM, NLL and KL on samples of these sets: no other ability of the model was tested.",
    "An attack that recovers nothing does not show that the text is gone: another attack may.",
)
READING = (
    "Unlearning trains the model for a few steps until it no longer reproduces the targets, while its predictions on "
    "other text are held in place. NPO and contrastive are two objectives; contrastive is the one of the original "
    "study. An edit may change all attention and MLP weights, or only a few: those with the largest gradient (top), or "
    "as many drawn at random from the same matrices (random).",
    "Random weights are the control. If they remove as much at the same cost, it does not matter which weights were "
    "chosen.",
    "Held-out memorized paragraphs are memorized too but were not targeted. If they are forgotten as well, the edit "
    "removed the ability to reproduce text rather than these paragraphs. Whiskers are 95 % intervals, by "
    "clusters of near-identical paragraphs.",
)


def removal_section(study: StudyFiles) -> Section:
    """EM of every set before and after each edit, what it cost, and where the chosen weights are."""
    name, title = "removal", "What does removing it do?"
    question = "After the targets are unlearned, are they gone, and what else changed?"
    unlearned = study.unlearned
    if unlearned is None:
        missing = ("Unlearning has not been run: there is no unlearn.nc in the study folder.",)
        return Section(name, title, question, (), missing=missing)
    blocks = [*_figures(unlearned), _numbers(unlearned), *oracle_blocks(unlearned), *attack_blocks(study.attacks)]
    answer = [*_answer(unlearned), *oracle_sentences(unlearned), *attack_sentences(study.attacks)]
    return Section(name, title, question, answer, blocks, READING, limits=LIMITS)


def first_edit(unlearned: xr.Dataset) -> str:
    """The edit that comes first in the study's settings; it is the one that is exported."""
    return str(unlearned.edit.values[1])


def em_of(unlearned: xr.Dataset, edit: str, name: str) -> float | None:
    """Mean EM of a set after an edit, or None if the set was not evaluated."""
    return float(unlearned.em.sel(edit=edit, set=name)) if name in unlearned.set.values else None


def _change(unlearned: xr.Dataset, edit: str, name: str) -> float | None:
    """Change of a set's mean EM, after minus before."""
    before, after = em_of(unlearned, ORIGINAL, name), em_of(unlearned, edit, name)
    return None if before is None or after is None else after - before


def _removed(unlearned: xr.Dataset, edit: str) -> float:
    return -(_change(unlearned, edit, TARGETS) or 0.0)


def _answer(unlearned: xr.Dataset) -> list[str]:
    edits = [str(name) for name in unlearned.edit.values[1:]]
    first = edits[0]
    sentences = [_headline(unlearned, first), *_transfer(unlearned, first), *_cost(unlearned, first)]
    sentences += [_beside(unlearned, edit) for edit in edits[1:] if "random" not in edit]
    return sentences + [_against_random(unlearned, chosen, control) for chosen, control in random_pairs(unlearned)]


def random_pairs(unlearned: xr.Dataset) -> list[tuple[str, str]]:
    """Edits of chosen weights, each with the same edit of as many random weights, its control."""
    edits = [str(name) for name in unlearned.edit.values]
    pairs = [(edit.replace("random", "top"), edit) for edit in edits if "random" in edit]
    return [pair for pair in pairs if pair[0] in edits]


def _headline(unlearned: xr.Dataset, edit: str) -> str:
    before, after = (unlearned.sel(edit=name, set=TARGETS) for name in (ORIGINAL, edit))
    count = f"{int(after.weights_changed):,} of {int(unlearned.attrs['weights_total']):,} weights changed"
    verb = "takes" if _removed(unlearned, edit) >= NOTICEABLE else "hardly changes"
    moved = (
        f"the targets from {float(before.em):.1f} to {float(after.em):.1f} tokens of EM (95 % interval "
        f"{float(after.em_low):.1f} to {float(after.em_high):.1f})"
    )
    if verb == "hardly changes":
        moved = moved.replace("the targets from", "the targets: from", 1)
    exact = f"{percent(float(after.exact_fraction))} of them are still reproduced in full"
    return f"{_capital(edit)}, {verb} {moved}; {exact}. {count}."


def _beside(unlearned: xr.Dataset, edit: str) -> str:
    after, cost = em_of(unlearned, edit, TARGETS), _change(unlearned, edit, OTHER)
    sentence = f"{_capital(edit)}, takes the targets to {after:.1f} tokens of EM"
    if _removed(unlearned, edit) < NOTICEABLE:
        sentence = f"{_capital(edit)}, removes nothing: the targets keep {after:.1f} tokens of EM"
    if cost is None:
        return sentence + "."
    kl = float(unlearned.kl.sel(edit=edit, set=OTHER))
    first = float(unlearned.kl.sel(edit=first_edit(unlearned), set=OTHER))
    return f"{sentence}, at a KL of {kl:.3f} nats per token on other text against {first:.3f} of the first edit."


def _against_random(unlearned: xr.Dataset, top: str, rival: str) -> str:
    chosen, control = _removed(unlearned, top), _removed(unlearned, rival)
    fact = (
        f"As many random weights, edited in the same way, remove {control:.1f} tokens where the top ones remove "
        f"{chosen:.1f}"
    )
    if max(chosen, control) < NOTICEABLE:
        return f"{fact}: neither edit removed a noticeable amount."
    if control >= SAME * chosen:
        return (
            f"{fact}: as much or nearly so, hence this edit does not show that the chosen weights are where the "
            "memory is stored."
        )
    if control >= 0.25 * chosen:
        return f"{fact}: the chosen weights do more, but random ones have part of the effect."
    return f"{fact}: the choice of weights matters."


def _transfer(unlearned: xr.Dataset, edit: str) -> list[str]:
    change, target = _change(unlearned, edit, HELD_OUT), _removed(unlearned, edit)
    if change is None or target < NOTICEABLE:
        return []
    share = max(-change, 0.0) / target
    verdict = (
        "so the edit removed the ability to reproduce more than the targets"
        if share >= 0.5
        else "so the edit is in part specific to its targets"
        if share >= 0.15
        else "so the edit is specific to its targets"
    )
    return [f"Memorized paragraphs that were not targeted change by {signed(change)} tokens, {verdict}."]


def _cost(unlearned: xr.Dataset, edit: str) -> list[str]:
    change = _change(unlearned, edit, OTHER)
    if change is None:
        return []
    nll = unlearned.nll.sel(set=OTHER)
    rise = float(nll.sel(edit=edit) - nll.sel(edit=ORIGINAL))
    # Other text has little EM to lose, so its loss and the share that it keeps count as well.
    before = em_of(unlearned, ORIGINAL, OTHER) or 0.0
    costly = -change > NOTICEABLE or -change > COST_SHARE * before or rise > COST_NATS
    verdict = "the edit has a cost" if costly else "a negligible cost"
    sentence = (
        f"Other text changes by {signed(change)} tokens of EM and {signed(rise, 2)} nats of NLL per token: {verdict}."
    )
    unseen = _change(unlearned, edit, UNSEEN)
    return [sentence + (f" Text that was never seen changes by {signed(unseen)} tokens." if unseen is not None else "")]


def _capital(edit: str) -> str:
    return edit[:1].upper() + edit[1:]


def _figures(unlearned: xr.Dataset) -> list[Block]:
    blocks: list[Block] = [
        Figure(
            figures.em_intervals(unlearned),
            "Mean EM of each set of paragraphs in the original model and after each edit, with 95 % intervals. Lower "
            "is the aim for the targets; all other sets should stay at the grey bar.",
            code='study.results["unlearn"][["em", "em_low", "em_high"]].to_dataframe()',
        )
    ]
    if OTHER in unlearned.set.values:
        reading = (
            "Up: change of the targets' EM in tokens, after minus before; right: KL on other text in nats per token, "
            "how far the predictions moved. The best edit is at the bottom left."
        )
        blocks.append(
            Figure(figures.trade_off(unlearned, target=TARGETS, keep=OTHER), reading, wide=False, code=TRADE_OFF)
        )
    reading = (
        "NLL of the targets at each step, in nats per token. Higher means more forgotten; a steeper line means that "
        "this edit needs fewer steps. Edits stop when the targets' mean EM is low enough."
    )
    blocks.append(
        Figure(history_figures.nll_history(unlearned.nll_history), reading, wide=len(blocks) == 1, code=HISTORY)
    )
    if "selected_share" in unlearned:
        title = "Where the selected weights are (brighter = more of them)"
        figure = heatmap_figures.component_heatmap(
            100 * unlearned.selected_share, title=title, unit="% of the selected weights", kind="plain"
        )
        reading = (
            "Percent of the top weights that are in each component; all cells add up to 100 %. Brighter means that "
            "more of the weights with the largest gradient are here."
        )
        blocks.append(Figure(figure, reading, code=SELECTED))
    return blocks


def _numbers(unlearned: xr.Dataset) -> Table:
    columns = {
        "em": "EM",
        "em_low": "EM, low",
        "em_high": "EM, high",
        "exact_fraction": "Reproduced in full",
        "match_fraction": "Match",
        "edit_distance": "Edit distance",
        "nll": "NLL",
        "perplexity": "Perplexity",
        "kl": "KL",
        "kl_low": "KL, low",
        "kl_high": "KL, high",
        "changed_top1": "Changed top-1",
    }
    rows: list[list[Cell]] = []
    for edit in unlearned.edit.values:
        for name in unlearned.set.values:
            one = unlearned.sel(edit=edit, set=name)
            rows.append([str(edit), str(name), *(float(one[column]) for column in columns), int(one.weights_changed)])
    note = (
        "EM in tokens with its 95 % interval. Match: share of tokens that are the model's first choice after the true "
        "text. Edit distance: tokens to change in what the model generates to get the text. NLL in nats per token; "
        "perplexity, its exponential. KL from the original model, in nats per token, with its 95 % interval, and the "
        "share of first choices that changed: lower means that the predictions changed less."
    )
    return Table("All edits as numbers", ["Edit", "Set", *columns.values(), "Weights changed"], rows, note)
