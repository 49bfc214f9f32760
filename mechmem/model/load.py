"""A checkpoint folder, a hub name or the bundled model as a HookedTransformer.

`HookedTransformer.from_pretrained` asks the network and refuses folders; this reads the files itself, offline, and
holds little more in memory than the model.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer as HookedTransformer
from transformer_lens import HookedTransformerConfig as HookedTransformerConfig
from transformers import PreTrainedConfig

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.model.architectures import Converter, hooked_settings
from mechmem.model.checkpoint import Checkpoint, all_finite
from mechmem.model.config_file import read_config
from mechmem.model.devices import check_device, check_dtype
from mechmem.model.folding import fold_input, fold_layer, fold_output
from mechmem.model.hub import find_folder
from mechmem.model.room import check_room
from mechmem.model.stored_tensors import stored_tensors
from mechmem.model.tokenizer import known_ids, load_tokenizer
from mechmem.model.vocabulary import exclude_surplus

Processing = Literal["raw", "folded"]
DEPRECATION = (
    r"HookedTransformer is deprecated and will be removed in 4\.0\. Use TransformerBridge\.boot_transformers\(\.\.\.\) "
    r"instead, then call enable_compatibility_mode\(\) for HookedTransformer-equivalent numerics\.$"
)

_BUILDING = threading.Lock()


@dataclass(frozen=True)
class Provenance:
    """Where a model's weights came from. An edited copy keeps its original's.

    Attributes:
        name: what was asked for: "bundled", a folder or a hub name.
        folder: where the files lie; None if there are none.
        processing: "raw" (the checkpoint's weights) or "folded" (LayerNorm folded, weights centred).
        weight_hash: 16 hexadecimal digits over the stored tensors, the same for raw and folded.
    """

    name: str
    folder: Path | None
    processing: str
    weight_hash: str


def load_model(
    name: str | Path = "bundled",
    *,
    processing: Processing = "raw",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> HookedTransformer:
    """Load GPT-Neo, GPT-NeoX/Pythia or GPT-2 from safetensors.

    A folder needs `config.json`, `model.safetensors` (or its parts with `model.safetensors.index.json`) and, to read
    text, `tokenizer.json` or `vocab.json` with `merges.txt`; without a tokenizer one warning says so and the model
    works on ids. Nothing outside the folder is read. No BOS token is ever prepended.

    The model may have up to 1,023 ids more than its tokenizer: published GPT-NeoX models and many fine-tuned ones are
    padded. These surplus ids get probability 0, so that they are never chosen; the other probabilities sum to 1.
    transformers counts surplus ids in, so its NLL is higher by -log(1 - their share of the probability). `export`
    writes the padded checkpoint as it was.

    Args:
        name: "bundled", a folder, or a hub name such as "EleutherAI/gpt-neo-125m".
        processing: "raw" keeps the checkpoint's weights; "folded" folds LayerNorm into the next weights, centres
            what writes to the residual stream and the unembedding, and moves value biases into output biases: the
            same log-probabilities, other logits and weights.
        device: where the weights go, "cpu" or "cuda" for example; None: a GPU if there is one.
        dtype: of the weights; folding is done in float32.

    Returns:
        A model in evaluation mode; `provenance` tells where it came from.

    Raises:
        InputError: an unknown processing; a device that torch cannot use here; a dtype that is not one of four
            floating-point ones; no such folder or hub model, or no network; no or unsupported `config.json`; pickled
            weights (never opened); damaged, missing, surplus, misshapen, NaN or infinite tensors, or weights that the
            dtype cannot hold; more weights than fit in memory; a tokenizer that does not fit the vocabulary.
    """
    check_choice("processing", processing, Processing)
    check_device(device)
    check_dtype(dtype)
    if not isinstance(name, str | Path) or not str(name).strip():
        raise InputError(
            f"got {name!r} as name; need 'bundled', a folder or a hub name such as EleutherAI/gpt-neo-125m"
        )
    folder = find_folder(str(name))
    # What is stored comes first: it bounds what config.json can describe.
    stored = stored_tensors(folder)
    config = read_config(folder, stored)
    cfg = _hooked_config(folder, config, processing, device, dtype)
    converter = Converter(config, cfg)
    checkpoint = Checkpoint(folder, config, converter, stored)
    tokenizer = load_tokenizer(folder, config, vocabulary=cfg.d_vocab)
    check_room(converter, cfg.n_layers, dtype, torch.device(cfg.device or "cpu"))
    cfg.model_name = Path(name).name  # a hub model's folder is named by its commit
    model = empty_model(cfg)
    _fill(model, _parts(checkpoint, converter, cfg, folded=processing == "folded"))
    if tokenizer is not None:
        exclude_surplus(model, known_ids(tokenizer))
    model.tokenizer = tokenizer
    # Not set_tokenizer: it loads a second tokenizer, one that adds BOS, and asks the network for it.
    model.cfg.tokenizer_prepends_bos = tokenizer is not None and len(tokenizer.encode("")) > 0
    known = Provenance(str(name), folder, processing, checkpoint.weight_hash())
    model.mechmem_provenance = known  # pyright: ignore[reportArgumentType]
    return model.eval()


def provenance(model: HookedTransformer) -> Provenance:
    """Where the weights of a model, or of the model it is an edited copy of, came from.

    Raises:
        InputError: `load_model` did not load it.
    """
    known = getattr(model, "mechmem_provenance", None)
    if not isinstance(known, Provenance):
        raise InputError("got a model of unknown origin; need one that load_model loaded")
    return known


def _hooked_config(
    folder: Path, config: PreTrainedConfig, processing: str, device: str | torch.device | None, dtype: torch.dtype
) -> HookedTransformerConfig:
    try:
        settings: dict[str, Any] = hooked_settings(config)
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'}: {error}; load a model without it") from None
    settings |= {
        "device": None if device is None else str(device),
        "dtype": dtype,
        "default_prepend_bos": False,
        "init_weights": False,
        "normalization_type": "LN" if processing == "raw" else "LNPre",
    }
    return HookedTransformerConfig(**settings)


def empty_model(cfg: HookedTransformerConfig) -> HookedTransformer:
    """A model whose large tensors are allocated but not yet touched, so that they cost no memory."""
    # The process has one list of warning filters: threads that change it at the same time would leave it changed.
    with _BUILDING, warnings.catch_warnings():
        # The version that is pinned is the last that has this class; its replacement ignores edits of attention.
        warnings.filterwarnings("ignore", message=DEPRECATION, category=DeprecationWarning)
        return HookedTransformer(cfg)


def _parts(
    checkpoint: Checkpoint, converter: Converter, cfg: HookedTransformerConfig, *, folded: bool
) -> Iterator[dict[str, Float[Tensor, " ..."]]]:
    """The model's tensors under their final names, one part after the other; the largest come first.

    1. Each embedding by itself. 2. Final norm and unembedding. 3. Each layer.
    """
    architecture = converter.architecture
    for name in architecture.inputs:
        tensors = converter.convert_outer({name: checkpoint.read(name)})
        yield fold_input(tensors) if folded else tensors
    tensors = converter.convert_outer({name: checkpoint.read(name) for name in architecture.output})
    yield fold_output(tensors) if folded else tensors
    del tensors
    for layer in range(cfg.n_layers):
        stored = {name: checkpoint.read(name) for name in converter.layer_names(layer)}
        tensors = converter.convert_layer(layer, stored)
        del stored
        tensors = fold_layer(tensors, cfg) if folded else tensors
        yield {name.replace("blocks.0.", f"blocks.{layer}.", 1): tensor for name, tensor in tensors.items()}


@torch.no_grad()
def _fill(model: HookedTransformer, parts: Iterator[dict[str, Float[Tensor, " ..."]]]) -> None:
    parameters = dict(model.named_parameters())
    # The one parameter that no family has; it is zero unless folding fills it.
    left = set(parameters) - {"unembed.b_U"}
    parameters["unembed.b_U"].zero_()
    for part in parts:
        for name, tensor in part.items():
            parameters[name].copy_(tensor)
            # What was read is finite; products by folding, and narrower types, may not be.
            if not all_finite(parameters[name]):
                raise InputError(
                    f"'{name}' would hold {float(tensor.abs().max()):.1e}, and the largest number of "
                    f"{parameters[name].dtype} is {torch.finfo(parameters[name].dtype).max:.1e}: load the model with "
                    "processing='raw' and dtype=torch.float32"
                )
            left.discard(name)
    assert not left, f"got no values for {sorted(left)}"
