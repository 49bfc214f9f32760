"""How weights are trained: one object and one set of defaults for unlearning, editing, memorizing and injecting."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from mechmem.data.bounds import Amount, Count, Rate, Share, check_fields, checked
from mechmem.data.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
BATCH_SIZE, KEEP_WEIGHT = 16, 1.0


@dataclass(frozen=True)
class Training:
    """Settings of gradient descent on the weights that may move; None always means "not set".

    Attributes:
        steps: at most this many updates; most edits end before, by their rule.
        learning_rate: of AdamW; None: one is searched on part of the targets, and the history says how.
        batch_size: paragraphs of each set in one update; None: 16.
        keep_weight: weight of the term that holds the keep set; None: 1.
        weight_decay: of AdamW: decoupled, on the weights that may move alone; None: no decay.
        max_norm: clip the gradient, over all weights that may move, to this Euclidean norm; None: no clipping.
        null_space: every update loses its part in the input directions that carry this share of what the keep set puts
            into a matrix (`mechmem.weights.null_space`; 1: all of it); None: no projection.
        optimizer: makes another optimizer from the list of tensors to train; it has its own learning rate and decay.
        checkpoint: a safetensors file that is written during training and removed at its end; None: none.
        resume: continue from that file; the result equals that of training that was not interrupted.

    Raises:
        InputError: a setting that is out of range or not finite, or one that another setting makes useless.
    """

    steps: Count = 100
    learning_rate: Rate | None = None
    batch_size: Count | None = None
    keep_weight: Amount | None = None
    weight_decay: Amount | None = None
    max_norm: Rate | None = None
    null_space: Share | None = None
    optimizer: MakeOptimizer | None = None
    checkpoint: str | Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.resume and self.checkpoint is None:
            raise InputError("got resume=True and no checkpoint; name the file to continue from with checkpoint=")
        useless = [name for name in ("learning_rate", "weight_decay") if getattr(self, name) is not None]
        if self.optimizer is not None and useless:
            raise InputError(
                f"got an optimizer and {' and '.join(useless)}, which only AdamW uses; set them in the optimizer: "
                "lambda tensors: torch.optim.SGD(tensors, lr=0.1)"
            )

    def given(self) -> dict[str, Any]:
        """The settings that were set, without steps; a method refuses those that it does not use."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "steps"}
        return {name: value for name, value in values.items() if value is not None and value is not False}

    def settings(self) -> dict[str, Any]:
        """What decides the result, with defaults filled in; the optimizer is left to its own description."""
        return {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size or BATCH_SIZE,
            "keep_weight": KEEP_WEIGHT if self.keep_weight is None else self.keep_weight,
            "weight_decay": self.weight_decay or 0.0,
            "max_norm": self.max_norm,
            "null_space": self.null_space,
        }

    @checked
    def with_rate(self, learning_rate: Rate) -> Training:
        """The same with a learning rate, where none was set."""
        return self if self.learning_rate is not None else replace(self, learning_rate=learning_rate)

    def make_optimizer(self, tensors: list[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of these tensors.

        Raises:
            InputError: AdamW without a learning rate.
        """
        if self.optimizer is not None:
            return self.optimizer(tensors)
        if self.learning_rate is None:
            raise InputError("got no learning rate; set one, Training(learning_rate=1e-3) for example")
        return torch.optim.AdamW(tensors, lr=self.learning_rate, weight_decay=self.weight_decay or 0.0, fused=True)


def old_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Take the settings of `Training` as keywords of the function, as the release before did, with a warning."""
    return gathering(Training, "training")(function)


def gathering(kind: type[Any], argument: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Take the fields of a dataclass as keywords of a function that takes the dataclass, with a warning."""
    names = {field.name: field.default for field in fields(kind)}

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def gathered(*args: P.args, **kwargs: P.kwargs) -> R:
            plain: dict[str, Any] = dict(kwargs)
            old = {name: plain.pop(name) for name in names.keys() & plain.keys()}
            if old:
                shown = ", ".join(f"{name}=..." for name in sorted(old))
                warnings.warn(
                    f"{function.__name__}: {shown} as keywords go with the next release; write "
                    f"{argument}=mechmem.{kind.__name__}({shown})",
                    DeprecationWarning,
                    stacklevel=2,
                )
                # Nothing may be said twice: the object's own value would be lost.
                given = plain.get(argument) or kind()
                twice = [name for name in sorted(old) if getattr(given, name) != names[name]]
                if twice:
                    raise InputError(f"{function.__name__} got {', '.join(twice)} twice; keep the one in {argument}=")
                plain[argument] = replace(given, **old)
            return function(*args, **plain)  # pyright: ignore[reportCallIssue]

        return gathered

    return decorate
