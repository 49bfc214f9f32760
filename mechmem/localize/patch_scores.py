"""The metric of patched runs, from where they end."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.localize.metrics import Metric, Scored
from mechmem.localize.patch_pairs import Pairs
from mechmem.model.lean.model import LeanModel


class PatchScores:
    """Scores runs of some pairs at the pairs' columns.

    Args:
        lean: the model.
        pairs: what is scored, and where.
        metric: of the scored columns' logits.
        base: the normalized end of the unpatched run.
    """

    def __init__(self, lean: LeanModel, pairs: Pairs, metric: Metric, base: Float[Tensor, "pair pos d_model"]) -> None:
        self._lean, self._metric, self._base = lean, metric, base
        self._columns = pairs.columns.to(lean.device)
        self._clean, self._corrupt = (pairs.true(side).to(lean.device) for side in (pairs.clean, pairs.corrupt))

    def score(
        self,
        final: Float[Tensor, "row pos d_model"],
        pair: Int[Tensor, " row"],
        start: int = 0,
    ) -> Float[Tensor, " row"]:
        """The metric of each row.

        Args:
            final: the normalized end of the runs, from position `start` on; before it they are the base run's.
            pair: which pair each row belongs to.
            start: position of the first column of `final`.

        Raises:
            InputError: a metric that gives another shape.
        """
        columns = self._columns[pair]
        row = torch.arange(len(final), device=final.device)
        patched = final[row[:, None], (columns - start).clamp(min=0)]
        before = (columns < start)[..., None]
        hidden = torch.where(before, self._base[pair[:, None], columns], patched) if start else patched
        scored = Scored(
            self._lean.unembed(hidden),
            self._clean[pair],
            self._corrupt[pair],
            lambda: self._lean.unembed(self._base[pair[:, None], columns]),
        )
        values = self._metric(scored)
        if values.shape != (len(row),):
            raise InputError(
                f"the metric gave shape {list(values.shape)} for {len(row)} rows; need one number per row: take the "
                "mean over columns in it"
            )
        return values
