"""`config.json`, which a stranger may have written: what decides the computation, checked before anything is built.

transformers expands some values (`num_labels`, `attention_types`) into lists while it reads them, and acts on others:
it loads kernels for an attention implementation, a quantizer, or code beside the weights. So only settings that decide
what the model computes are passed on, each checked; those that ask for something else are refused or left out.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval
from transformers import PreTrainedConfig

from mechmem.data.bounds import Count, Rate, Share, check_bounds
from mechmem.data.errors import InputError
from mechmem.model.architectures import ARCHITECTURES
from mechmem.model.json_files import is_file, read_json
from mechmem.model.stored_tensors import StoredTensor, weights_stored

# A published one has two kilobytes.
MOST_BYTES = 2**20
LAYER_TENSORS = 12  # at least, in every family
LONGEST = 2**20  # positions; rotary embeddings have no tensor that says how many there are
WIDEST_WINDOW = 2**31 - 1
ROTARY_BYTES = 2**26
KINDS = ("global", "local")

# Settings of other releases that mean one of a configuration's own.
OLDER = ("attention_layers", "rope_scaling", "rope_theta", "rotary_pct", "rotary_emb_base", "partial_rotary_factor")
SIZES = (
    *("vocab_size", "hidden_size", "n_embd", "max_position_embeddings", "n_positions", "window_size"),
    *("num_layers", "num_hidden_layers", "n_layer", "num_heads", "num_attention_heads", "n_head"),
    *("intermediate_size", "n_inner"),
)
MAY_BE_NULL = ("intermediate_size", "n_inner", "attention_types", "attention_layers", "rope_parameters", "rope_scaling")
RATES = ("layer_norm_epsilon", "layer_norm_eps", "rope_theta", "rotary_emb_base")
SHARES = ("rotary_pct", "partial_rotary_factor")
DROPOUT = Annotated[float, Interval(ge=0, le=1)]
REFUSED = {
    "quantization_config": "the weights are quantized, and only floating-point ones are read: take the original",
    "compression_config": "the weights are compressed, and only floating-point ones are read: take the original",
    "auto_map": "the model is computed by code beside its weights, which is not run: take a model of a known family",
    "per_layer_config": "layers that differ in their sizes are not supported: take a model without them",
    "pruned_heads": "pruned heads are not supported: take the model before pruning",
}


def read_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """The family, and the settings of `config.json` that decide what the model computes, each of its kind.

    Raises:
        InputError: no folder, no or unreadable `config.json`, another family, a value of another kind or out of its
            bounds, or a setting that asks for what is not done here: quantization or code of the checkpoint's own.
    """
    path = folder / "config.json"
    if not is_file(path):
        raise InputError(
            f"{path}: no such file; need a folder that transformers' save_pretrained wrote, with config.json beside "
            "the weights"
        )
    raw = read_json(path, MOST_BYTES)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise InputError(
            f"{path}: model_type is {reprlib.repr(family)}; supported are {', '.join(ARCHITECTURES)}: load a GPT-Neo, "
            "GPT-NeoX/Pythia or GPT-2 checkpoint"
        )
    for name, reason in REFUSED.items():
        if raw.get(name):
            raise InputError(f"{path}: {name} is set; {reason}")
    kind = ARCHITECTURES[family].config_class
    known = {*kind.__annotations__, *kind.attribute_map, *OLDER}
    settings = {name: value for name, value in raw.items() if name in known}
    try:
        return family, {name: _checked(name, value) for name, value in settings.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}; correct it or fetch it again") from None


def read_config(folder: Path, stored: Mapping[str, StoredTensor]) -> PreTrainedConfig:
    """The configuration of a supported family, of which the stored tensors can be.

    Every size is bounded by what is stored, so what is built from it takes no more than the files themselves.

    Args:
        folder: where `config.json` lies.
        stored: the tensors beside it.

    Raises:
        InputError: as `read_settings`, values that transformers refuses, or sizes beyond what is stored.
    """
    path = folder / "config.json"
    family, settings = read_settings(folder)
    kind = ARCHITECTURES[family].config_class
    try:
        layers = _layers(kind, settings)
        if LAYER_TENSORS * layers > max(len(stored), LAYER_TENSORS):
            raise InputError(
                f"it describes {layers:,} layers of at least {LAYER_TENSORS} tensors, and {len(stored):,} tensors are "
                "stored"
            )
        if family == "gpt_neo":
            settings |= _attention(settings, layers)
        config = _built(kind, settings)
        _check_sizes(config, stored)
    except InputError as error:
        raise InputError(f"{path}: {error}; need weights and configuration of one model") from None
    return config


def _checked(name: str, value: Any) -> Any:
    """A setting's value, of its kind; those of no known kind are left to transformers' own types."""
    if value is None and name in MAY_BE_NULL:
        return None
    if name in SIZES:
        return check_bounds(name, value, Count)
    if name in RATES:
        return check_bounds(name, value, Rate)
    if name in SHARES:
        return check_bounds(name, value, Share)
    if name.endswith(("dropout", "pdrop")):
        return check_bounds(name, value, DROPOUT)
    if name in ("rope_parameters", "rope_scaling"):
        return _rope(name, value)
    return value


def _rope(name: str, value: Any) -> dict[str, Any]:
    """Rotary settings; older files call the type `type`."""
    if not isinstance(value, dict):
        raise InputError(f"got {type(value).__name__} as {name}; need an object")
    if not value:
        return {}
    kind = value.get("rope_type", value.get("type", "default"))
    if kind != "default":
        raise InputError(f"rotary scaling of type {str(kind)[:80]!r} is not supported, only 'default'")
    numbers = {key: _checked(key, value[key]) for key in ("rope_theta", "partial_rotary_factor") if key in value}
    return numbers | {"rope_type": "default"}


def _layers(kind: type[PreTrainedConfig], settings: Mapping[str, Any]) -> int:
    own = kind.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    given = [settings[name] for name in (own, "num_hidden_layers") if name in settings]
    return max(given) if given else int(getattr(kind, own))


def _attention(settings: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """GPT-Neo's kinds of attention, expanded here: counts in a file may be of any size."""
    types = settings.get("attention_types") or [[["global", "local"], 12]]
    sentence = f"attention_types is {str(types)[:80]}; need [[kinds, count], ...] of {', '.join(KINDS)}"
    if not isinstance(types, list) or len(types) > layers:
        raise InputError(sentence)
    expanded: list[str] = []
    for item in types:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], list) or not item[0]:
            raise InputError(sentence)
        count = check_bounds("the count of an attention type", item[1], Count)
        if any(each not in KINDS for each in item[0]):
            raise InputError(sentence)
        if len(expanded) + len(item[0]) * count > layers:
            raise InputError(f"attention_types describes more than the {layers:,} layers that there are")
        expanded += item[0] * count
    if len(expanded) != layers:
        raise InputError(f"attention_types describes {len(expanded):,} layers; need {layers:,}")
    own = settings.get("attention_layers")
    if own is not None and own != expanded:
        if not isinstance(own, list) or len(own) != layers or any(each not in KINDS for each in own):
            raise InputError(f"attention_layers is {str(own)[:80]}; need {layers:,} of {', '.join(KINDS)}")
        # transformers takes the longer form where both are there.
        expanded = own
    return {"attention_types": [[expanded, 1]], "attention_layers": expanded}


