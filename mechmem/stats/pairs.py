"""Pairs of a memorized and another paragraph, for patching between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mechmem.data.argument_checks import check_paragraphs
from mechmem.data.bounds import Rate, Seed, checked
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.stats.matching import match as matched

SIDES = ("clean", "corrupt")


@checked
def pairs(
    memorized: Paragraphs,
    other: Paragraphs,
    *,
    match: Sequence[str] = ("rarity", "source"),
    caliper: Rate | None = None,
    seed: Seed = 0,
) -> tuple[Paragraphs, Paragraphs]:
    """Pair each memorized paragraph with another of its own that is alike in the named columns.

    `worst_perturbations` makes the other kind of pair, of a paragraph and itself with one token replaced. Here the two
    differ everywhere, so a patch moves all that tells them apart: matching leaves out what is not memory.

    Args:
        memorized: with the columns of `match`.
        other: paragraphs that are not memorized, of the same length and prefix, with the same columns.
        match: names of columns, as `on` of `mechmem.match`; `with_covariates` adds `prefix_nll`, `rarity` and
            `repeated_run`. Empty: pairs at random, never of one cluster.
        caliper: largest difference in every column of numbers, in pooled SDs; None: any.
        seed: of ties and of random pairs.

    Returns:
        `clean` (memorized) and `corrupt` (other), row by row. Both have the column `pair`: the memorized paragraph's
        id. Memorized paragraphs without a partner are left out.

    Raises:
        InputError: as `mechmem.match`, or there is no pair.
    """
    for name, paragraphs in (("memorized", memorized), ("other", other)):
        check_paragraphs(name, paragraphs)
    if len(match):
        corrupt, _ = matched(memorized, other, match, caliper=caliper, seed=seed)
        place = {paragraph: row for row, paragraph in enumerate(memorized.ids.tolist())}
        clean = memorized.select([place[paragraph] for paragraph in corrupt.column("matched_to").tolist()])
    else:
        clean, corrupt = _at_random(memorized, other, seed)
    return clean.with_columns(pair=clean.ids), corrupt.with_columns(pair=clean.ids)


def read_pairs(path: str | Path) -> tuple[Paragraphs, Paragraphs]:
    """Read pairs from one file of paragraphs, such as a parquet with the rows of both sides.

    Args:
        path: a file that `Paragraphs.load` reads, with the columns `pair` (any label, one row a side) and `side`
            ("clean" or "corrupt").

    Returns:
        `clean` and `corrupt`, row by row, in the order of the clean rows.

    Raises:
        InputError: a column is missing, a side has another name, or a pair has not exactly one row of each side.
    """
    paragraphs = Paragraphs.load(path)
    for name in ("pair", "side"):
        if not paragraphs.has(name):
            raise InputError(f"{path}: has no column '{name}'; need pair (a label) and side (clean or corrupt)")
    sides, labels = paragraphs.column("side").tolist(), paragraphs.column("pair").tolist()
    if unknown := sorted({str(side) for side in sides} - set(SIDES)):
        raise InputError(f"{path}: has the sides {', '.join(unknown)}; need clean and corrupt")
    rows: dict[str, dict[object, int]] = {side: {} for side in SIDES}
    for row, (side, label) in enumerate(zip(sides, labels, strict=True)):
        if label in rows[side]:
            raise InputError(f"{path}: pair {label!r} has two {side} rows; need one of each side")
        rows[side][label] = row
    if alone := rows["clean"].keys() ^ rows["corrupt"].keys():
        raise InputError(f"{path}: pair {next(iter(alone))!r} has one side; need a clean and a corrupt row")
    order = list(rows["clean"])
    clean, corrupt = (paragraphs.select([rows[side][label] for label in order]) for side in SIDES)
    return clean, corrupt


def _at_random(memorized: Paragraphs, other: Paragraphs, seed: int) -> tuple[Paragraphs, Paragraphs]:
    shapes = [(paragraphs.tokens.shape[1], paragraphs.prefix_len) for paragraphs in (memorized, other)]
    if shapes[0] != shapes[1]:
        raise InputError(f"got memorized of length and prefix {shapes[0]} and other of {shapes[1]}; need one shape")
    free = np.ones(len(other), dtype=bool)
    if memorized.has("cluster") and other.has("cluster"):
        free = ~np.isin(other.column("cluster"), memorized.column("cluster"))
    order = np.random.default_rng(seed).permutation(np.flatnonzero(free))
    count = min(len(memorized), len(order))
    if count == 0:
        raise InputError(
            f"got {len(memorized)} memorized and {len(order)} other paragraphs of other clusters; need at least 1 of "
            "both"
        )
    return memorized.select(np.arange(count)), other.select(order[:count])
