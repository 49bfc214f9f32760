"""The hooked model's own forward of new tokens alone, with its keys and values kept."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from mechmem.data.errors import InputError
from mechmem.model.attention_scores import ADVICE, NonfiniteScores, wide_scores
from mechmem.model.forward import unembed_columns


class KeptForward:
    """Rows that decode together in a HookedTransformer; hooks on it act as usual, on the new positions.

    Every token counts as text: nothing is padded, so no position is masked although its token may be the tokenizer's
    padding token.
    """

    def __init__(self, model: HookedTransformer, rows: int):
        self._model = model
        self._kept = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, rows)

    @torch.no_grad()
    def forward(self, tokens: Int[Tensor, "row new"]) -> Float[Tensor, "row new d_model"]:
        """The residual stream at the end of the body, of tokens that follow those that were run.

        Raises:
            InputError: the result has NaN or infinite values.
        """
        model = self._model
        tokens = tokens.to(model.cfg.device)
        # Without a mask TransformerLens asks the tokenizer which tokens are padding.
        options: dict[str, Any] = {
            "attention_mask": torch.ones_like(tokens),
            "past_kv_cache": self._kept,
            "return_type": None,
            "stop_at_layer": model.cfg.n_layers,
        }
        try:
            with wide_scores(model):
                residual = model(tokens, **options)
        except NonfiniteScores as error:
            raise InputError(f"layer {error.layer} gives NaN or infinite values; need finite ones: {ADVICE}") from error
        assert isinstance(residual, Tensor)
        if not bool(residual.isfinite().all()):
            raise InputError(f"the model gives NaN or infinite values; need finite ones: {ADVICE}")
        return residual

    @torch.no_grad()
    def unembed(self, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Logits of one position of every row."""
        return unembed_columns(self._model, residual[:, None])[:, 0]

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        for entry in self._kept.entries:
            entry.past_keys, entry.past_values = entry.past_keys[rows], entry.past_values[rows]
        self._kept.previous_attention_mask = self._kept.previous_attention_mask[rows]
