"""Tables of the ladder's page: each is made of the rungs that are there, and holds intervals by cluster."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from ladder_agreement import document_agreement, over_rows
from ladder_corpus import BASE, CONDITIONS, NEAR_DUPLICATE

import mechmem as mm
from mechmem.measure.scaling_curves import slope_terms
from mechmem.stats.bootstrap import cluster_bootstrap_difference
from mechmem.stats.ranges import ANY, NOT_NEGATIVE, SHARE, Range, range_of, token_range

# Tokens of a continuation.
LENGTH = 50
# Copies from which on a document is called inserted often.
OFTEN = 64
DRAWS = 500
Measured = Mapping[str, xr.Dataset]


def chosen(result: xr.Dataset, **columns: str) -> xr.Dataset:
    """Rows with these values in their columns; the documents themselves, spread over training, unless said."""
    wanted = {"text_of": BASE, "condition": "spread"} | columns
    keep = np.all([result[name].values == value for name, value in wanted.items()], axis=0)
    return result.isel(paragraph=np.flatnonzero(keep))


def said(values: np.ndarray, clusters: np.ndarray, digits: int = 2, chance: bool = False, within: Range = ANY) -> str:
    """A mean and its interval by cluster, within what it can be, or a dash. A chance has powers of ten."""
    if not len(values):
        return "–"
    low, high = mm.cluster_bootstrap(values, clusters, within=SHARE if chance else within)
    if chance:
        return f"{np.mean(values):.{digits}e} [{low:.{digits}e}, {high:.{digits}e}]"
    return f"{np.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def row(cells: list[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def head(cells: list[str]) -> list[str]:
    """The first two lines of a table."""
    return [row(cells), row(["---"] * len(cells))]


def by_copies(results: Measured, measure: str, digits: int) -> list[str]:
    """One measure of finished models against copies, a column for each rung; prefix 50.

    Args:
        results: rung -> what was measured.
        measure: "whole" (share with the whole continuation), em, nll or p_extractable.
        digits: of the numbers.
    """
    lines, last = head(["copies", *results]), {name: final(result) for name, result in results.items()}
    for copies in np.unique(np.concatenate([result.copies.values for result in last.values()])):
        cells = []
        for result in last.values():
            here = result.isel(paragraph=np.flatnonzero(result.copies.values == copies))
            chance, within = measure == "p_extractable", SHARE if measure == "whole" else range_of(measure, LENGTH)
            cells.append(said(values_of(here, measure), here.cluster.values, digits, chance, within))
        lines.append(row([str(copies), *cells]))
    return lines


def final(result: xr.Dataset, prefix_len: int = 50) -> xr.Dataset:
    """The finished model's rows about documents that were spread over training."""
    return chosen(result).isel(step=-1).sel(prefix_len=prefix_len)


def values_of(result: xr.Dataset, measure: str) -> np.ndarray:
    """A measure of each paragraph; "whole" says whether EM is the whole continuation."""
    return result.em.values == 50 if measure == "whole" else result[measure].values


def laws(results: Measured) -> list[str]:
    """What a doubling of the copies, and of the prefix, changes."""
    lines = head(["model", "EM per doubling of copies", "NLL per doubling of copies", "EM per doubling of the prefix"])
    for name, result in results.items():
        last = final(result)
        trained = last.isel(paragraph=np.flatnonzero(last.copies.values > 0))
        doublings = np.log2(trained.copies.values)
        cells = [
            said(slope_terms(doublings, values_of(trained, measure)), trained.cluster.values, 2)
            for measure in ("em", "nll")
        ]
        often = at_least(chosen(result).isel(step=-1), OFTEN)
        lengths = np.log2(often.prefix_len.values)
        centred = lengths - lengths.mean()
        slopes = often.em.transpose("paragraph", "prefix_len").values @ centred / (centred**2).sum()
        lines.append(row([name, *cells, said(slopes, often.cluster.values)]))
    return lines


def conditions(results: Measured) -> list[str]:
    """NLL against the share of training, by condition: what early copies leave, what late ones bring."""
    lines = []
    for name, result in results.items():
        shares = result.step.values / result.step.values[-1]
        lines += [f"**{name}**", "", *head(["condition", *(f"{share:.0%}" for share in shares)])]
        for condition in CONDITIONS:
            here = chosen(result, condition=condition).sel(prefix_len=50)
            here = here.isel(paragraph=np.flatnonzero(here.copies.values == OFTEN))
            nll, clusters = here.nll.transpose("step", "paragraph").values, here.cluster.values
            cells = [said(values, clusters, within=NOT_NEGATIVE) for values in nll]
            lines.append(row([condition, *cells]))
        lines.append("")
    return lines


