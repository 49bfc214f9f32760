"""Compare a loaded model with transformers' own, loaded from the same folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
import xarray as xr
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging as transformers_logging

from mechmem.data.assets import PARAGRAPHS_FILE
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.architectures import ARCHITECTURES, Converter
from mechmem.model.config_file import read_config
from mechmem.model.devices import check_device
from mechmem.model.hub import find_folder
from mechmem.model.load import HookedTransformer, load_model
from mechmem.model.sample_text import TEXT
from mechmem.model.stored_tensors import stored_tensors
from mechmem.model.vocabulary import vocabulary

# Largest difference that rounding in float32 explains. A gradient's is relative to the largest gradient.
TOLERANCE = 1e-4
# (rows, positions): the study's paragraphs, and sequences beyond GPT-Neo's local window of 256 positions.
SIZES = {"short": (4, 100), "long": (2, 384)}
UNITS = {
    "logit_difference": "logits",
    "log_prob_difference": "nats",
    "nll_difference": "nats per token",
    "gradient_difference": "share of the largest gradient",
}
# Folding shifts logits by a constant per position and changes the parameters, so neither is compared.
COMPARED = {"raw": tuple(UNITS), "folded": ("log_prob_difference", "nll_difference")}


def check_model(
    name: str | Path, *, tokens: Int[Tensor, "paragraph pos"] | None = None, device: str | torch.device | None = None
) -> xr.Dataset:
    """Compare `load_model`, raw and folded, with transformers' model of the same folder in float32.

    Args:
        name: "bundled", a folder or a hub name.
        tokens: ids to compare on, concatenated row after row; by default the bundled paragraphs for the bundled
            model, else a text of several kinds, else (no tokenizer) random ids: `attrs["tokens"]` says which.
        device: where both models run; by default a GPU if there is one.

    Returns:
        Dataset [processing, text] with processing "raw" and "folded" and text "short" (100 positions) and "long"
        (384, or the model's context): the largest absolute differences `logit_difference` (after folding logits
        differ by design), `log_prob_difference` over positions and the tokenizer's ids, `nll_difference` over
        positions, and `gradient_difference` of the mean NLL over parameters, as a share of the largest gradient (raw
        only); 0 means equal. `ok` is true where everything compared is at most 1e-4; logits and gradients after folding
        are shown or NaN, and not compared. `attrs["verdict"]` is a sentence.

    Raises:
        InputError: whatever `load_model` refuses, fewer than two tokens, or ids beyond the vocabulary.
    """
    check_device(device)
    folder = find_folder(str(name))
    model = load_model(name, device=device)
    stream, origin = _stream(str(name), model, tokens)
    texts = {text: _cut(stream, rows, min(length, model.cfg.n_ctx)) for text, (rows, length) in SIZES.items()}
    config = read_config(folder, stored_tensors(folder))
    reference = _reference(folder, config, str(model.cfg.device))
    rows: dict[str, list[dict[str, float]]] = {"raw": [_compare(model, reference, ids) for ids in texts.values()]}
    for row, ids in zip(rows["raw"], texts.values(), strict=True):
        row["gradient_difference"] = _gradient_difference(model, reference, Converter(config, model.cfg), ids)
    del model
    with warnings.catch_warnings():
        # The first load has already warned if there is no tokenizer.
        warnings.simplefilter("ignore", UserWarning)
        model = load_model(name, processing="folded", device=device)
    rows["folded"] = [_compare(model, reference, ids) for ids in texts.values()]
    return _dataset(rows, {text: ids.shape[1] for text, ids in texts.items()}, origin)


def _stream(
    name: str, model: HookedTransformer, tokens: Int[Tensor, "paragraph pos"] | None
) -> tuple[Int[Tensor, " stream_pos"], str]:
    known = vocabulary(model)
    if tokens is not None:
        stream, origin = tokens.flatten(), "given"
    elif name == "bundled":
        stream, origin = Paragraphs.load(PARAGRAPHS_FILE).tokens[:8].flatten(), "bundled paragraphs"
    elif model.tokenizer is not None:
        ids: Any = model.tokenizer.encode(TEXT, add_special_tokens=False)
        stream, origin = torch.tensor(ids), "a text of several kinds"
    else:
        generator = torch.Generator().manual_seed(0)
        stream, origin = torch.randint(0, known, (768,), generator=generator), "random ids: no tokenizer"
    if len(stream) < 2 or not 0 <= int(stream.min()) <= int(stream.max()) < known:
        raise InputError(
            f"got {len(stream)} tokens{_range(stream)}; need at least 2, with ids from 0 to {known - 1}: encode a "
            "longer text with this model's tokenizer"
        )
    return stream.long(), origin


def _range(stream: Int[Tensor, " stream_pos"]) -> str:
    return f" with ids from {int(stream.min())} to {int(stream.max())}" if len(stream) else ""


def _cut(stream: Int[Tensor, " stream_pos"], rows: int, length: int) -> Int[Tensor, "row row_pos"]:
    length = min(length, len(stream))
    rows = min(rows, len(stream) // length)
    return stream[: rows * length].view(rows, length)


def _reference(folder: Path, config: transformers.PreTrainedConfig, device: str) -> torch.nn.Module:
    """Transformers' model of the tensors in the folder, built by transformers itself from a configuration of our own.

    It is not given the folder: from what lies there it would take an adapter's base model, a quantizer, kernels for
    attention or code. Attention is "eager", plain matrix products.
    """
    tensors: dict[str, Tensor] = {}
    for file in {tensor.file for tensor in stored_tensors(folder).values()}:
        tensors |= load_file(file)
    kind: Any = getattr(transformers, ARCHITECTURES[config.model_type].causal_class)
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        reference = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
        )
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    reference.to(device)
    return reference.eval()


def _compare(model: HookedTransformer, reference: torch.nn.Module, ids: Int[Tensor, "row pos"]) -> dict[str, float]:
    ids = ids.to(str(model.cfg.device))
    with torch.no_grad():
        ours, theirs = _logits(model, ids), _reference_logits(reference, ids, vocabulary(model))
        differences = {"logit_difference": _largest(ours - theirs)}
        ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
        differences["log_prob_difference"] = _largest(ours - theirs)
        differences["nll_difference"] = _largest(_token_nll(ours, ids) - _token_nll(theirs, ids))
    return differences


@torch.enable_grad()
def _gradient_difference(
    model: HookedTransformer, reference: torch.nn.Module, converter: Converter, ids: Int[Tensor, "row pos"]
) -> float:
    """Largest difference between gradients of the mean NLL, as a share of the largest gradient.

    The converter, being linear, takes transformers' gradients to TransformerLens' names and shapes.
    """
    ids = ids.to(str(model.cfg.device))
    for module in (model, reference):
        module.zero_grad(set_to_none=True)
    _token_nll(_logits(model, ids).log_softmax(-1), ids).mean().backward()
    _token_nll(_reference_logits(reference, ids, vocabulary(model)).log_softmax(-1), ids).mean().backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    theirs = _converted_gradients(reference, converter, model.cfg.n_layers)
    if "unembed.W_U" not in theirs:
        # Tied: transformers' one tensor collects both gradients.
        ours["embed.W_E"] = ours["embed.W_E"] + ours["unembed.W_U"].T
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    difference = max(_largest(ours[name] - gradient) for name, gradient in theirs.items())
    for module in (model, reference):
        module.zero_grad(set_to_none=True)
    return difference / largest


def _converted_gradients(
    reference: torch.nn.Module, converter: Converter, n_layers: int
) -> dict[str, Float[Tensor, " ..."]]:
    gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    converted: dict[str, Tensor] = {}
    for name in converter.outer:
        if name in gradients:
            converted |= converter.convert_outer({name: gradients[name]})
    for layer in range(n_layers):
        part = converter.convert_layer(layer, {name: gradients[name] for name in converter.layer_names(layer)})
        kept = {name: gradient for name, gradient in part.items() if name not in converter.made_up}
        converted |= {name.replace("blocks.0.", f"blocks.{layer}.", 1): gradient for name, gradient in kept.items()}
    return converted


def _logits(model: HookedTransformer, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_vocab"]:
    # Right padding: a leading padding token is text here and must not be masked.
    return model(ids, padding_side="right")[..., : vocabulary(model)]


def _reference_logits(
    reference: torch.nn.Module, ids: Int[Tensor, "row pos"], known: int
) -> Float[Tensor, "row pos d_vocab"]:
    """Transformers' logits of the ids that the tokenizer has tokens for: `load_model` gives the others none."""
    return reference(ids).logits[..., :known]


