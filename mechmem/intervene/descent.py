"""Weights that move down an objective, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.loop import Row
from mechmem.intervene.objectives import Objective, hold_kl, token_log_probs
from mechmem.intervene.rmu_terms import SteeringTerms
from mechmem.measure.scores import leading_matches
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.load import HookedTransformer
from mechmem.weights.masked_weights import MaskedWeights
from mechmem.weights.training import Training

# Paragraphs of one forward and backward: a batch is gone through in such parts, so that memory does not grow with it.
CHUNK = 4
# What the original model predicts is computed once and kept up to this size, 50 paragraphs of GPT-Neo's vocabulary.
REFERENCE_BYTES = 2**29

# Number of a batch, and its rows in the set.
Batch = tuple[int, np.ndarray]
# Set, batch and first row: the name of a part of a batch.
Key = tuple[str, int, int]


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
        preferred: for an objective of pairs: row by row, what is preferred to the target.
    """

    objective: Objective
    targets: Paragraphs
    keep: Paragraphs
    name: str
    done: Callable[[Row], bool]
    preferred: Paragraphs | None = None

    def on_targets(self, rows: np.ndarray) -> Task:
        """The same for some of the targets."""
        preferred = None if self.preferred is None else self.preferred.select(rows)
        return replace(self, targets=self.targets.select(rows), preferred=preferred)

    def part(self, kind: str, rows: np.ndarray) -> Paragraphs:
        """Rows of the targets or of the keep set; with pairs each target is followed by what is preferred to it."""
        found = (self.targets if kind == "target" else self.keep).select(rows)
        if kind == "keep" or self.preferred is None:
            return found
        both = torch.stack([found.tokens, self.preferred.select(rows).tokens], 1).flatten(0, 1)
        return Paragraphs(both, found.prefix_len)


class Reference:
    """What the original model computes, for parts of batches."""

    def __init__(self, model: HookedTransformer) -> None:
        self.lean = LeanModel(model)
        self.device = self.lean.device
        self._kept: dict[Key, Tensor] = {}
        self._free = REFERENCE_BYTES

    @torch.no_grad()
    def __call__(self, key: Key, part: Paragraphs) -> Float[Tensor, "paragraph pos d_vocab"]:
        """Log-probabilities of the continuation; `key` names the part."""
        return self.kept(key, lambda: self._log_probs(part))

    def kept(self, key: Key, compute: Callable[[], Tensor]) -> Tensor:
        """What was computed for a part before, or now."""
        if key in self._kept:
            return self._kept[key]
        result = compute()
        size = result.numel() * result.element_size()
        if size <= self._free:
            self._free -= size
            self._kept[key] = result
        return result

    def _log_probs(self, part: Paragraphs) -> Tensor:
        with fast_float32(self.device):
            hidden = self.lean.forward(part.tokens)[:, part.prefix_len - 1 : -1]
            return self.lean.unembed(hidden).log_softmax(-1)