def by_prefix(results: Measured) -> list[str]:
    """EM of documents inserted often, against the tokens of the prefix before the same continuation."""
    lengths = sorted({int(length) for result in results.values() for length in result.prefix_len.values})
    lines = head(["model", *map(str, lengths)])
    for name, result in results.items():
        often = at_least(chosen(result).isel(step=-1), OFTEN)
        known = often.prefix_len.values.tolist()
        em, clusters, within = often.em, often.cluster.values, token_range(LENGTH)
        cells = [
            said(em.sel(prefix_len=length).values, clusters, 1, within=within) if length in known else "–"
            for length in lengths
        ]
        lines.append(row([name, *cells]))
    return lines


def at_least(result: xr.Dataset, copies: int) -> xr.Dataset:
    """Rows of documents with at least so many copies."""
    return result.isel(paragraph=np.flatnonzero(result.copies.values >= copies))


def forgotten(result: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What has become of early documents, inserted often, since their quarter of training ended.

    Returns:
        NLL changes of them, [document], of documents never inserted, [document], and the share of what the copies had
        brought that is left at the end, of each early document its term, [document].
    """
    shares = result.step.values / result.step.values[-1]
    end = int(np.flatnonzero(shares >= CONDITIONS["early"][1] - 0.01)[0])
    early = at_least(chosen(result, condition="early").sel(prefix_len=50), OFTEN).nll.transpose("step", "paragraph")
    spread = chosen(result).sel(prefix_len=50)
    never = spread.isel(paragraph=np.flatnonzero(spread.copies.values == 0)).nll.transpose("step", "paragraph")
    changes = [each.values[-1] - each.values[end] for each in (early, never)]
    if not early.size:
        return changes[0], changes[1], np.array([])
    then, now = (never.values[step].mean() - early.values[step] for step in (end, -1))
    return changes[0], changes[1], ratio_terms(now, then)


def ratio_terms(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The ratio of two means as a mean of one number for each document, which vary as the ratio does."""
    ratio = numerator.mean() / denominator.mean()
    return ratio + (numerator - ratio * denominator) / denominator.mean()


def forgetting(results: Measured) -> list[str]:
    """Early documents after their quarter of training; the control is documents that were never inserted."""
    lines = head(["model", "NLL, early", "NLL, never inserted", "difference", "share left of what copies brought"])
    for name, result in results.items():
        early, never, left = forgotten(result)
        if len(early):
            here, there = np.arange(len(early)), len(early) + np.arange(len(never))
            cells = [said(early, here), said(never, there), _difference(early, never), said(left, here)]
            lines.append(row([name, *cells]))
    return lines


def _difference(some: np.ndarray, others: np.ndarray) -> str:
    here, there = np.arange(len(some)), len(some) + np.arange(len(others))
    low, high = cluster_bootstrap_difference(some, others, here, there, within=ANY)
    return f"{some.mean() - others.mean():.2f} [{low:.2f}, {high:.2f}]"


def dilution_pairs(results: Measured) -> list[tuple[str, str]]:
    """Models on the shorter text, each with the one of the same shape and seed on the longer."""
    pairs = [(name, name.replace("-small-", "-large-")) for name in results if "-small-" in name]
    return [(short, long) for short, long in pairs if long in results]


def diluted(results: Measured, pair: tuple[str, str], measure: str, low: int, high: float) -> xr.DataArray:
    """The longer text's value minus the shorter one's, of each document with low copies or more and below high."""
    short, long = (final(results[name]) for name in pair)
    rows = np.flatnonzero((short.copies.values >= low) & (short.copies.values < high))
    values = values_of(long, measure)[rows] - values_of(short, measure)[rows]
    return short.nll.isel(paragraph=rows).copy(data=values)


def dilution(results: Measured) -> list[str]:
    """What three times the text costs: the longer text's value minus the shorter one's, same document and shape."""
    lines = head(["models", "copies", "EM", "NLL"])
    for pair in dilution_pairs(results):
        for low, high in ((1, 8), (8, OFTEN), (OFTEN, np.inf)):
            parts = {measure: diluted(results, pair, measure, low, high) for measure in ("em", "nll")}
            if not parts["em"].size:
                continue
            cells = [
                said(part.values, part.cluster.values, within=range_of(f"{measure}_change", LENGTH))
                for measure, part in parts.items()
            ]
            lines.append(row([f"{pair[1]} − {pair[0]}", f"{low} to {int(parts['em'].copies.max())}", *cells]))
    return lines


def seed_groups(results: Measured) -> dict[str, list[xr.Dataset]]:
    """Shape and text -> documents inserted often in the finished models of all seeds, where there are two or more."""
    found: dict[str, list[xr.Dataset]] = {}
    for name, result in results.items():
        found.setdefault(name.rsplit("-", 1)[0], []).append(at_least(final(result), OFTEN))
    return {name: group for name, group in found.items() if len(group) > 1}


def seeds_share(results: Measured) -> list[str]:
    """Of the documents inserted often, the shares that all seeds say whole, some, and none.

    "all, by chance": what the share of all would be if, of documents with the same copies, each seed took its own at
    random. The correlation is that of NLL with the mean of its copies taken off.
    """
    lines = head(["model", "all seeds", "all, by chance", "some", "none", "rank correlation of NLL, same copies"])
    for name, group in seed_groups(results).items():
        clusters, copies = group[0].cluster.values, group[0].copies.values
        whole = np.stack([values_of(each, "whole") for each in group])
        every, none = all_and_none(group)
        chance = over_rows(lambda rows, w=whole, c=copies: by_chance(w[:, rows], c[rows]), clusters, DRAWS)
        first, second = (without_means(each.nll.values, copies) for each in group[:2])
        value, low, high = document_agreement(first, second, clusters)
        cells = [said(every, clusters), "{:.2f} [{:.2f}, {:.2f}]".format(*chance), said(~every & ~none, clusters)]
        lines.append(row([name, *cells, said(none, clusters), f"{value:.2f} [{low:.2f}, {high:.2f}]"]))
    return lines


def all_and_none(group: Sequence[xr.Dataset]) -> tuple[np.ndarray, np.ndarray]:
    """Whether all models say a document whole, and whether none does, [document]."""
    saying = np.add.reduce([values_of(each, "whole").astype(int) for each in group])
    return saying == len(group), saying == 0


def by_chance(whole: np.ndarray, copies: np.ndarray) -> float:
    """The share of documents that all seeds say if, among those of the same copies, each says its own at random."""
    levels = [copies == level for level in np.unique(copies)]
    return float(sum(whole[:, level].mean(1).prod() * level.mean() for level in levels))


def without_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values less the mean of their group."""
    labels, of = np.unique(groups, return_inverse=True)
    return values - (np.bincount(of, values, len(labels)) / np.bincount(of))[of]


def kinds(results: Measured) -> list[str]:
    """Which kinds are remembered: EM and NLL of documents inserted often, less the mean of their copies, all models."""
    lasts = [at_least(final(result), OFTEN) for result in results.values()]
    copies, clusters, kind = (lasts[0][name].values for name in ("copies", "cluster", "source"))
    rest = {
        measure: np.mean([without_means(each[measure].values, copies) for each in lasts], 0)
        for measure in ("em", "nll")
    }
    lines = head(["kind", "documents", "EM against the mean", "NLL against the mean"])
    for name in sorted(np.unique(kind), key=lambda name: rest["nll"][kind == name].mean()):
        here = kind == name
        cells = [
            said(values[here], clusters[here], within=range_of(f"{measure}_change", LENGTH))
            for measure, values in rest.items()
        ]
        lines.append(row([str(name), str(here.sum()), *cells]))
    return lines


def near_duplicate_terms(result: xr.Dataset, condition: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of documents inserted often: EM after the own prefix, after one with other tokens in its slots, clusters, share.

    The share is what the other prefix keeps of what the copies brought, in NLL against documents never inserted; of
    each document its term.
    """
    last = result.isel(step=-1).sel(prefix_len=50)
    base, other = (at_least(chosen(last, condition=condition, text_of=text), OFTEN) for text in (BASE, NEAR_DUPLICATE))
    never = chosen(last)
    without = float(never.nll.values[never.copies.values == 0].mean())
    if not base.sizes["paragraph"]:
        return base.em.values, other.em.values, base.cluster.values, base.em.values
    share = ratio_terms(without - other.nll.values, without - base.nll.values)
    return base.em.values, other.em.values, base.cluster.values, share


def near_duplicates(results: Measured) -> list[str]:
    """EM after the document's own prefix and after one with other tokens in its slots, inserted often."""
    lines = head(["model", "condition", "EM, own prefix", "EM, other slots", "difference", "share of the memory kept"])
    for name, result in results.items():
        for condition in ("spread", "changed slots"):
            base, other, clusters, share = near_duplicate_terms(result, condition)
            if not len(base):
                continue
            ranges = [range_of(measure, LENGTH) for measure in ("em", "em", "em_change")]
            columns = zip((base, other, other - base), ranges, strict=True)
            cells = [said(values, clusters, 1, within=within) for values, within in columns]
            lines.append(row([name, condition, *cells, said(share, clusters)]))
    return lines
