"""The next token of every row: the model's first choice, or one drawn with the row's own random numbers."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.hashes import row_hashes
from mechmem.detect.decoding.decoding_settings import DecodingSettings


class TokenChoice:
    """Chooses the next token of rows that decode together.

    The random numbers of a row follow from the seed and its prompt alone: batches and other rows do not change them.
    """

    def __init__(self, settings: DecodingSettings, prompt: Int[Tensor, "row pos"]):
        self._settings = settings
        self._random: list[np.random.Generator] = []
        if settings.temperature > 0:
            keys = row_hashes(prompt.cpu().numpy())
            self._random = [np.random.default_rng((settings.seed, int(key))) for key in keys]

    @torch.no_grad()
    def __call__(self, logits: Float[Tensor, "row d_vocab"]) -> Int[Tensor, " row"]:
        """A token for every row, on the logits' device."""
        if not self._random:
            return logits.argmax(-1)
        # A draw is compared with sums of probabilities: in float64 they are the same whatever the batch.
        scaled = logits.double() / self._settings.temperature
        ids = None
        if self._settings.top_k is not None:
            scaled, ids = scaled.topk(min(self._settings.top_k, scaled.shape[1]), -1)
        reached = scaled.softmax(-1).cumsum(-1)
        draws = torch.tensor([random.random() for random in self._random], dtype=torch.float64, device=logits.device)
        places = torch.searchsorted(reached, draws[:, None] * reached[:, -1:], right=True)
        places = places.clamp(max=reached.shape[1] - 1)
        return (places if ids is None else ids.gather(1, places))[:, 0]

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Keep these rows, in this order."""
        if self._random:
            self._random = [self._random[int(row)] for row in rows]
