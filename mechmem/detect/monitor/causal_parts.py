"""Where transformers' own models keep the parts that a monitor hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mechmem.data.errors import InputError


@dataclass(frozen=True)
class Names:
    """Dotted names of a family's parts.

    Attributes:
        blocks: the list of layers.
        norm: the final norm.
        attention: in a layer, the module that returns (output, pattern).
        out: in a layer, the product that takes all heads' outputs side by side.
        mlp_out: in a layer, the product that takes the neurons.
    """

    blocks: str
    norm: str
    attention: str
    out: str
    mlp_out: str


# By the `model_type` of the configuration.
FAMILIES = {
    "gpt_neo": Names("transformer.h", "transformer.ln_f", "attn.attention", "attn.attention.out_proj", "mlp.c_proj"),
    "gpt2": Names("transformer.h", "transformer.ln_f", "attn", "attn.c_proj", "mlp.c_proj"),
    "gpt_neox": Names(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "attention", "attention.dense", "mlp.dense_4h_to_h"
    ),
}


@dataclass(frozen=True)
class Parts:
    """The modules of one model, layer by layer."""

    blocks: tuple[nn.Module, ...]
    attention: tuple[nn.Module, ...]
    out: tuple[nn.Module, ...]
    mlp_out: tuple[nn.Module, ...]
    norm: nn.Module
    unembedding: nn.Module

    def unembed(self, residual: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_vocab"]:
        """Logits of the residual stream: the final norm and the unembedding, without their hooks."""
        return self.unembedding.forward(self.norm.forward(residual))

    def w_o(self, heads: int) -> Callable[[int], Float[Tensor, "head d_head d_model"]]:
        """A layer -> its heads' output matrices."""

        def matrices(layer: int) -> Tensor:
            weight: Any = self.out[layer].weight
            # A Linear has [d_model, d_in], transformers' Conv1D its transpose.
            weight = weight.detach().T if isinstance(self.out[layer], nn.Linear) else weight.detach()
            return weight.reshape(heads, -1, weight.shape[1])

        return matrices


def parts_of(model: Any) -> Parts:
    """The parts of a transformers model.

    Raises:
        InputError: not a causal language model of a family that is known here.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    names = FAMILIES.get(str(kind))
    unembedding = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if names is None or unembedding is None or not hasattr(model, "generate"):
        raise InputError(
            f"got {type(model).__name__} as model; need a HookedTransformer, or one of transformers' own "
            "of the families GPT-Neo, GPT-2 and GPT-NeoX: AutoModelForCausalLM.from_pretrained(name)"
        )
    blocks = tuple(_part(model, names.blocks))
    return Parts(
        blocks,
        tuple(_part(block, names.attention) for block in blocks),
        tuple(_part(block, names.out) for block in blocks),
        tuple(_part(block, names.mlp_out) for block in blocks),
        _part(model, names.norm),
        unembedding,
    )


def _part(owner: Any, name: str) -> Any:
    return reduce(getattr, name.split("."), owner)
