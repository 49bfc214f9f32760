"""An edit as a file: the weights that changed, their new values, and of which model they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.model.load import HookedTransformer, provenance
from mechmem.weights.support import moved, tensor_pairs

SOURCE = "source"


def save_edit(
    model: HookedTransformer, edited: HookedTransformer, path: str | Path, notes: Mapping[str, str] | None = None
) -> None:
    """Write the weights in which two models differ, whole or not at all: kilobytes for a sparse edit.

    Args:
        model: the original, as `load_model` gave it.
        edited: the same after an edit.
        path: a safetensors file.
        notes: short texts to keep with it.

    Raises:
        InputError: two models of different shapes, or an original that `load_model` did not give.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, before, after in tensor_pairs(model, edited):
        places = moved(before, after).nonzero().flatten().cpu()
        # An index takes twice the room of a weight.
        if 3 * len(places) > after.numel():
            tensors[f"whole.{name}"] = after.detach().cpu().contiguous()
        elif len(places):
            tensors[f"place.{name}"] = places
            tensors[f"value.{name}"] = after.detach().cpu().reshape(-1)[places].clone()
    metadata = dict(notes or {}) | {SOURCE: _source(model)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_edit(model: HookedTransformer, path: str | Path) -> tuple[HookedTransformer, dict[str, str]]:
    """A copy of the original with an edit in it, bit for bit as it was saved, and the file's notes.

    Raises:
        InputError: no such file, one that `save_edit` did not write, or an edit of other weights.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; need one that save_edit wrote")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            notes = dict(file.metadata() or {})
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); make the edit again") from error
    source, own = notes.pop(SOURCE, None), _source(model)
    if source != own:
        raise InputError(
            f"{path}: is an edit of weights {source} and the model's are {own}; load the model that was edited"
        )
    edited = copy.deepcopy(model)
    state = edited.state_dict()
    for key, tensor in tensors.items():
        kind, name = key.split(".", 1)
        if kind == "whole":
            state[name].copy_(tensor)
        elif kind == "place":
            state[name].view(-1)[tensor.to(state[name].device)] = tensors[f"value.{name}"].to(state[name].device)
    return edited, notes


def _source(model: HookedTransformer) -> str:
    known = provenance(model)
    return f"{known.weight_hash} ({known.processing})"
