"""The five sentences that a report begins with: what, how much, where, at what price, how sure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from mechmem.report.page import Answer
from mechmem.report.sections.attacks import strongest_attack
from mechmem.report.sections.detection import while_it_speaks
from mechmem.report.sections.removal import (
    HELD_OUT,
    ORIGINAL,
    OTHER,
    SAME,
    TARGETS,
    em_of,
    first_edit,
    random_pairs,
)
from mechmem.report.sections.where import most_needed
from mechmem.report.sections.wording import best_heads, percent, plural, signed
from mechmem.report.study_files import StudyFiles
from mechmem.stats.bootstrap import cluster_bootstrap

BASIS = (
    "In brackets: 95 % intervals, by clusters of near-identical paragraphs. EM (exact match) counts "
    "the tokens that the model gets right before its first mistake. {seed}The numbers are about these paragraphs."
)
# Paragraphs that a group by occurrences must have to be named.
FEWEST = 30


def five_answers(study: StudyFiles) -> list[Answer]:
    """What was memorized, how much, where it sits, what removing it costs, and how far all this can be trusted."""
    return [
        Answer("What", _what(study), "memorized"),
        Answer("How much", _how_much(study), "memorized"),
        Answer("Where", _where(study), "where"),
        Answer("At what price", _price(study), "removal"),
        Answer("How sure", _sure(study), "removal"),
    ]


def summary(study: StudyFiles) -> list[Answer]:
    """The five answers, and with a detector how early it notices a recitation."""
    found = study.detection
    more = [] if found is None else [Answer("While it speaks", while_it_speaks(found), "detection")]
    return [*five_answers(study), *more]


def basis(study: StudyFiles) -> str:
    """What the sentences rest on."""
    seed = None if study.manifest is None else study.manifest.get("seed")
    return BASIS.format(seed="" if seed is None else f"One run, seed {seed}. ")


def _exact(study: StudyFiles) -> np.ndarray | None:
    em = study.column("em")
    return None if em is None or study.paragraphs is None else em == study.paragraphs.continuation_len


def _what(study: StudyFiles) -> str:
    exact = _exact(study)
    if exact is None:
        return "Not measured yet: the study folder holds no scored paragraphs."
    if not exact.any():
        return "Nothing: the model continues no paragraph word for word."
    parts = [part for part in (_by_kind(study, exact), _by_count(study, exact)) if part]
    if not parts:
        return f"{plural(int(exact.sum()), 'paragraph')}; the study folder does not say of which kind."
    return f"{'; '.join(parts)}."


def _by_kind(study: StudyFiles, exact: np.ndarray) -> str:
    source = study.column("source")
    if source is None:
        return ""
    kinds, index = np.unique(source.astype(str), return_inverse=True)
    if len(kinds) < 2:
        return ""
    share = np.bincount(index, exact) / np.bincount(index)
    most, least = int(share.argmax()), int(share.argmin())
    told = [
        f"{kinds[kind]} ({percent(share[kind])} of {plural(int((index == kind).sum()), 'paragraph')}; "
        f"{_ends(_share_interval(study, exact, index == kind), 'percent')})"
        for kind in (most, least)
    ]
    return f"Most often {told[0]}, least often {told[1]}"


def _by_count(study: StudyFiles, exact: np.ndarray) -> str:
    count = study.counts()
    if count is None or (count == 1).sum() < FEWEST:
        return ""
    steps = [2**power for power in range(1, 16) if (count >= 2**power).sum() >= FEWEST]
    if not steps:
        return ""
    # The first from which on nine tenths are memorized, or the last.
    often = next((step for step in steps if exact[count >= step].mean() >= 0.9), steps[-1])
    where = "corpus" if study.column("seen") is None else "training text"
    once, many = exact[count == 1].mean(), exact[count >= often].mean()
    return (
        f"of text that occurs once in the {where} {percent(once)} is memorized, of text that occurs {often} times or "
        f"more {percent(many)}"
    )


def _how_much(study: StudyFiles) -> str:
    exact = _exact(study)
    if exact is None or study.paragraphs is None or not len(exact):
        return "Not measured yet: the study folder holds no scored paragraphs."
    given, length = study.paragraphs.prefix_len, study.paragraphs.continuation_len
    clusters = study.column("cluster")
    groups = (
        "" if clusters is None else f", in {plural(len(np.unique(clusters[exact])), 'cluster')} of near-identical text"
    )
    return (
        f"Given the first {given} tokens, the model continues {int(exact.sum()):,} of "
        f"{plural(len(exact), 'paragraph')} word for word for {length} more: {percent(exact.mean())} "
        f"({_ends(_share_interval(study, exact, np.ones(len(exact), bool)), 'percent')}){groups}."
    )


def _share_interval(study: StudyFiles, exact: np.ndarray, chosen: np.ndarray) -> tuple[float, float]:
    clusters = study.column("cluster")
    labels = np.flatnonzero(chosen) if clusters is None else clusters[chosen]
    return cluster_bootstrap(exact[chosen], labels)


def _where(study: StudyFiles) -> str:
    parts = []
    if study.heads is not None and "memorized" in study.heads.set.values:
        parts.append(_needed(study.heads, study.paragraphs.continuation_len if study.paragraphs is not None else None))
    if study.patching is not None and study.patching.sizes["paragraph"]:
        parts.append(_restored(study.patching))
    if not parts:
        return "Not measured yet: no head was ablated and no paragraph was patched."
    return f"{'; '.join(parts)}."


def _needed(heads: xr.Dataset, full: int | None) -> str:
    name, one = most_needed(heads)
    ends = _ends((-float(one.em_change_high), -float(one.em_change_low)), "tokens") if "em_change_low" in one else ""
    average = -float(heads.em_change.sel(set="memorized").mean())
    of = "" if full is None else f" of {full}"
    given = f"{ends}; the average head: {average:.1f}" if ends else f"the average head: {average:.1f}"
    return (
        f"Attention head {name} is needed most: without it, memorized text loses {-float(one.em_change):.1f}{of} "
        f"tokens of EM ({given})"
    )


def _restored(patching: xr.Dataset) -> str:
    rise = patching.resid_pre.attrs["base"] - patching.resid_pre.attrs["source"]
    fall = -patching.z.transpose("paragraph", "layer", "head", "pos").fillna(0).sum("pos")
    (name, mean), *_ = best_heads(fall.mean("paragraph"), 1)
    layer, head = (int(part) for part in name[1:].split("H"))
    values = fall.sel(layer=layer, head=head).values / rise
    pairs = plural(len(values), "pair")
    # One pair alone says nothing about how pairs vary.
    if len(values) > 1:
        pairs = f"{_ends(cluster_bootstrap(values, np.arange(len(values))), 'percent')}, {pairs}"
    return (
        f"restoring the output of {name} alone undoes {percent(mean / rise)} ({pairs}) of the loss that one replaced "
        "prefix token causes"
    )


def _price(study: StudyFiles) -> str:
    unlearned = study.unlearned
    if unlearned is None:
        return "Not measured yet: nothing was unlearned."
    edit = first_edit(unlearned)
    before, after = (unlearned.sel(edit=name, set=TARGETS) for name in (ORIGINAL, edit))
    count = f"{int(unlearned.attrs['targets'])} targets" if "targets" in unlearned.attrs else "targets"
    parts = [
        f"{edit[:1].upper()}{edit[1:]}: changing {int(after.weights_changed):,} of "
        f"{int(unlearned.attrs['weights_total']):,} weights takes the {count} from {float(before.em):.1f} to "
        f"{float(after.em):.1f} tokens of EM ({_ends((float(after.em_low), float(after.em_high)), 'tokens')})"
    ]
    if HELD_OUT in unlearned.set.values:
        parts[0] += f" and memorized text that was not targeted to {em_of(unlearned, edit, HELD_OUT):.1f}"
    if OTHER in unlearned.set.values:
        kl = unlearned.sel(edit=edit, set=OTHER)
        change = float(kl.em - unlearned.em.sel(edit=ORIGINAL, set=OTHER))
        parts.append(
            f"other text changes by {signed(change)} tokens of EM and a KL of {float(kl.kl):.3f} nats per token "
            f"({float(kl.kl_low):.3f} to {float(kl.kl_high):.3f})"
        )
    return f"{'; '.join(parts)}."


def _sure(study: StudyFiles) -> str:
    parts = [*_guesses(study), *_control(study), *_attack(study)]
    if not parts:
        return "Not known yet: no control and no attack was run."
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _guesses(study: StudyFiles) -> list[str]:
    exact, count, related = _exact(study), study.counts(), study.column("cluster_count")
    if exact is None or count is None or study.column("seen") is None:
        return []
    fresh = (count == 0) & ((related == 0) if related is not None else True)
    if not fresh.any():
        return []
    guessed = int((fresh & exact).sum())
    verdict = "so a full match is evidence of memory" if not guessed else "so not every full match is a memory"
    return [
        f"of {plural(int(fresh.sum()), 'paragraph')} unlike any training text the model completes {guessed or 'none'}, "
        f"{verdict}"
    ]


def _control(study: StudyFiles) -> list[str]:
    if study.unlearned is None:
        return []
    pairs = random_pairs(study.unlearned)
    if not pairs:
        return []
    em = study.unlearned.em.sel(set=TARGETS)
    chosen, control = (float(em.sel(edit=ORIGINAL) - em.sel(edit=edit)) for edit in pairs[0])
    verdict = (
        "so removal does not show where the memories are"
        if control >= SAME * chosen
        else "so the choice of weights matters"
    )
    return [f"as many random weights remove {control:.1f} tokens where the chosen ones remove {chosen:.1f}, {verdict}"]


def _attack(study: StudyFiles) -> list[str]:
    if study.attacks is None or study.unlearned is None:
        return []
    edit = first_edit(study.unlearned)
    if edit not in study.attacks.edit.values:
        return []
    found = strongest_attack(study.attacks, edit)
    if found is None:
        return [f"no attack on {edit} recovers a noticeable amount"]
    name, one = found
    ends = _ends((float(one.em_after_low), float(one.em_after_high)), "tokens")
    got = f"{float(one.em_after):.1f} tokens of the targets ({ends})"
    return [f"after {edit}, the strongest attack ({name}) still gets {got}"]


def _ends(ends: Sequence[float], unit: str) -> str:
    scale, sign = (100, " %") if unit == "percent" else (1, "")
    # Adding zero makes 0 of what rounds to -0.
    low, high = (f"{round(scale * end, 1) + 0.0:.1f}".replace("-", "−") for end in ends)
    return f"{low} to {high}{sign}"
