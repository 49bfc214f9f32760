"""The model of a scan, and what tells it from others."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer, Provenance, load_model, provenance
from mechmem.scan.scan_settings import ScanSettings

Engine = Literal["local", "ray"]


def scan_model(
    settings: ScanSettings, model: HookedTransformer | None, device: str | None, engine: Engine
) -> tuple[HookedTransformer, str, str]:
    """The model that scores, its name, and a hash of its weights: equal hashes mean equal rows.

    Args:
        settings: name the model, where none was given.
        model: a loaded one, perhaps edited.
        device: where to load it.
        engine: workers of Ray load the model themselves.

    Raises:
        InputError: a loaded model with a device, or with workers that would load another one.
    """
    if model is None:
        loaded = load_model(settings.model, processing="raw", device=device)
        return loaded, settings.model, provenance(loaded).weight_hash
    if device is not None:
        raise InputError(f"got a loaded model and device {device!r}; the model computes where it is: leave out device")
    if engine == "ray":
        raise InputError(
            "got a loaded model and engine 'ray', whose workers load their model themselves; name a model in "
            "ScanSettings (export an edited one to a folder), or omit engine"
        )
    known = getattr(model, "mechmem_provenance", None)
    name = known.name if isinstance(known, Provenance) else "a loaded model"
    return model, name, weights_digest(model)


def weights_digest(model: HookedTransformer) -> str:
    """16 hexadecimal digits that change with any weight, so that an edited copy is not taken for its original."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content = tensor.detach().cpu().contiguous()
        total.update(f"{name} {content.dtype} {list(content.shape)}".encode())
        total.update(content.flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:16]
