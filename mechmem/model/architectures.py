"""The families that can be loaded: transformers' configuration read into TransformerLens', weights converted in parts.

TransformerLens has converters, but they take a whole model in memory. Here a transformers model of one layer without
storage stands in for it: tensors of one part (an embedding, a layer) are put in, converted and taken out again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_gpt2_weights,
    convert_neo_weights,
    convert_neox_weights,
)
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    PreTrainedConfig,
)

from mechmem.data.choices import shown

# Names that mean the same function in both libraries.
ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu")


@dataclass(frozen=True)
class Architecture:
    """What sets a family apart.

    Attributes:
        config_class: transformers' configuration.
        causal_class: name of transformers' language model, which TransformerLens calls the original architecture.
        settings: configuration -> the entries of TransformerLens' that belong to this family. Raises ValueError with
            a sentence about what is not supported.
        convert: TransformerLens' converter, (transformers model, configuration) -> its own names and shapes.
        body: prefix of every name but the unembedding's; a base model saved alone lacks it.
        layers: prefix of the layers' names.
        inputs: names of the embeddings, converted one at a time.
        output: names of the final norm and the unembedding, converted together; the unembedding is last.
    """

    config_class: type[PreTrainedConfig]
    causal_class: str
    settings: Callable[[Any], dict[str, Any]]
    convert: Callable[[Any, HookedTransformerConfig], dict[str, Tensor]]
    body: str
    layers: str
    inputs: tuple[str, ...]
    output: tuple[str, ...]


def _neo(config: Any) -> dict[str, Any]:
    return {
        "d_mlp": config.intermediate_size or 4 * config.hidden_size,
        "act_fn": config.activation_function,
        "eps": config.layer_norm_epsilon,
        "use_attn_scale": False,
        "use_local_attn": True,
        "attn_types": list(config.attention_layers),
        "window_size": config.window_size,
    }


def _neox(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    d_head = config.hidden_size // config.num_attention_heads
    # transformers rounds down, TransformerLens' own reading of the configuration rounds to the nearest.
    rotary_dim = int(d_head * rope.get("partial_rotary_factor", 1.0))
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rotary scaling of type '{rope['rope_type']}' is not supported, only 'default'")
    if rotary_dim == 0 or rotary_dim % 2:
        raise ValueError(f"{rotary_dim} rotary dimensions a head are not supported, only even numbers of at least 2")
    if not config.attention_bias:
        raise ValueError("attention_bias false is not supported, only true")
    return {
        "d_mlp": config.intermediate_size,
        "act_fn": config.hidden_act,
        "eps": config.layer_norm_eps,
        "parallel_attn_mlp": config.use_parallel_residual,
        "positional_embedding_type": "rotary",
        "rotary_dim": rotary_dim,
        "rotary_base": rope["rope_theta"],
        "rotary_adjacent_pairs": False,
    }


def _gpt2(config: Any) -> dict[str, Any]:
    if config.add_cross_attention:
        raise ValueError("add_cross_attention true is not supported, only false")
    return {
        "d_mlp": config.n_inner or 4 * config.hidden_size,
        "act_fn": config.activation_function,
        "eps": config.layer_norm_epsilon,
        "use_attn_scale": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
    }


_EMBEDDINGS = ("transformer.wte.weight", "transformer.wpe.weight")
_OUTPUT = ("transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight")
_NEOX_OUTPUT = ("gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias", "lm_head.weight")
ARCHITECTURES = {
    "gpt_neo": Architecture(
        GPTNeoConfig,
        "GPTNeoForCausalLM",
        _neo,
        convert_neo_weights,
        "transformer.",
        "transformer.h.",
        _EMBEDDINGS,
        _OUTPUT,
    ),
    "gpt_neox": Architecture(
        GPTNeoXConfig,
        "GPTNeoXForCausalLM",
        _neox,
        convert_neox_weights,
        "gpt_neox.",
        "gpt_neox.layers.",
        ("gpt_neox.embed_in.weight",),
        _NEOX_OUTPUT,
    ),
    "gpt2": Architecture(
        GPT2Config,
        "GPT2LMHeadModel",
        _gpt2,
        convert_gpt2_weights,
        "transformer.",
        "transformer.h.",
        _EMBEDDINGS,
        _OUTPUT,
    ),
}


def hooked_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """The entries of a HookedTransformerConfig for a transformers configuration of a supported family.

    Raises:
        ValueError: a setting that TransformerLens does not compute, in a sentence.
    """
    architecture = ARCHITECTURES[config.model_type]
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(f"hidden size {config.hidden_size} is no multiple of {config.num_attention_heads} heads")
    settings = {
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_head": config.hidden_size // config.num_attention_heads,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "d_vocab": config.vocab_size,
        "normalization_type": "LN",
        "original_architecture": architecture.causal_class,
        **architecture.settings(config),
    }
    if settings["act_fn"] not in ACTIVATIONS:
        raise ValueError(f"activation {shown(settings['act_fn'])} is not supported, only {', '.join(ACTIVATIONS)}")
    return settings


class Converter:
    """Converts tensors with transformers' names to TransformerLens' names and shapes, one part of the model at a time.

    Attributes:
        architecture: the family.
        outer: every name outside the layers -> its shape.
        layer: every name inside a layer, without the layer's prefix -> its shape.
        made_up: TransformerLens' names of biases that the family does not have; conversion gives zeros.
    """

    def __init__(self, config: PreTrainedConfig, cfg: HookedTransformerConfig):
        self.architecture = ARCHITECTURES[config.model_type]
        self._stand_in: torch.nn.Module = _without_storage(config)
        self._cfg = copy.copy(cfg)
        self._cfg.n_layers = 1
        self._cfg.dtype = torch.float32
        first = f"{self.architecture.layers}0."
        shapes = {name: tuple(tensor.shape) for name, tensor in self._stand_in.state_dict().items()}
        self.layer = {name.removeprefix(first): shape for name, shape in shapes.items() if name.startswith(first)}
        self.outer = {name: shape for name, shape in shapes.items() if not name.startswith(first)}
        self.made_up = {name for name, tensor in self._convert({}).items() if tensor.device.type != "meta"}

    def layer_names(self, layer: int) -> dict[str, str]:
        """Every full name in a layer -> its name without the layer's prefix."""
        return {f"{self.architecture.layers}{layer}.{name}": name for name in self.layer}

    def convert_outer(self, tensors: dict[str, Float[Tensor, " ..."]]) -> dict[str, Float[Tensor, " ..."]]:
        """TransformerLens' tensors for some of the tensors outside the layers."""
        converted = self._convert(tensors)
        return {
            name: tensor
            for name, tensor in converted.items()
            if not name.startswith("blocks.") and name not in self.made_up and tensor.device.type != "meta"
        }

    def convert_layer(self, layer: int, tensors: dict[str, Float[Tensor, " ..."]]) -> dict[str, Float[Tensor, " ..."]]:
        """TransformerLens' tensors of one layer, under names of layer 0, from its tensors under their full names.

        Biases that the family does not have come as zeros; `made_up` names them.
        """
        short = self.layer_names(layer)
        converted = self._convert({f"{self.architecture.layers}0.{short[name]}": t for name, t in tensors.items()})
        return {name: tensor for name, tensor in converted.items() if name.startswith("blocks.")}

    def _convert(self, tensors: dict[str, Float[Tensor, " ..."]]) -> dict[str, Float[Tensor, " ..."]]:
        self._stand_in.load_state_dict(tensors, strict=False, assign=True)
        converted = self.architecture.convert(self._stand_in, self._cfg)
        self._stand_in.to("meta")
        return {name: tensor.detach() for name, tensor in converted.items()}


def _without_storage(config: PreTrainedConfig) -> torch.nn.Module:
    changed = {"num_hidden_layers": 1, "tie_word_embeddings": False}
    if config.model_type == "gpt_neo":
        changed |= {"attention_types": [[["global"], 1]], "attention_layers": ["global"]}
    settings = config.to_dict()
    settings.pop(config.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    with torch.device("meta"):
        one = type(config).from_dict({**settings, **changed})
        return AutoModelForCausalLM.from_config(one, attn_implementation="eager")