def _token_nll(
    log_probs: Float[Tensor, "row pos d_vocab"], ids: Int[Tensor, "row pos"]
) -> Float[Tensor, "row scored_pos"]:
    """NLL in nats of tokens 1 ... n - 1; column j scores token j + 1."""
    return -log_probs[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)


def _largest(difference: Float[Tensor, " ..."]) -> float:
    return float(difference.abs().max())


def _dataset(rows: dict[str, list[dict[str, float]]], positions: dict[str, int], origin: str) -> xr.Dataset:
    values = {n: [[row.get(n, float("nan")) for row in found] for found in rows.values()] for n in UNITS}
    ok = [[all(row[n] <= TOLERANCE for n in COMPARED[p]) for row in found] for p, found in rows.items()]
    worst = {n: max(row[n] for p, found in rows.items() for row in found if n in COMPARED[p]) for n in UNITS}
    listed = ", ".join(f"{n.replace('_', ' ')} {value:.1e}" for n, value in worst.items())
    agrees = all(all(row) for row in ok)
    dims = ("processing", "text")
    return xr.Dataset(
        {n: (dims, v, {"units": UNITS[n], "meaning": "largest absolute; 0: equal"}) for n, v in values.items()}
        | {"ok": (dims, ok, {"meaning": f"everything compared is at most {TOLERANCE}"})},
        coords={"processing": list(rows), "text": list(positions), "positions": ("text", list(positions.values()))},
        attrs={
            "tokens": origin,
            "tolerance": TOLERANCE,
            "verdict": f"{'equal to' if agrees else 'DIFFERS from'} transformers on {origin} (tolerance {TOLERANCE}): "
            f"largest {listed}",
        },
    )
