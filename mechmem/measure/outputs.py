"""What a model predicts and produces, with the hooks that are on it: fast without them, plainly with them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.measure.decode import greedy_continuations
from mechmem.model.forward import continuation_logits
from mechmem.model.hooks import hooked_points
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.load import HookedTransformer


class LeanOutputs:
    """Outputs of a model without hooks."""

    def __init__(self, model: HookedTransformer) -> None:
        self._lean = LeanModel(model)
        self.d_vocab = self._lean.d_vocab

    def columns(self, tokens: Int[Tensor, "paragraph pos"], prefix_len: int) -> Float[Tensor, "paragraph column d"]:
        """What `logits` needs of the columns that score the continuation."""
        with fast_float32(self._lean.device):
            return self._lean.forward(tokens)[:, prefix_len - 1 : -1]

    def logits(self, columns: Float[Tensor, "paragraph column d"]) -> Float[Tensor, "paragraph column d_vocab"]:
        """Logits of these columns."""
        with fast_float32(self._lean.device):
            return self._lean.unembed(columns)

    def greedy(
        self,
        tokens: Int[Tensor, "paragraph pos"],
        prefix_len: int,
        em: Int[np.ndarray, " paragraph"],
        rival: Int[np.ndarray, " paragraph"],
    ) -> Int[np.ndarray, "paragraph column"]:
        """Greedy continuations, of which the leading matches and the token after them are known."""
        return greedy_continuations(self._lean, tokens, prefix_len, em, rival, batch_size=len(tokens))


class HookedOutputs:
    """Outputs of a model with its hooks; every decoded token takes a whole forward."""

    def __init__(self, model: HookedTransformer) -> None:
        self._model = model
        self.d_vocab = model.cfg.d_vocab_out

    def columns(self, tokens: Int[Tensor, "paragraph pos"], prefix_len: int) -> Float[Tensor, "paragraph column d"]:
        """The logits themselves."""
        return continuation_logits(self._model, tokens, prefix_len)

    def logits(self, columns: Float[Tensor, "paragraph column d"]) -> Float[Tensor, "paragraph column d_vocab"]:
        """The columns, which are logits."""
        return columns

    def greedy(
        self,
        tokens: Int[Tensor, "paragraph pos"],
        prefix_len: int,
        em: Int[np.ndarray, " paragraph"],
        rival: Int[np.ndarray, " paragraph"],
    ) -> Int[np.ndarray, "paragraph column"]:
        """As in `LeanOutputs`."""
        produced, matched, rows = tokens.cpu().clone(), torch.as_tensor(em), torch.arange(len(tokens))
        length = produced.shape[1]
        open_rows = rows[matched < length - prefix_len]
        produced[open_rows, prefix_len + matched[open_rows]] = torch.as_tensor(rival)[open_rows].to(produced)
        for pos in range(prefix_len, length):
            later = open_rows[prefix_len + matched[open_rows] < pos]
            if len(later):
                # One more column than is known: the logits of the last but one score it.
                best = continuation_logits(self._model, produced[later, : pos + 1], pos)[:, -1].argmax(-1)
                produced[later, pos] = best.to(produced)
        return produced[:, prefix_len:].numpy()


def outputs_of(model: HookedTransformer) -> LeanOutputs | HookedOutputs:
    """The outputs of a model, hooks included."""
    return HookedOutputs(model) if hooked_points(model) else LeanOutputs(model)
