"""How weights are trained: one object and one set of defaults for unlearning, editing, memorizing and injecting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechmem.data.errors import InputError

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Training:
    """Settings of gradient descent on the weights that may move.

    Attributes:
        steps: at most this many updates.
        learning_rate: of AdamW; None lets the caller choose: unlearning and editing search one on other clusters of
            the paragraphs to keep, and say so in the history.
        batch_size: paragraphs of each set in one update.
        weight_decay: of AdamW: decoupled, on the weights that may move alone.
        max_norm: clip the gradient, over all weights that may move, to this Euclidean norm; None: no clipping.
        optimizer: makes another optimizer from the list of tensors to train; then learning_rate and weight_decay are
            its own affair.
        checkpoint: a safetensors file that is written while training runs and removed at its end; None: none.
        resume: go on from that file; the result equals that of training that was not interrupted.

    Raises:
        InputError: a setting that is out of range or not finite.
    """

    steps: int = 30
    learning_rate: float | None = None
    batch_size: int = 16
    weight_decay: float = 0.0
    max_norm: float | None = None
    optimizer: MakeOptimizer | None = None
    checkpoint: str | Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}; need an integer of at least {least}")
        for name in ("learning_rate", "max_norm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value!r}; need a finite number above 0, or None")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay is {self.weight_decay!r}; need a finite number of at least 0")
        if self.resume and self.checkpoint is None:
            raise InputError("resume=True came without a checkpoint; name the file to go on from with checkpoint=")

    def with_rate(self, learning_rate: float) -> Training:
        """The same with a learning rate, where none was set."""
        return self if self.learning_rate is not None else replace(self, learning_rate=learning_rate)

    def settings(self) -> dict[str, Any]:
        """What decides the result, for histories and keys: everything but the checkpoint."""
        return {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "weight_decay": self.weight_decay,
            "max_norm": self.max_norm,
            "optimizer": "AdamW" if self.optimizer is None else getattr(self.optimizer, "__qualname__", "custom"),
        }
