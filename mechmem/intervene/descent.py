"""Weights that move down an objective, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.loop import Row
from mechmem.intervene.objectives import Objective, hold_kl, token_log_probs
from mechmem.measure.scores import leading_matches
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.load import HookedTransformer
from mechmem.weights.masked_weights import MaskedWeights
from mechmem.weights.training import Training

# Paragraphs of one forward and backward: a batch is gone through in such parts, so that memory does not grow with it.
CHUNK = 4
# What the original model predicts is computed once and kept up to this size, 50 paragraphs of GPT-Neo's vocabulary.
REFERENCE_BYTES = 2**29

Batch = tuple[int, Paragraphs]


@dataclass(frozen=True)
class Task:
    """What descent shall do to which paragraphs.

    Attributes:
        objective: what is minimized.
        targets: paragraphs that shall change.
        keep: paragraphs that shall not.
        name: prefix of the targets' values in the history: "memorized" where text is removed, "target" where it is
            learned.
        done: the rule that ends training where no other was given.
    """

    objective: Objective
    targets: Paragraphs
    keep: Paragraphs
    name: str
    done: Callable[[Row], bool]


class Reference:
    """What the original model predicts, for parts of batches."""

    def __init__(self, model: HookedTransformer) -> None:
        self._lean = LeanModel(model)
        self.device = self._lean.device
        self._kept: dict[tuple[str, int, int], Tensor] = {}
        self._free = REFERENCE_BYTES

    @torch.no_grad()
    def __call__(self, key: tuple[str, int, int], part: Paragraphs) -> Float[Tensor, "paragraph pos d_vocab"]:
        """Log-probabilities of the continuation; `key` names the part: set, batch, first row."""
        if key in self._kept:
            return self._kept[key]
        with fast_float32(self._lean.device):
            hidden = self._lean.forward(part.tokens)[:, part.prefix_len - 1 : -1]
            result = self._lean.unembed(hidden).log_softmax(-1)
        size = result.numel() * result.element_size()
        if size <= self._free:
            self._free -= size
            self._kept[key] = result
        return result


class Descent:
    """A updater of `run_loop`: each step takes one batch of the targets and one of the keep set.

    Values of a step are means over the latest value of every batch that was seen, so that a rule that ends the edit
    speaks of the whole sets, and not of the batch that happens to be on.
    """

    can_diverge = True

    def __init__(
        self,
        weights: MaskedWeights,
        reference: Reference,
        task: Task,
        training: Training,
        seed: int,
    ) -> None:
        self._weights, self._reference, self._objective = weights, reference, task.objective
        settings = training.settings()
        self._keep_weight, self._name = settings["keep_weight"], task.name
        size = settings["batch_size"]
        self._batches = zip(_batches(task.targets, size, seed), _batches(task.keep, size, seed + 1), strict=False)
        self._latest: dict[tuple[str, int], np.ndarray] = {}
        self._moved = False

    def measure(self, *, last: bool) -> Row:
        """The values, with their gradients unless this is the last time."""
        target, keep = next(self._batches)
        self._run("target", target, last)
        self._run("keep", keep, last)
        term, nll, em = self._mean("target")
        held, kl, _ = self._mean("keep")
        row = {f"{self._name}_nll": nll, f"{self._name}_em": em, "keep_kl": kl}
        return row | {"objective": term + self._keep_weight * held}

    def advance(self) -> None:
        """One step of the optimizer."""
        self._weights.step()
        self._moved = True

    def latest(self) -> list[Any]:
        """The latest values of every batch, for `resume_after`."""
        return [[kind, number, *values.tolist()] for (kind, number), values in self._latest.items()]

    def resume_after(self, steps: int, latest: list[Any]) -> None:
        """Pass over the batches of steps that were taken before, and know their values."""
        self._moved = steps > 0
        for _ in range(steps):
            next(self._batches)
        self._latest = {(kind, number): np.array(values) for kind, number, *values in latest}

    def snapshot(self) -> Iterable[Tensor]:
        """The masked weights; on disk where they are large."""
        return self._weights.snapshot()

    def restore(self, snapshot: Any) -> None:
        """Put them back."""
        self._weights.restore(snapshot)

    def _run(self, kind: str, batch: Batch, last: bool) -> None:
        number, paras = batch
        if kind == "keep" and not self._moved and self._objective.keep in (hold_kl, None):
            # KL from the weights themselves is zero, and so is its gradient.
            self._latest[kind, number] = np.array([len(paras), 0.0, 0.0, 0.0])
            return
        term = self._objective.target if kind == "target" else self._objective.keep
        weight = 1.0 if kind == "target" else self._keep_weight
        train = not last and term is not None and weight != 0
        sums = np.zeros(3)
        for start in range(0, len(paras), CHUNK):
            part = paras.select(np.arange(start, min(start + CHUNK, len(paras))))
            true = part.continuation.to(self._reference.device)
            need = kind == "keep" or self._objective.compares
            reference = self._reference((kind, number, start), part) if need else torch.empty(len(part), 0)

            def loss(logits: Tensor, rows: slice, true: Tensor = true, reference: Tensor = reference) -> Tensor:
                nonlocal sums
                log_probs, known = logits.log_softmax(-1), (true[rows], reference[rows])
                value = term(log_probs, *known).sum() if term is not None else logits.new_zeros(())
                held = kind == "keep" and term is hold_kl
                sums += [value.item(), *((value.item(), 0.0) if held else _seen(kind, log_probs.detach(), *known))]
                return weight * value / len(paras)

            with fast_float32(true.device):
                self._weights.accumulate(part.tokens, part.prefix_len, loss, train=train)
        self._latest[kind, number] = np.array([len(paras), *sums])

    def _mean(self, kind: str) -> tuple[float, float, float]:
        count, *sums = np.sum([value for (of, _), value in self._latest.items() if of == kind], axis=0)
        term, first, second = (float(value / count) for value in sums)
        return term, first, second


def _seen(kind: str, log_probs: Tensor, true: Tensor, reference: Tensor) -> tuple[float, float]:
    """Sums over paragraphs: NLL and EM of targets, KL of the keep set."""
    with torch.no_grad():
        if kind == "keep":
            return hold_kl(log_probs, true, reference).sum().item(), 0.0
        nll = -token_log_probs(log_probs, true).mean(-1)
        em = leading_matches(log_probs.argmax(-1) == true)
        return nll.sum().item(), float(em.sum().item())


def _batches(paragraphs: Paragraphs, size: int, seed: int) -> Iterator[Batch]:
    """Fixed batches of a shuffled set, round and round, each with its number."""
    order = np.random.default_rng(seed).permutation(len(paragraphs))
    batches = [paragraphs.select(order[start : start + size]) for start in range(0, len(order), size)]
    while True:
        yield from enumerate(batches)
