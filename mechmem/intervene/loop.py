"""The one loop of every edit: measure, decide, move; and what ends it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import xarray as xr

from mechmem.data.bounds import Amount, check_fields
from mechmem.data.progress import Progress

Row = dict[str, float]
# An objective this far above its first value has diverged; nats per token.
DIVERGED = 1.0
UNITS = {
    "memorized_nll": "nats per token",
    "memorized_em": "tokens",
    "target_nll": "nats per token",
    "target_em": "tokens",
    "keep_kl": "nats per token",
    "objective": "nats per token, minimized",
}


@dataclass(frozen=True)
class Stop:
    """When an edit ends, the same for every method, so that methods can be compared; no bound: after all steps.

    Unlearning ends as soon as one of the targets' bounds is met. `edit` and `memorize` teach their targets, so they end
    when both bounds are met from the other side.

    Attributes:
        target_em: mean EM of the targets, tokens: unlearning ends when it is this low or lower, `edit` and `memorize`
            when it is this high or higher.
        target_nll: mean NLL of the targets, nats per token: unlearning ends when it is this high or higher, `edit` and
            `memorize` when it is this low or lower.
        keep_kl: mean KL from the original model on the keep set, nats per token: a budget. The first weights that pass
            it are given up for the best before them.

    Raises:
        InputError: a bound that is negative or not finite.
    """

    target_em: Amount | None = None
    target_nll: Amount | None = None
    keep_kl: Amount | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, row: Row) -> bool:
        """Whether the targets are gone, or learned where they were to be learned."""
        if "memorized_em" in row:
            low = self.target_em is not None and row["memorized_em"] <= self.target_em
            return low or (self.target_nll is not None and row["memorized_nll"] >= self.target_nll)
        if not self.targets:
            return False
        high = self.target_em is None or row["target_em"] >= self.target_em
        return high and (self.target_nll is None or row["target_nll"] <= self.target_nll)

    @property
    def targets(self) -> bool:
        """Whether there is a bound of the targets."""
        return self.target_em is not None or self.target_nll is not None

    def exceeded(self, row: Row) -> bool:
        """Whether the budget is spent."""
        return self.keep_kl is not None and row["keep_kl"] > self.keep_kl


@runtime_checkable
class Updater(Protocol):
    """Weights that can be measured and moved one step on.

    Attributes:
        can_diverge: whether an objective far above its first value means that the steps are too large.
    """

    can_diverge: bool

    def measure(self, *, last: bool) -> Row:
        """Values of the weights as they are; `last`: they will not be moved again."""
        ...

    def advance(self) -> None:
        """Move on from the weights just measured."""
        ...

    def snapshot(self) -> Any:
        """What `restore` takes."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Go back to those weights."""
        ...


@runtime_checkable
class Log(Protocol):
    """Keeps an edit that may be interrupted."""

    def read(self) -> tuple[list[Row], int, Any] | None:
        """Rows so far, number of the best and its snapshot, with the weights put where they were; None: a new edit."""
        ...

    def write(self, rows: list[Row], best: int, snapshot: Any) -> None:
        """Note that these rows were measured and the weights moved on from the last."""
        ...


def run_loop(
    updater: Updater,
    *,
    steps: int,
    stop: Callable[[Row], bool] | None,
    progress: Progress | None = None,
    log: Log | None = None,
) -> xr.Dataset:
    """Move up to `steps` times, and leave the weights at the last step, where a rule ended it, or at the best.

    1. Measure. If the objective is not finite, or a nat above where it began, go back to the best weights and warn.
    2. If a budget is passed, go back to the best weights.
    3. If the rule is met, stay here.
    4. Move on.

    Args:
        updater: what is measured and moved.
        steps: at most this many moves.
        stop: a `Stop`, or any function of a row that says when to end.
        progress: called with (steps done, steps).
        log: where to note each step, and to go on from.

    Returns:
        Dataset [step] of the values before each move, and of those where a rule ended it. Attributes: `ended`, why;
        `final_*`, the values of the weights that were left.
    """
    known = log.read() if log is not None else None
    rows, best, kept = known or ([], 0, updater.snapshot())
    ended = "steps"
    final: Row = {}
    for step in range(len(rows), steps + 1):
        final = updater.measure(last=step == steps)
        if _diverged(final, rows, updater.can_diverge):
            ended, final = "diverged", rows[best] if rows else final
            _warn(step, best)
        elif rows and isinstance(stop, Stop) and stop.exceeded(final):
            ended, final = "budget", rows[best]
        if ended != "steps":
            updater.restore(kept)
            break
        if stop is not None and stop(final):
            ended = "stop rule"
            rows.append(final)
            break
        if step == steps:
            break
        rows.append(final)
        if final["objective"] <= rows[best]["objective"]:
            kept = None  # Let go of the last one first: two are as large as a model's gradients and more.
            best, kept = step, updater.snapshot()
        updater.advance()
        if log is not None:
            log.write(rows, best, kept)
        if progress is not None:
            progress(step + 1, steps)
    return _history(rows, final, ended)


def _diverged(row: Row, rows: list[Row], can_diverge: bool) -> bool:
    value = row["objective"]
    return not math.isfinite(value) or (can_diverge and bool(rows) and value > rows[0]["objective"] + DIVERGED)


def _warn(step: int, best: int) -> None:
    warnings.warn(
        f"the objective diverged at step {step}, so the weights are those of step {best}, the best; "
        "lower the learning rate",
        RuntimeWarning,
        stacklevel=4,
    )


def _history(rows: list[Row], final: Row, ended: str) -> xr.Dataset:
    names = list(final)
    columns = {
        name: ("step", np.array([row[name] for row in rows], dtype=np.float64), {"units": UNITS[name]})
        for name in names
    }
    attrs: dict[str, Any] = {"values": "before the step's update", "ended": ended}
    return xr.Dataset(columns, {"step": np.arange(len(rows))}, attrs | {f"final_{name}": final[name] for name in names})
