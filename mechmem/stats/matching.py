"""Controls that are as easy as the memorized paragraphs, so that a difference between the two is one of memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from mechmem.data.argument_checks import check_paragraphs
from mechmem.data.bounds import Count, Rate, Seed, checked
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.stats.assignment import NEAREST, assign, points
from mechmem.stats.balance import balance, is_categorical


@checked
def match(
    memorized: Paragraphs,
    candidates: Paragraphs,
    on: Sequence[str] = ("prefix_nll", "rarity", "source", "repeated_run"),
    *,
    ratio: Count = 1,
    caliper: Rate | None = None,
    seed: Seed = 0,
) -> tuple[Paragraphs, xr.Dataset]:
    """Choose controls for memorized paragraphs: alike in all that is named, and not memorized.

    1. Candidates in a cluster of any memorized paragraph are left out: near-duplicates share the memory.
    2. Columns of words (or bools) agree exactly. Columns of numbers are divided by their pooled SD and compared by
       Mahalanobis distance with the pooled covariance; directions in which nothing varies are left out.
    3. Every memorized paragraph gets `ratio` candidates of its own; as many paragraphs as possible are matched and,
       among such choices, the sum of distances is smallest (a sparse linear assignment).
    4. A paragraph that cannot have all of its controls has none, so that all controls count alike; it is named in the
       balance. Of several, those that could get fewest go.

    The assignment is optimal while a category has at most 500 wanted controls; beyond that only each paragraph's 500
    nearest candidates are looked at, again for those left over, and the balance says that it is approximate.
    A comparison of matched sets speaks of the matched memorized paragraphs, and removes only what was matched on.

    Args:
        memorized: with the columns of `on`; `cluster` is used where it is known.
        candidates: paragraphs that are not memorized, with the same columns.
        on: names of columns; `with_covariates` adds `prefix_nll`, `rarity` and `repeated_run`.
        ratio: controls of each memorized paragraph.
        caliper: largest allowed difference in every column of numbers, in pooled SDs (0.2 is usual); None: any.
        seed: of the order of candidates, which settles ties.

    Returns:
        The controls, ordered by memorized paragraph and then by distance, with column `matched_to`: the id of the
        memorized paragraph. And a Dataset: what `balance` describes [covariate, when], `controls` [paragraph] (of each
        memorized paragraph, by its id: `ratio`, or 0 where it is unmatched), and in attrs what was done (`caliper`
        only where one was given).

    Raises:
        InputError: a column is missing, mixed or holds missing values; a paragraph is in both sets; too few
            candidates; no pair at all; or a ratio, caliper or prefix that cannot be meant.
    """
    check_paragraphs("memorized", memorized)
    check_paragraphs("candidates", candidates)
    _check(memorized, candidates, on)
    first = {name: _column(memorized, "memorized", name) for name in on}
    second = {name: _column(candidates, "candidate", name) for name in on}
    for name in on:
        if is_categorical(first[name]) != is_categorical(second[name]):
            raise InputError(
                f"column '{name}' is {first[name].dtype} in the memorized and {second[name].dtype} in the candidates; "
                "need numbers in both or words in both: write it anew in one of them"
            )
    eligible, clusters = _other_clusters(memorized, candidates)
    if eligible.sum() < ratio * len(memorized):
        raise InputError(
            f"got {eligible.sum()} candidates ({(~eligible).sum()} more share a cluster with a memorized paragraph); "
            f"need {ratio} for each of {len(memorized)} memorized paragraphs: give more candidates or a lower ratio"
        )
    order = np.random.default_rng(seed).permutation(np.flatnonzero(eligible))
    chosen, approximate = _assigned(first, second, order, ratio, caliper)
    found = chosen[:, 0] >= 0
    if not found.any():
        raise InputError(
            f"no memorized paragraph has {ratio} candidates of its own {[n for n in on if is_categorical(first[n])]} "
            f"within a caliper of {caliper}; need at least one pair: widen the caliper or match on fewer columns"
        )
    controls = chosen[found].ravel()
    matched = candidates.select(controls).with_columns(matched_to=np.repeat(memorized.ids[found], ratio))
    after = {n: v[found] for n, v in first.items()}, {n: v[controls] for n, v in second.items()}
    result = balance((first, second), after)
    result["controls"] = ("paragraph", found * ratio, {"units": "paragraphs", "long_name": "controls of each"})
    result = result.assign_coords(paragraph=memorized.ids)
    return matched, result.assign_attrs(
        ({} if caliper is None else {"caliper": caliper}),
        ratio=ratio,
        seed=seed,
        assignment=f"approximate: {NEAREST} nearest candidates of each" if approximate else "optimal",
        clusters=clusters,
        unmatched_count=int((~found).sum()),
    )


def _assigned(
    first: dict[str, np.ndarray],
    second: dict[str, np.ndarray],
    order: Int[np.ndarray, " candidate"],
    ratio: int,
    caliper: float | None,
) -> tuple[Int[np.ndarray, "paragraph ratio"], bool]:
    """Candidates of each memorized paragraph, -1 where it has none, and whether the assignment is approximate."""
    numbers = [name for name in first if not is_categorical(first[name])]
    one, other = points(_matrix(first, numbers), _matrix(second, numbers))
    chosen = np.full((len(one), ratio), -1)
    approximate = False
    for rows, pool in _strata(first, second, order):
        picks = assign(one.select(rows), other.select(pool), ratio, caliper)
        chosen[rows] = np.where(picks < 0, -1, pool[picks])
        approximate |= min(len(rows) * ratio, len(pool)) > NEAREST
    return chosen, approximate


def _matrix(columns: dict[str, np.ndarray], names: list[str]) -> Float[np.ndarray, "paragraph covariate"]:
    count = len(next(iter(columns.values())))
    return np.stack([columns[name] for name in names], axis=1) if names else np.zeros((count, 0))


def _strata(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray], order: Int[np.ndarray, " candidate"]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of the memorized and of the candidates (in `order`) for each combination of categories that both have."""
    one, other = (
        list(zip(*[side[n].tolist() for n in first if is_categorical(first[n])], strict=True)) or [()] * count
        for side, count in ((first, len(next(iter(first.values())))), (second, len(next(iter(second.values())))))
    )
    members: dict[tuple, tuple[list[int], list[int]]] = {}
    for row, key in enumerate(one):
        members.setdefault(key, ([], []))[0].append(row)
    for row in order.tolist():
        if other[row] in members:
            members[other[row]][1].append(row)
    return [(np.array(rows), np.array(pool)) for rows, pool in members.values() if pool]


