"""What the original model makes of paragraphs, computed once for all evaluations and attacks of its edits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.hooks import hooked_points
from mechmem.model.load import HookedTransformer
from mechmem.model.public import refuse_hooks

T = TypeVar("T")


class Baseline:
    """Results of one model, kept; give it to `evaluate` and `attack` where several edits of the model are compared.

    Attributes:
        model: the original. Results are computed anew after its weights were changed in place.
    """

    def __init__(self, model: HookedTransformer) -> None:
        """Keep nothing yet.

        Raises:
            InputError: the model has hooks, which may change between two uses.
        """
        refuse_hooks(model, "Baseline")
        self.model = model
        self._kept: dict[tuple[Any, ...], Any] = {}
        self._beside: list[Baseline] = []

    def __repr__(self) -> str:
        return f"Baseline({len(self._kept)} results kept)"

    def once(self, what: str, paragraphs: Paragraphs, settings: Any, compute: Callable[[], T]) -> T:
        """What `compute` returns, from the first call for these paragraphs and settings."""
        digest = hashlib.sha256(paragraphs.tokens.contiguous().cpu().numpy().tobytes()).digest()
        versions = sum(parameter._version for parameter in self.model.parameters())
        key = (what, digest, paragraphs.prefix_len, repr(settings), versions)
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def beside(self, model: HookedTransformer) -> Baseline | None:
        """Where results of a model are kept that all edits are compared with, an oracle; None where it has hooks."""
        if hooked_points(model):
            return None
        for known in self._beside:
            if known.model is model:
                return known
        self._beside.append(Baseline(model))
        return self._beside[-1]


def baseline_of(original: HookedTransformer, baseline: Baseline | None) -> Baseline | None:
    """The caller's baseline, if it is one of this model.

    Raises:
        InputError: it is of another model.
    """
    if baseline is not None and baseline.model is not original:
        raise InputError("the baseline is of another model object; make one with Baseline(original)")
    return baseline
