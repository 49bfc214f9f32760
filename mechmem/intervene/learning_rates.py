"""Search a learning rate on part of the targets, where none was given, and record it in the history."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, between
from mechmem.intervene.descent import Task
from mechmem.weights.masks import Mask
from mechmem.weights.training import Training

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
# Halving eight rates takes three runs.
SEARCHES = 3
# Paragraphs and steps of one run, at most: a search must stay cheaper than the edit.
TRIED_ON, TRIED_STEPS = 8, 30
# Without other clusters nothing is searched: a moderate rate, larger for a few weights than for all.
SPARSE_RATE, DENSE_RATE = 1e-3, 1e-4

Trial = Callable[[Task, Training, ProgressLike], xr.Dataset]


def search_steps(training: Training) -> int:
    """Updates of one run of the search: half of those of the edit, so that what was found there has room."""
    return max(1, min(TRIED_STEPS, training.steps // 2))


def find_rate(
    task: Task, mask: Mask | None, training: Training, trial: Trial, progress: ProgressLike = None
) -> tuple[Training, dict[str, Any]]:
    """The smallest of a few learning rates that does what was asked, on some of the targets.

    1. Targets of at most half of their clusters are drawn, one of each; the others take no part, so that what is
       reported of them was not chosen by them.
    2. Rates are halved: a larger one moves weights further, so where a rate meets the rule, a smaller one is tried,
       and where it does not, a larger one. One that diverges is too large.
    3. The smallest that met the rule is taken, or if none did, the largest that did not diverge.

    Args:
        task: the whole edit.
        mask: weights that may move.
        training: without a learning rate.
        trial: runs a smaller edit and gives its history.
        progress: called with (runs done, runs) in equal parts.

    Returns:
        The training with its rate, and what the history shall say: `rates_tried`, `rates_met` (1: the rule was met)
        and `rate_ids` (the targets tried on), or that there was nothing to search on.
    """
    rows = _tried(task.targets)
    if len(rows) == 0:
        rate = DENSE_RATE if mask is None else SPARSE_RATE
        return replace(training, learning_rate=rate), {"rate_choice": "default: targets of one cluster, no search"}
    small = task.on_targets(rows)
    low, high, met, failed, steps = 0, len(RATES), {}, [], search_steps(training)
    for number in range(SEARCHES):
        middle = (low + high) // 2
        settings = replace(
            training,
            learning_rate=RATES[middle],
            steps=steps,
            batch_size=min(TRIED_ON, training.batch_size or TRIED_ON),
            checkpoint=None,
            resume=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            history = trial(small, settings, between(progress, number * steps, (number + 1) * steps, SEARCHES * steps))
        met[middle] = history.attrs["ended"] == "stop rule"
        if history.attrs["ended"] in ("diverged", "budget"):
            failed.append(middle)
        if met[middle] or middle in failed:
            high = middle
        else:
            low = middle + 1
        if low >= high:
            break
    good = [place for place, reached in met.items() if reached]
    usable = [place for place in met if place not in failed]
    chosen = min(good) if good else max(usable, default=0)
    said = {
        "rate_choice": "searched: the smallest rate that met the rule on part of the targets",
        "rates_tried": [RATES[place] for place in met],
        "rates_met": [int(reached) for reached in met.values()],
        "rate_ids": small.targets.ids.tolist(),
        "rate_clusters": len(rows),
    }
    if not good:
        said["rate_choice"] = "searched: no rate met the rule on part of the targets; the largest that did not diverge"
    return replace(training, learning_rate=RATES[chosen]), said


def _tried(targets: Paragraphs) -> Int[np.ndarray, " row"]:
    """One target of each of at most half of the clusters, drawn by a fixed seed; none where there is one cluster."""
    clusters, first = np.unique(targets.clusters, return_index=True)
    count = min(TRIED_ON, len(clusters) // 2)
    return np.sort(np.random.default_rng(0).permutation(first)[:count])