def _built(kind: type[PreTrainedConfig], settings: dict[str, Any]) -> PreTrainedConfig:
    try:
        config = kind.from_dict(settings)
    except Exception as error:  # whatever transformers makes of a stranger's values
        raise InputError(f"not a usable {kind.model_type} configuration ({_first_line(error)})") from None
    # Its own default may load kernels.
    config._attn_implementation = "eager"
    return config


def _check_sizes(config: PreTrainedConfig, stored: Mapping[str, StoredTensor]) -> None:
    sizes = {
        name: check_bounds(name, getattr(config, name), Count)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    }
    width, layers, positions = sizes["hidden_size"], sizes["num_hidden_layers"], sizes["max_position_embeddings"]
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    held = weights_stored(stored)
    described = layers * (4 * width * width + 2 * width * inner) + sizes["vocab_size"] * width
    # A tensor that is missing has its own sentence; this one is about another order of size.
    if described > 2 * held or sizes["num_attention_heads"] > width:
        raise InputError(
            f"it describes {described:,} weights in {sizes['num_attention_heads']:,} heads of a width of {width:,} "
            f"together, and {held:,} numbers are stored"
        )
    rotary = getattr(config, "rope_parameters", None) is not None
    table = layers * positions * (width // sizes["num_attention_heads"]) * 8 if rotary else 0
    if positions > LONGEST or table > max(ROTARY_BYTES, 4 * held):
        raise InputError(f"max_position_embeddings is {positions:,}, which no model of this size has")
    if getattr(config, "window_size", 1) > WIDEST_WINDOW:
        raise InputError(f"window_size is {getattr(config, 'window_size', 1)}; need at most {WIDEST_WINDOW}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else repr(error)
