"""Checkpoints of an edit: everything it needs to resume, in one file that is written atomically."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mechmem.data.code_identity import identity
from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.intervene.descent import Descent, Task
from mechmem.intervene.loop import Row
from mechmem.model.load import HookedTransformer
from mechmem.weights.masked_weights import MaskedWeights
from mechmem.weights.masks import Mask
from mechmem.weights.tensor_files import read_tensors
from mechmem.weights.training import Training

# Time between two writes, as a multiple of what one write takes: seconds for all weights of a large model.
PATIENCE = 20.0
DIGEST = "sha256"


class EditLog:
    """The log of one edit, for `run_loop`; the model that is edited is never in it, only the weights that may move."""

    def __init__(self, path: str | Path, weights: MaskedWeights, descent: Descent, *, key: str, resume: bool) -> None:
        """Name the file.

        Args:
            path: a safetensors file; its folder must exist.
            weights: those that move.
            descent: told which batches went by.
            key: what `edit_key` says of the edit.
            resume: go on from a file that is there.

        Raises:
            InputError: a file is there and `resume` was not asked for; or it is of another edit, or not whole.
        """
        self._path, self._weights, self._descent = Path(path), weights, descent
        self._key = key
        self._written, self._took = -math.inf, 0.0
        if self._path.exists() and not resume:
            raise InputError(f"{path}: holds an interrupted edit; continue it with resume=True, or remove the file")

    def read(self) -> tuple[list[Row], int, list[Tensor]] | None:
        """Put the weights, the optimizer and the batches where they were."""
        if not self._path.exists():
            return None
        advice = "remove it to begin the edit again"
        tensors, notes = read_tensors(self._path, "an interrupted edit", advice)
        if notes.get("key") != self._key:
            raise InputError(
                f"{self._path}: is of another edit (other weights, paragraphs, mask or settings); resume with the same "
                "ones, or remove the file"
            )
        # Nothing of a file that is not as it was written is used: it could still fit.
        if notes.pop(DIGEST, None) != _digest(tensors, notes):
            raise InputError(f"{self._path}: was damaged or changed after it was written; {advice}")
        rows: list[Row] = json.loads(notes["rows"])
        self._weights.load_state({n: t for n, t in tensors.items() if not n.startswith("best.")}, notes["optimizer"])
        self._descent.resume_after(len(rows), json.loads(notes["latest"]))
        kept = [tensors[f"best.{i}"] for i in range(sum(name.startswith("best.") for name in tensors))]
        return rows, int(notes["best"]), kept

    def write(self, rows: list[Row], best: int, snapshot: Any) -> None:
        """Write the file anew, unless that would take more than a twentieth of the time."""
        began = time.monotonic()
        if began - self._written < PATIENCE * self._took:
            return
        tensors, optimizer = self._weights.state()
        # safetensors refuses tensors that share memory.
        tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        tensors |= {f"best.{i}": tensor.contiguous() for i, tensor in enumerate(snapshot)}
        notes = {
            "key": self._key,
            "rows": json.dumps(rows),
            "best": str(best),
            "optimizer": optimizer,
            "latest": json.dumps(self._descent.latest()),
        }
        notes[DIGEST] = _digest(tensors, notes)
        size = sum(tensor.nbytes for tensor in tensors.values())
        with replacing(self._path, size=size) as temporary:
            save_file(tensors, temporary, metadata=notes)
        self._written = time.monotonic()
        self._took = self._written - began


def remove_checkpoint(training: Training) -> None:
    """Remove the file of an edit that is whole: nothing is left to compute that a kill could cost."""
    if training.checkpoint is not None:
        Path(training.checkpoint).unlink(missing_ok=True)


@torch.no_grad()
def edit_key(model: HookedTransformer, mask: Mask | None, task: Task, settings: dict[str, Any]) -> str:
    """A digest of everything that decides an edit: weights, mask, paragraphs, both terms, the rule and the settings."""
    decides = settings | {
        "terms": [identity(term) for term in (task.objective.target, task.objective.keep)],
        "objective": [task.objective.radius, repr(task.objective.steering)],
        "name": task.name,
        "prefixes": [task.targets.prefix_len, task.keep.prefix_len],
        "weights": "all" if mask is None else "masked",
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=identity).encode())
    for name, tensor in [*model.state_dict().items(), *(mask.indices.items() if mask is not None else ())]:
        _add(digest, name, tensor)
    for paragraphs in (task.targets, task.keep, *([] if task.preferred is None else [task.preferred])):
        digest.update(f"{list(paragraphs.tokens.shape)}".encode())
        digest.update(paragraphs.tokens.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """Of all that a checkpoint holds."""
    digest = hashlib.sha256(json.dumps(dict(notes), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        _add(digest, name, tensor)
    return digest.hexdigest()


@torch.no_grad()
def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
