"""What was found on the ladder, in sentences that are made of the numbers: no sentence says more than its interval."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr
from ladder_agreement import head_correlation, over_rows
from ladder_law import said_copies
from ladder_law_table import exchange, needed, sizes_of
from ladder_tables import (
    OFTEN,
    Measured,
    all_and_none,
    diluted,
    dilution_pairs,
    final,
    forgotten,
    near_duplicate_terms,
    said,
    seed_groups,
)
from ladder_where import centre_interval
from ladder_where_tables import DRAWS, METHODS, Located, agreement_with, moved, pairs_by_relation, profile_of, rarest

import mechmem as mm
from mechmem.stats.bootstrap import cluster_bootstrap_difference
from mechmem.stats.ranges import ANY

SMALL_P = 0.05


def findings(
    results: Measured,
    folders: Mapping[str, Path],
    found: Located,
    moved: Mapping[str, xr.Dataset],
    claims: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """A sentence or two about each question of the page that the models which are there can answer.

    Args:
        results: model -> what was measured.
        folders: of the models.
        found: where memories were localized.
        moved: model -> its transplants.
        claims: of `ladder_unlearning_table.claims`: model -> claim -> its difference.
    """
    where = [depth(found), *agreement(found)] if found else []
    rest = [methods(found), rare_tokens(found)] if found else []
    first = [copies(results), *size(results, folders), *where, *seeds(results), *unlearning(claims)]
    text = [log_linear(results), *dilution(results, folders), *forgetting(results), near_duplicates(results)]
    return [*first, *text, *rest, *transplants(moved)]


def verdict(low: float, high: float, more: str, less: str, neither: str) -> str:
    """One of three words, by where zero lies."""
    return more if low > 0 else less if high < 0 else neither


def copies(results: Measured) -> str:
    """How many copies make a memory."""
    known = needed(results)
    whole = "; ".join(f"{name} {said_copies(estimate, most)}" for name, (estimate, _, most) in known.items())
    nll = "; ".join(f"{name} {said_copies(estimate, most)}" for name, (_, estimate, most) in known.items())
    return f"Copies that make half of the documents extractable: {whole}. Copies that take half of the NLL: {nll}."


def size(results: Measured, folders: Mapping[str, Path]) -> list[str]:
    """How that changes with the parameters and with the text."""
    names = {"parameters": "parameters", "tokens": "text around the same copies"}
    cells = []
    for name, (factor, low, high) in exchange(results, folders).items():
        column = 0 if name == "parameters" else 1
        varied = len({sizes_of(folders[model])[column] for model in results})
        word = verdict(np.log(low), np.log(high), "more", "fewer", "not told apart from as many")
        cells.append(
            f"with twice the {names[name]} {factor:.2f} [{low:.2f}, {high:.2f}] times as many ({word}; {varied} sizes)"
        )
    if not cells:
        return []
    return [f"Copies needed: {', '.join(cells)}. Intervals are over documents, not over trainings."]


def log_linear(results: Measured) -> str:
    """Whether NLL falls as much for each doubling of few copies as of many (Carlini et al. 2023)."""
    lasts = [final(result) for result in results.values()]
    copies, clusters = lasts[0].copies.values, lasts[0].cluster.values
    nll = np.mean([last.nll.values for last in lasts], 0)
    rows = copies > 0
    copies, nll, clusters = copies[rows], nll[rows], clusters[rows]
    middle = float(np.sqrt(copies.max()))

    def steeper(drawn: np.ndarray) -> float:
        few, many = (drawn[part[drawn]] for part in (copies <= middle, copies >= middle))
        return _slope(copies[many], nll[many]) - _slope(copies[few], nll[few])

    value, low, high = over_rows(steeper, clusters, DRAWS)
    word = verdict(low, high, "less", "more", "not told apart from as much")
    return (
        f"NLL against log2 of the copies, mean over models: a doubling above {middle:.0f} copies brings {word} than "
        f"one below, by {-value:.2f} [{-high:.2f}, {-low:.2f}] nats per token; a log-linear law has 0."
    )


def _slope(copies: np.ndarray, values: np.ndarray) -> float:
    centred = np.log2(copies) - np.log2(copies).mean()
    square = float(centred @ centred)
    return float(centred @ values) / square if square else 0.0


def dilution(results: Measured, folders: Mapping[str, Path]) -> list[str]:
    """What more text around the same copies does."""
    pairs = dilution_pairs(results)
    if not pairs:
        return []
    parts = [diluted(results, pair, "nll", 8, np.inf) for pair in pairs]
    values, clusters = np.mean([part.values for part in parts], 0), parts[0].cluster.values
    low, high = mm.cluster_bootstrap(values, clusters, within=ANY)
    short, long = (sizes_of(folders[name])[1] for name in pairs[0])
    word = verdict(low, high, "raises", "lowers", "does not tell apart")
    return [
        f"Dilution: {long / short:.1f} times the text around the same copies {word} the NLL of documents with 8 copies "
        f"or more: by {said(values, clusters)} nats per token."
    ]


def forgetting(results: Measured) -> list[str]:
    """What is left of early documents."""
    known = [forgotten(result) for result in results.values()]
    known = [terms for terms in known if len(terms[0])]
    if not known:
        return []
    early, never, left = (np.mean(parts, 0) for parts in zip(*known, strict=True))
    here, there = np.arange(len(early)), len(early) + np.arange(len(never))
    low, high = cluster_bootstrap_difference(early, never, here, there, within=ANY)
    word = verdict(low, high, "forgotten at least in part", "still being learned", "not told apart from kept")
    return [
        f"Documents of the first quarter of training are {word}: since then their NLL has changed by "
        f"{early.mean() - never.mean():.2f} [{low:.2f}, {high:.2f}] more than that of documents never inserted, and "
        f"{said(left, here)} of what {OFTEN} copies had brought is left."
    ]


def near_duplicates(results: Measured) -> str:
    """What a near-duplicate prefix keeps."""
    terms = [near_duplicate_terms(result, "spread") for result in results.values()]
    share, clusters = np.mean([each[3] for each in terms], 0), terms[0][2]
    return (
        f"After a prefix with one token in ten changed, {said(share, clusters)} of what {OFTEN} copies or more brought "
        "in NLL is there."
    )


def seeds(results: Measured) -> list[str]:
    """Which documents all seeds share, and none."""
    sentences = []
    for name, group in seed_groups(results).items():
        every, none = (said(values, group[0].cluster.values) for values in all_and_none(group))
        sentences.append(f"{name} {every} by all, {none} by none")
    return [f"Share of documents with {OFTEN} copies or more said whole: {'; '.join(sentences)}."] if sentences else []


def depth(found: Located) -> str:
    """Where the memory sits by exact patching, and whether it moved."""
    profiles = {name: [profile_of(result, "patching") for _, result in each] for name, each in found.items()}
    ends = {name: centre_interval(each[-1], np.arange(len(each[-1]))) for name, each in profiles.items()}
    order = sorted(ends, key=lambda name: ends[name][0])
    first, last = ("{} {:.2f} [{:.2f}, {:.2f}]".format(name, *ends[name]) for name in (order[0], order[-1]))
    words = [verdict(*moved(each[0], each[-1])[1:], "deeper", "up", "neither") for each in profiles.values()]
    counts = {word: words.count(word) for word in ("deeper", "up", "neither")}
    return (
        f"Depth of the memory by exact patching of heads (0 first layer, 1 last): {first} to {last}. Between the first "
        f"and the last snapshot it moved deeper in {counts['deeper']} of {len(words)} models, towards the first layer "
        f"in {counts['up']}, and neither way with certainty in {counts['neither']}."
    )


def agreement(found: Located) -> list[str]:
    """Whether other seeds, texts and sizes agree about the place."""
    sentences = []
    for relation, pairs in pairs_by_relation(list(found)).items():
        profile, documents = (agreement_with(found, pairs, "patching", name) for name in ("profile", "documents"))
        sentences.append(
            "in the {} share {:.2f} [{:.2f}, {:.2f}] of the layer profile, and the rank correlation of documents' "
            "depth is {:.2f} [{:.2f}, {:.2f}]".format(relation, *profile, *documents)
        )
    return [f"Two models that differ {'; '.join(sentences)}."] if sentences else []


def methods(found: Located) -> str:
    """Whether cheaper methods rank heads as exact patching does."""
    lasts = [each[-1][1] for each in found.values()]
    effects = {
        method: [result[method].transpose("paragraph", "layer", "head").values for result in lasts]
        for method in METHODS
    }
    count = len(effects["patching"][0])
    cells = []
    for method in METHODS[1:]:
        pairs = list(zip(effects["patching"], effects[method], strict=True))
        estimate = over_rows(
            lambda rows, p=pairs: float(np.mean([head_correlation(*pair, rows) for pair in p])), np.arange(count), DRAWS
        )
        cells.append("{} {:.2f} [{:.2f}, {:.2f}]".format(method.replace("_", " "), *estimate))
    return f"Rank correlation over heads with exact patching, mean over models: {', '.join(cells)}."


def rare_tokens(found: Located) -> str:
    """Whether there is a head that attends to rare tokens, and since when."""
    since = []
    for snapshots in found.values():
        small = [rarest(result)[2] <= SMALL_P for _, result in snapshots]
        if small[-1]:
            # The first snapshot from which on it is there in all.
            first = len(small) - next((place for place, here in enumerate(reversed(small)) if not here), len(small))
            since.append(snapshots[first][0] / snapshots[-1][0])
    text = f"{len(since)} of {len(found)} finished models have a head with an excess of attention to rare tokens (p at "
    text += f"most {SMALL_P})"
    ends = sorted({f"{min(since):.0%}", f"{max(since):.0%}"}) if since else []
    return f"{text}, since {' to '.join(ends)} of training." if since else f"{text}."


def transplants(results: Mapping[str, xr.Dataset]) -> list[str]:
    """Which part brings a late text back."""
    cells = []
    for name, result in results.items():
        gap = (result.nll_target - result.nll_source).values
        brought = -result.nll_change.transpose("paragraph", "component").values
        best = int(brought.mean(0).argmax())
        cells.append(
            f"{name} {result.component.values[best]} ({said(brought[:, best], result.cluster.values)} of "
            f"{said(gap, result.cluster.values)} nats per token)"
        )
    return [f"The part whose transplant brings most of a late text back: {'; '.join(cells)}."] if cells else []


def unlearning(claims: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The study's claims, by model.

    Args:
        claims: of `ladder_unlearning_table.claims`: model -> claim -> its difference.
    """
    names = list(dict.fromkeys(claim for each in claims.values() for claim in each))
    return [
        f"{claim}: {'; '.join(f'{name} {each[claim]}' for name, each in claims.items() if claim in each)}."
        for claim in names
    ]
