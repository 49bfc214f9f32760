"""Pairs of runs that are compared: checked once, for patching and for its approximations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Int
from torch import Tensor

from mechmem.data.bounds import Index
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.metrics import columns_of
from mechmem.measure.worst_pairs import compare_pairs
from mechmem.model.forward import check_fit
from mechmem.model.lean.weights import unsupported
from mechmem.model.load import HookedTransformer

OneDirection = Literal["noising", "denoising"]
Direction = Literal[OneDirection, "mean"]
ScoredAt = Literal["continuation", "impact"] | list[Index]


@dataclass(frozen=True)
class Pairs:
    """The run that is patched and the run that patches come from.

    Attributes:
        clean, corrupt: tokens, [pair, pos].
        columns: logit columns that are scored, [pair, column].
        direction: "noising": the clean run is patched with the corrupt one's activations; "denoising": the reverse;
            "mean": both, with the base and the source of noising.
        ids: of the clean paragraphs, [pair].
    """

    clean: Int[Tensor, "pair pos"]
    corrupt: Int[Tensor, "pair pos"]
    columns: Int[Tensor, "pair column"]
    direction: Direction
    ids: np.ndarray

    @property
    def base(self) -> Int[Tensor, "pair pos"]:
        """Tokens of the run that is patched."""
        return self.corrupt if self.direction == "denoising" else self.clean

    @property
    def source(self) -> Int[Tensor, "pair pos"]:
        """Tokens of the run that the activations come from."""
        return self.clean if self.direction == "denoising" else self.corrupt

    def select(self, rows: slice) -> Pairs:
        """Some of the pairs."""
        return Pairs(self.clean[rows], self.corrupt[rows], self.columns[rows], self.direction, self.ids[rows])

    def towards(self, direction: Direction) -> Pairs:
        """The same pairs, patched in this direction."""
        return replace(self, direction=direction)

    def true(self, which: Int[Tensor, "pair pos"]) -> Int[Tensor, "pair column"]:
        """The tokens of one side that the columns score."""
        return which.gather(1, self.columns + 1)


def check_pairs(
    model: HookedTransformer,
    clean: Paragraphs,
    corrupt: Paragraphs,
    direction: Direction,
    scored: ScoredAt,
) -> Pairs:
    """Refuse what cannot be compared, before anything is computed.

    Raises:
        InputError: an unknown direction or position; pairs of unequal length or that differ nowhere; "impact" where a
            pair's continuation is the same; a model of another kind.
    """
    for paragraphs in (clean, corrupt):
        check_fit(model, paragraphs)
    if clean.tokens.shape != corrupt.tokens.shape or clean.prefix_len != corrupt.prefix_len:
        raise InputError(
            f"clean is {list(clean.tokens.shape)} with prefix {clean.prefix_len} and corrupt "
            f"{list(corrupt.tokens.shape)} with prefix {corrupt.prefix_len}; need pairs of one length: cut or "
            "choose them alike"
        )
    same = (clean.tokens == corrupt.tokens).all(-1)
    if bool(same.any()):
        raise InputError(
            f"the two paragraphs of pair {int(same.nonzero()[0])} are equal, so patching could change nothing; leave "
            "it out"
        )
    check_choice("direction", direction, Direction)
    reason = unsupported(model)
    if reason:
        raise InputError(f"{reason}; need a GPT-Neo, GPT-2 or GPT-NeoX: patch this model with TransformerLens' hooks")
    _check_scored(clean, corrupt, scored)
    columns = columns_of(clean.tokens, corrupt.tokens, clean.prefix_len, scored)
    return Pairs(clean.tokens, corrupt.tokens, columns, direction, clean.ids)


def scored_count(paragraphs: Paragraphs, scored: ScoredAt) -> int:
    """How many logit columns of a pair are scored."""
    if isinstance(scored, list):
        return len(scored)
    return paragraphs.continuation_len if scored == "continuation" else 1


def check_perturbed(clean: Paragraphs, corrupt: Paragraphs, pos: str) -> None:
    """Refuse pairs without a perturbed token where that is what is patched.

    Raises:
        InputError: `pos` is "perturbed", and a pair's prefixes do not differ in exactly one token.
    """
    if pos == "perturbed":
        compare_pairs(clean, corrupt)


def _check_scored(clean: Paragraphs, corrupt: Paragraphs, scored: ScoredAt) -> None:
    length = clean.tokens.shape[1]
    if isinstance(scored, list):
        if not scored or not all(1 <= position < length for position in scored):
            raise InputError(
                f"got scored positions {scored}; need token positions from 1 to {length - 1}: the first token is "
                "predicted by nothing"
            )
    elif scored == "impact":
        same = ~(clean.continuation != corrupt.continuation).any(-1)
        if bool(same.any()):
            raise InputError(
                f"the two continuations of pair {int(same.nonzero()[0])} are equal, so no position is impacted; need "
                "pairs whose continuations differ, as worst_perturbations gives, or scored='continuation'"
            )
    elif scored != "continuation":
        raise InputError(f"got scored {scored!r}; need 'continuation', 'impact' or a list of token positions")
