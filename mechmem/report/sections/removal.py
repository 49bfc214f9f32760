"""Section 4: what does removing the memories do?"""

import numpy as np
import xarray as xr

from mechmem.report import figures, heatmaps
from mechmem.report.page import Block, Cell, Figure, Section, Table
from mechmem.report.sections.attacks import attack_blocks, attack_sentences
from mechmem.report.sections.wording import percent, signed
from mechmem.report.study_files import StudyFiles

TARGET, HELD_OUT, OTHER, UNSEEN = "targeted memorized", "held-out memorized", "other", "never seen"
NOTICEABLE = 1.0
DEAR_SHARE, DEAR_NATS = 0.1, 0.1
READING = (
    "Unlearning trains the model for a few steps to find the targeted paragraphs surprising while its predictions on "
    "other text are held in place. It may move only the weights of a mask: the few with the largest gradient (top), "
    "as many drawn at random from the same matrices (random), or all of them.",
    "The random mask is the control. If it removes as much at the same cost, then it does not matter which weights "
    "were chosen.",
    "Held-out memorized paragraphs are memorized too but were not targeted. If they are forgotten as well, the edit "
    "hit the ability to recite rather than these paragraphs. Whiskers are 95 % intervals that resample whole "
    "clusters of near-identical paragraphs.",
)


def removal_section(study: StudyFiles) -> Section:
    """EM of every set before and after each edit, what it cost, and where the chosen weights sit."""
    name, title = "removal", "What does removing it do?"
    question = "If the memorized paragraphs are unlearned, are they gone, and what else goes with them?"
    unlearned = study.unlearned
    if unlearned is None:
        missing = ("Unlearning has not been run: there is no unlearn.nc in the study folder.",)
        return Section(name, title, question, (), missing=missing)
    blocks = [*_figures(unlearned), _numbers(unlearned), *attack_blocks(study.attacks)]
    answer = [*_answer(unlearned), *attack_sentences(study.attacks)]
    return Section(name, title, question, answer, blocks, READING)


def mask_named(unlearned: xr.Dataset, word: str) -> str | None:
    """The mask whose name begins with a word ("top", "random", "all"), or None; the rest of its name is its size."""
    return next((str(name) for name in unlearned.mask.values if str(name).split(" ")[0] == word), None)


def em_of(unlearned: xr.Dataset, mask: str, name: str) -> float | None:
    """Mean EM of a set after an edit, or None if the set was not evaluated."""
    if name not in unlearned.set.values or mask not in unlearned.mask.values:
        return None
    return float(unlearned.em_mean.sel(mask=mask, set=name))


def _lost(unlearned: xr.Dataset, mask: str, name: str) -> float | None:
    before, after = em_of(unlearned, "before", name), em_of(unlearned, mask, name)
    return None if before is None or after is None else before - after


def _answer(unlearned: xr.Dataset) -> list[str]:
    top, rival, everything = (mask_named(unlearned, word) for word in ("top", "random", "all"))
    if top is None or em_of(unlearned, top, TARGET) is None:
        return []
    sentences = [_first(unlearned, top)]
    if rival is not None:
        sentences.append(_against_random(unlearned, top, rival))
    sentences += _transfer(unlearned, top) + _cost(unlearned, top)
    if everything is not None:
        sentences.append(
            f"Moving all weights instead takes the targets to {em_of(unlearned, everything, TARGET):.1f} tokens of EM"
            + (
                f" and costs other text {cost:.1f}."
                if (cost := _lost(unlearned, everything, OTHER)) is not None
                else "."
            )
        )
    return sentences


def _first(unlearned: xr.Dataset, top: str) -> str:
    before, after = (unlearned.sel(mask=mask, set=TARGET) for mask in ("before", top))
    changed = _changed(unlearned, top)
    verb = "takes" if float(before.em_mean - after.em_mean) >= NOTICEABLE else "hardly moves"
    moved = (
        f"the targeted paragraphs from {float(before.em_mean):.1f} to {float(after.em_mean):.1f} tokens of EM (95 % "
        f"interval {float(after.em_low):.1f} to {float(after.em_high):.1f})"
    )
    exact = (
        f"; {percent(float(after.exact_fraction))} of them are still recited in full"
        if "exact_fraction" in unlearned
        else ""
    )
    return f"Editing the {top} of the weights{changed} {verb} {moved}{exact}."


def _changed(unlearned: xr.Dataset, mask: str) -> str:
    if "weights_changed" not in unlearned:
        return ""
    count = f"{int(unlearned.weights_changed.sel(mask=mask)):,}"
    total = unlearned.attrs.get("weights_total")
    return f" ({count} of {int(total):,})" if total is not None else f" ({count})"