class Descent:
    """A updater of `run_loop`: each step takes one batch of the targets and one of the keep set.

    Values of a step are means over the latest value of every batch that was seen, so that a rule that ends the edit
    speaks of the whole sets, and not of the batch that happens to be on.
    """

    def __init__(
        self,
        weights: MaskedWeights,
        reference: Reference,
        task: Task,
        training: Training,
        seed: int,
    ) -> None:
        self._weights, self._reference, self._task, self._objective = weights, reference, task, task.objective
        settings = training.settings()
        self._keep_weight, self._name = settings["keep_weight"], task.name
        size, steering = settings["batch_size"], task.objective.steering
        self._batches = zip(_batches(len(task.targets), size, seed), _batches(len(task.keep), size, seed + 1))  # noqa: B905
        self._steered = SteeringTerms(reference.lean, steering, task.targets, seed) if steering is not None else None
        # Squared distances are not nats: early steps of a steered edit overshoot, and come back.
        self.can_diverge = steering is None
        self._latest: dict[tuple[str, int], np.ndarray] = {}
        self._moved = False

    def measure(self, *, last: bool) -> Row:
        """The values, with their gradients unless this is the last time."""
        target, keep = next(self._batches)
        self._latest["target", target[0]] = self._run("target", target, last)
        if self._objective.radius is not None and not last:
            with self._weights.uphill(self._objective.radius):
                self._run("target", target, last)
        self._latest["keep", keep[0]] = self._run("keep", keep, last)
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

    def _run(self, kind: str, batch: Batch, last: bool) -> np.ndarray:
        """Accumulate the gradients of a batch; returns paragraphs, and sums of the term, NLL or KL, and EM."""
        number, rows = batch
        still = self._objective.keep in (hold_kl, None)
        if kind == "keep" and not self._moved and still:
            # What is held is zero at the weights themselves, and so is its gradient.
            return np.array([len(rows), 0.0, 0.0, 0.0])
        weight = (1.0 if kind == "target" else self._keep_weight) / len(rows)
        sums = np.zeros(3)
        for start in range(0, len(rows), CHUNK):
            part = self._task.part(kind, rows[start : start + CHUNK])
            run = self._run_part if self._steered is None else self._run_steered
            sums += run(kind, (kind, number, start), part, weight, not last and weight != 0)
        return np.array([len(rows), *sums])

    def _run_part(self, kind: str, key: Key, part: Paragraphs, weight: float, train: bool) -> np.ndarray:
        """A part of a batch, by terms of its predictions."""
        term = self._objective.target if kind == "target" else self._objective.keep
        pairs = kind == "target" and self._objective.pairs
        true = part.continuation.to(self._reference.device)
        need = kind == "keep" or self._objective.compares
        reference = self._reference(key, part) if need else torch.empty(len(part), 0)
        sums = np.zeros(3)

        def loss(logits: Tensor, rows: slice) -> Tensor:
            log_probs, known = logits.log_softmax(-1), (true[rows], reference[rows])
            value = term(log_probs, *known).sum() if term is not None else logits.new_zeros(())
            if kind == "keep" and term is hold_kl:
                seen = value.item(), 0.0
            else:
                # Of pairs only the memorized ones are measured.
                seen = _seen(kind, *(each[:: 2 if pairs else 1] for each in (log_probs.detach(), *known)))
            sums[:] += [value.item(), *seen]
            return weight * value

        with fast_float32(true.device):
            self._weights.accumulate(
                part.tokens, part.prefix_len, loss, train=train and term is not None, together=2 if pairs else 1
            )
        return sums

    def _run_steered(self, kind: str, key: Key, part: Paragraphs, weight: float, train: bool) -> np.ndarray:
        """A part of a batch, by terms of the residual stream."""
        steered, objective = self._steered, self._objective.steering
        assert steered is not None and objective is not None
        true = part.continuation.to(self._reference.device)
        reference = self._reference(key, part) if kind == "keep" else torch.empty(len(part), 0)
        sums = np.zeros(3)

        def loss(residual: Tensor) -> Tensor:
            if kind == "target":
                value = steered.target(residual).sum()
            else:
                before = self._reference.kept(("residual", *key[1:]), lambda: steered.original(part))
                value = steered.keep(residual, before).sum()
            sums[0] += value.item()
            return weight * value

        def see(logits: Tensor, rows: slice) -> None:
            sums[1:] += _seen(kind, logits.log_softmax(-1), true[rows], reference[rows])

        with fast_float32(true.device):
            self._weights.accumulate_inside(objective.layer, part.tokens, part.prefix_len, loss, see, train=train)
        return sums

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


def _batches(count: int, size: int, seed: int) -> Iterator[Batch]:
    """Fixed batches of a shuffled set, round and round, each with its number."""
    order = np.random.default_rng(seed).permutation(count)
    batches = [order[start : start + size] for start in range(0, count, size)]
    while True:
        yield from enumerate(batches)
