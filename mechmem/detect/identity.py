"""Which model a detector was trained on, and is of use for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.fingerprint import fingerprint
from mechmem.model.load import HookedTransformer

# Rows of the embedding that are compared, spread over the vocabulary.
ROWS = 64
ADVICE = "train one for this model with mechmem.train_detector"


@dataclass(frozen=True)
class Identity:
    """What a model keeps when a few of its weights are edited, and what no other model has.

    Attributes:
        embedding: digest of rows of the token embedding, as float32. Folding the weights changes them.
        layers: of the body.
        d_model: width of the residual stream.
        d_vocab: rows of the embedding.
        dtype: in which the model runs: states of another precision are other states.
        tokenizer: fingerprint (`data.fingerprint`), or None where no tokenizer is known.
    """

    embedding: str
    layers: int
    d_model: int
    d_vocab: int
    dtype: str
    tokenizer: str | None = None

    def check(self, other: Identity) -> None:
        """Refuse a model with which a detector of this identity would mean nothing.

        Args:
            other: of the model that is to run. A tokenizer is compared where both are known.

        Raises:
            InputError: another model, precision or tokenizer.
        """
        shape, came = ((each.layers, each.d_model, each.d_vocab) for each in (self, other))
        if shape != came:
            raise InputError(
                f"got a detector of a model with {shape[0]} layers, width {shape[1]} and {shape[2]:,} tokens for one "
                f"with {came[0]}, {came[1]} and {came[2]:,}; {ADVICE}"
            )
        if None not in (self.tokenizer, other.tokenizer) and self.tokenizer != other.tokenizer:
            raise InputError(
                f"got a detector of a model with the tokenizer {self.tokenizer} for one with {other.tokenizer}; "
                f"{ADVICE}"
            )
        if self.dtype != other.dtype:
            raise InputError(
                f"got a detector of a model in {self.dtype} for one in {other.dtype}, whose states differ; load the "
                f"model in {self.dtype}, or {ADVICE}"
            )
        if self.embedding != other.embedding:
            raise InputError(
                f"got a detector of another model of the same shape (embedding {self.embedding}, this one's is "
                f"{other.embedding}), or of the same weights processed otherwise; {ADVICE}"
            )


def identity_of(
    embedding: Float[Tensor, "d_vocab d_model"], layers: int, dtype: torch.dtype, tokenizer: Any | None = None
) -> Identity:
    """The identity of a model of any class.

    Args:
        embedding: of tokens.
        layers: of the body.
        dtype: in which the model runs.
        tokenizer: its tokenizer, of transformers or of tokenizers; None: not known.
    """
    d_vocab, d_model = embedding.shape
    rows = torch.from_numpy(np.unique(np.linspace(0, d_vocab - 1, ROWS).astype(np.int64)))
    values = embedding.detach()[rows.to(embedding.device)].float().cpu().contiguous().numpy()
    mark = None if tokenizer is None else fingerprint(tokenizer)
    digest = hashlib.sha256(values.tobytes()).hexdigest()[:16]
    return Identity(digest, layers, d_model, d_vocab, str(dtype).removeprefix("torch."), mark)


def model_identity(model: HookedTransformer) -> Identity:
    """The identity of a HookedTransformer."""
    return identity_of(model.W_E, model.cfg.n_layers, model.W_E.dtype, model.tokenizer)