def _against_random(unlearned: xr.Dataset, top: str, rival: str) -> str:
    chosen, control = _lost(unlearned, top, TARGET) or 0.0, _lost(unlearned, rival, TARGET) or 0.0
    fact = f"The same number of random weights removes {control:.1f} tokens against {chosen:.1f}"
    if max(chosen, control) < NOTICEABLE:
        return f"{fact}: neither edit removed anything to speak of."
    if control >= 0.8 * chosen:
        return (
            f"{fact}: as much or nearly so, hence this edit does not show that the chosen weights are where the "
            "memory sits."
        )
    if control >= 0.25 * chosen:
        return f"{fact}: the chosen weights do more, but part of the effect needs no choice."
    return f"{fact}: which weights are moved decides."


def _transfer(unlearned: xr.Dataset, top: str) -> list[str]:
    lost, target = _lost(unlearned, top, HELD_OUT), _lost(unlearned, top, TARGET) or 0.0
    if lost is None or target < NOTICEABLE:
        return []
    share = max(lost, 0.0) / target
    verdict = (
        "so the edit removed the ability to recite more than these paragraphs"
        if share >= 0.5
        else "so the edit is in part specific to its targets"
        if share >= 0.15
        else "so the edit is specific to its targets"
    )
    return [f"Memorized paragraphs that were not targeted lose {lost:.1f} tokens, {percent(share)} of that, {verdict}."]


def _cost(unlearned: xr.Dataset, top: str) -> list[str]:
    lost = _lost(unlearned, top, OTHER)
    if lost is None:
        return []
    change, rise = f"Other text changes by {signed(-lost)} tokens of EM", 0.0
    if "nll_mean" in unlearned:
        nll = unlearned.nll_mean.sel(set=OTHER)
        rise = float(nll.sel(mask=top) - nll.sel(mask="before"))
        change += f" and by {signed(rise, 2)} nats of loss a token"
    # Other text has little EM to lose, so its loss and the share that it keeps count as well.
    before = em_of(unlearned, "before", OTHER) or 0.0
    dear = lost > NOTICEABLE or lost > DEAR_SHARE * before or rise > DEAR_NATS
    sentence = change + (": the edit has a price." if dear else ", next to nothing.")
    unseen = _lost(unlearned, top, UNSEEN)
    return [
        sentence + (f" Text that was never seen changes by {signed(-unseen)} tokens." if unseen is not None else "")
    ]


def _figures(unlearned: xr.Dataset) -> list[Block]:
    blocks: list[Block] = [
        Figure(
            figures.em_intervals(unlearned),
            "Mean EM of each set of paragraphs before and after each edit, with 95 % intervals. Lower is the aim for "
            "the targeted set; for all other sets, staying at the grey bar is.",
        )
    ]
    history = next((unlearned[name] for name in ("memorized_nll", "objective") if name in unlearned), None)
    if {TARGET, OTHER} <= set(unlearned.set.values):
        reading = (
            "Upwards: tokens of EM that the targets lost; rightwards: tokens that other text lost. The best edit is "
            "at the top left."
        )
        blocks.append(Figure(figures.trade_off(unlearned), reading, wide=history is None))
    if history is not None:
        reading = (
            "Loss of the targeted paragraphs at each step. Higher means more forgotten; a steeper line means that "
            "this mask needs fewer steps."
        )
        blocks.append(Figure(figures.nll_history(history), reading, wide=len(blocks) == 1))
    if "selected_share" in unlearned:
        title = "Where the chosen weights sit (brighter = more of them)"
        figure = heatmaps.component_heatmap(
            100 * unlearned.selected_share, title=title, unit="% of the mask", kind="plain"
        )
        reading = (
            "Percent of the top mask's weights that lie in each component; all cells add up to 100 %. Brighter means "
            "that more of the weights with the largest gradient are here."
        )
        blocks.append(Figure(figure, reading))
    return blocks


def _numbers(unlearned: xr.Dataset) -> Table:
    known = {
        "em_mean": "EM",
        "em_low": "EM, low",
        "em_high": "EM, high",
        "exact_fraction": "Recited in full",
        "match_fraction": "Match",
        "edit_distance": "Edit distance",
        "nll_mean": "NLL",
        "perplexity": "Perplexity",
        "kl": "KL",
        "changed_top1": "Changed top-1",
    }
    present = {name: title for name, title in known.items() if name in unlearned}
    rows: list[list[Cell]] = []
    for mask in unlearned.mask.values:
        for name in unlearned.set.values:
            one = unlearned.sel(mask=mask, set=name)
            values: list[Cell] = [float(one[column]) for column in present]
            changed = (
                int(one.weights_changed)
                if "weights_changed" in unlearned and np.isfinite(one.weights_changed)
                else None
            )
            rows.append([str(mask), str(name), *values, changed])
    note = (
        "EM in tokens with its 95 % interval. Match: share of tokens that are the model's first choice after the true "
        "text. Edit distance: tokens to change in what the model says on its own to get the text. NLL in nats a token; "
        "perplexity, its exponential. KL from the original model, in nats a token, and the share of first choices that "
        "changed: lower means that the predictions changed less."
    )
    return Table("All edits as numbers", ["Mask", "Set", *present.values(), "Weights changed"], rows, note)
