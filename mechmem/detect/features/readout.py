"""The weights that read activations: the unembedding for the lens, and the heads' output matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mechmem.model.forward import unembed_columns
from mechmem.model.lean.model import LeanModel
from mechmem.model.load import HookedTransformer


@dataclass(frozen=True)
class Readout:
    """How activations of a model are read.

    Attributes:
        unembed: the final norm and the unembedding, [row, d_model] -> [row, d_vocab].
        w_o: a layer -> its heads' output matrices, [head, d_head, d_model].
    """

    unembed: Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row d_vocab"]]
    w_o: Callable[[int], Float[Tensor, "head d_head d_model"]]


def lean_readout(lean: LeanModel) -> Readout:
    """The weights of a model that runs without hooks."""
    return Readout(
        lambda residual: lean.unembed(lean.final_norm(residual)),
        lambda layer: rearrange(
            lean.layers[layer].w_o, "(head d_head) d_model -> head d_head d_model", head=lean.n_heads
        ),
    )


def hooked_readout(model: HookedTransformer) -> Readout:
    """The weights of a model as they are; hooks on its final norm and unembedding act on what is read."""
    return Readout(
        lambda residual: unembed_columns(model, residual[:, None])[:, 0],
        lambda layer: model.blocks[layer].attn.W_O.detach(),  # pyright: ignore[reportAttributeAccessIssue]
    )