def _other_clusters(memorized: Paragraphs, candidates: Paragraphs) -> tuple[Bool[np.ndarray, " candidate"], str]:
    for paragraphs, name in ((memorized, "memorized paragraphs"), (candidates, "candidates")):
        if not paragraphs.has("cluster"):
            return np.ones(len(candidates), dtype=bool), f"not compared: the {name} have no column 'cluster'"
    shared = np.isin(candidates.column("cluster"), memorized.column("cluster"))
    return ~shared, f"{shared.sum()} candidates in a cluster of a memorized paragraph were left out"


def _column(paragraphs: Paragraphs, side: str, name: str) -> np.ndarray:
    """A column of words, bools or float64, without gaps."""
    if not paragraphs.has(name):
        known = [] if paragraphs.table is None else paragraphs.table.column_names
        raise InputError(
            f"the {side} paragraphs have no column '{name}', only {known}; need all of on=: add it with "
            "with_covariates(paragraphs, model=..., unigram_counts=...) or with_columns, or leave it out of on="
        )
    values = paragraphs.column(name)
    if values.ndim == 1 and is_categorical(values):
        return values
    numbers = values.astype(np.float64) if values.ndim == 1 and values.dtype.kind in "iuf" else None
    missing = sum(v is None for v in values) if numbers is None else int((~np.isfinite(numbers)).sum())
    if numbers is None or missing:
        raise InputError(
            f"column '{name}' of the {side} paragraphs is {values.dtype} with {missing} of {len(values)} values "
            "missing or not finite; need numbers or words without gaps: select the rows that have them"
        )
    return numbers


def _check(memorized: Paragraphs, candidates: Paragraphs, on: Sequence[str]) -> None:
    if isinstance(on, str) or len(on) == 0 or len(set(on)) < len(on):
        raise InputError(f"got on={on!r}; need a list of different columns' names, for example ['prefix_nll']")
    if len(memorized) == 0 or len(candidates) == 0:
        raise InputError(
            f"got {len(memorized)} memorized paragraphs and {len(candidates)} candidates; need at least 1 of both"
        )
    shapes = [(paragraphs.tokens.shape[1], paragraphs.prefix_len) for paragraphs in (memorized, candidates)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"got memorized paragraphs of length and prefix {shapes[0]} and candidates of {shapes[1]}; need one "
            "shape: covariates of texts of different lengths cannot be compared"
        )
    rows = [{row.tobytes() for row in paragraphs.tokens.cpu().numpy()} for paragraphs in (memorized, candidates)]
    if rows[0] & rows[1]:
        raise InputError(
            f"got {len(rows[0] & rows[1])} paragraphs that are in both sets; need candidates that are not memorized: "
            "take them from the other paragraphs of `split`"
        )
