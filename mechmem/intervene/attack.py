"""Is the text gone or only hidden: every attack on an edited model, and the same attacks on the original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Num

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.intervene.attacks.depth import check_pair, depth_score
from mechmem.intervene.attacks.prompts import (
    near_duplicate_attack,
    near_pairs,
    perturbed_prefix_attack,
    prefix_length_attack,
)
from mechmem.intervene.attacks.quantize import quantization_attack
from mechmem.intervene.attacks.relearn import check_relearning, relearning_attack
from mechmem.intervene.attacks.sampling import sampling_attack
from mechmem.measure.scores import score
from mechmem.model.load import HookedTransformer
from mechmem.stats.bootstrap import cluster_bootstrap

# The share of the layers, at least one, that the original model lends to read the edited one's activations.
LATE_SHARE = 0.25
# What an attack recovers from a model: one number a paragraph, tokens; NaN where it has nothing to ask.
Recover = Callable[[HookedTransformer], Num[np.ndarray, " paragraph"]]


def attack(
    original: HookedTransformer,
    edited: HookedTransformer,
    paras: Paragraphs,
    other_memorized: Paragraphs,
    *,
    near: Paragraphs | None = None,
    draws: int = 32,
    samples: int = 100,
    steps: int = 100,
    learning_rate: float = 1e-4,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """How much of the targets each attack recovers from the edited model, and from the original.

    Every row is the mean over paragraphs of an EM in tokens:

    - none: the prefix as it is (`score`).
    - perturbed prefix: the best of `draws` prefixes with one token changed (`perturbed_prefix_attack`).
    - prefix length: the best of shorter and longer prompts; after a longer one only what it does not give counts, so
      the row never flatters itself with tokens that were given (`prefix_length_attack`).
    - sampling: expected EM of the best of `samples` draws, top-k 40 (`sampling_attack`).
    - near-duplicates: the target's continuation after the best of their prefixes; only where `near` has some of a
      target's cluster (`near_duplicate_attack`).
    - quantization: the best of all schemes (`quantization_attack`).
    - relearning: at the measurement with the highest mean (`relearning_attack`).
    - late layers: the best of reading the edited model's activations on with the original's unembedding and none, or up
      to a quarter (at least one), of its last layers (`depth_score`).

    An edit that removed the text is low in every row; one that hid it is high in some. The best of many tries gains a
    little on text that no model ever saw: `em_before` says what an attack finds where everything is still there, and a
    run on paragraphs that were never memorized what it finds where there was nothing.

    Args:
        original: the model before the edit; left as it is.
        edited: the model after it; left as it is.
        paras: what the edit should have removed; intervals are by cluster if the table has a column `cluster`.
        other_memorized: memorized paragraphs of other clusters, to relearn from.
        near: near-duplicates of the targets; None: no such row.
        draws: changed prefixes of each paragraph.
        samples: sampled continuations of each paragraph.
        steps: updates of relearning.
        learning_rate: of relearning.
        batch_size: of relearning, and paragraphs of one forward elsewhere.
        seed: of changed prefixes, of the order of relearning, and of intervals.
        progress: called with (attacks done, attacks), counting both models.

    Returns:
        Dataset [attack], tokens, higher: more of the text is still there: em_before (the attack on `original`),
        em_after (on `edited`), em_after_low, em_after_high (95 % interval of em_after, clusters resampled);
        paragraphs[attack]: how many the attack could ask.

    Raises:
        InputError: models of different shapes, targets shared with other_memorized, no near-duplicate among `near`, or
            paragraphs that do not fit.
        FloatingPointError: the learning rate is too high.
    """
    check_pair(original, edited)
    check_relearning(original, paras, other_memorized)
    if near is not None:
        near_pairs(paras, near)
    if min(draws, samples, steps, batch_size) < 1:
        raise InputError(
            f"draws, samples, steps and batch_size are {draws}, {samples}, {steps} and {batch_size}; need at least 1 "
            "of each"
        )
    attacks = _prompt_attacks(paras, near, draws, samples, seed, batch_size)
    attacks |= _weight_attacks(original, paras, other_memorized, steps, learning_rate, seed, batch_size)
    return _run(attacks, original, edited, paras, seed, progress)


def _prompt_attacks(
    paras: Paragraphs, near: Paragraphs | None, draws: int, samples: int, seed: int, batch_size: int
) -> dict[str, Recover]:
    """Those that ask the model otherwise and leave its weights."""

    def perturbed(model: HookedTransformer) -> Num[np.ndarray, " paragraph"]:
        return perturbed_prefix_attack(model, paras, draws=draws, seed=seed, batch_size=batch_size).em_best.values

    def sampled(model: HookedTransformer) -> Num[np.ndarray, " paragraph"]:
        return sampling_attack(model, paras, draws=(samples,), batch_size=batch_size).em_best.values[:, 0]

    attacks: dict[str, Recover] = {
        "none": lambda model: score(model, paras, batch_size=batch_size).em.values,
        "perturbed prefix": perturbed,
        "prefix length": lambda model: prefix_length_attack(model, paras, batch_size=batch_size).em.max("given").values,
        "sampling": sampled,
    }
    if near is not None:
        attacks["near-duplicates"] = lambda model: (
            near_duplicate_attack(model, paras, near, batch_size=batch_size).target_em_best.values
        )
    return attacks


def _weight_attacks(
    original: HookedTransformer,
    paras: Paragraphs,
    other_memorized: Paragraphs,
    steps: int,
    learning_rate: float,
    seed: int,
    batch_size: int,
) -> dict[str, Recover]:
    """Those that change the model, or read its activations."""
    training: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "every": max(1, steps // 10)}

    def relearned(model: HookedTransformer) -> Num[np.ndarray, " paragraph"]:
        found = relearning_attack(model, paras, other_memorized, batch_size=batch_size, seed=seed, **training)
        # One model for all paragraphs: the best step of each would be the best of many tries.
        return found.em.values[found.em.values.mean(1).argmax()]

    def late(model: HookedTransformer) -> Num[np.ndarray, " paragraph"]:
        lent = max(1, round(LATE_SHARE * original.cfg.n_layers))
        return depth_score(original, model, paras, batch_size=batch_size).em.values[-1 - lent :].max(0)

    return {
        "quantization": lambda model: quantization_attack(model, paras, batch_size=batch_size).em.max("scheme").values,
        "relearning": relearned,
        "late layers": late,
    }


def _run(
    attacks: dict[str, Recover],
    original: HookedTransformer,
    edited: HookedTransformer,
    paras: Paragraphs,
    seed: int,
    progress: Progress | None,
) -> xr.Dataset:
    known = [] if paras.table is None else paras.table.column_names
    clusters = paras.column("cluster") if "cluster" in known else np.arange(len(paras))
    rows = []
    for number, recover in enumerate(attacks.values()):
        before = recover(original)
        _report(progress, 2 * number + 1, 2 * len(attacks))
        after = recover(edited)
        _report(progress, 2 * number + 2, 2 * len(attacks))
        asked = ~np.isnan(after)
        interval = cluster_bootstrap(after[asked], clusters[asked], seed=seed)
        rows.append([before[asked].mean(), after[asked].mean(), *interval, asked.sum()])
    values = np.array(rows, dtype=np.float64)
    attrs = {"units": "tokens", "higher": "more of the text is still there"}
    names = ("em_before", "em_after", "em_after_low", "em_after_high")
    variables = {name: ("attack", values[:, column], attrs) for column, name in enumerate(names)}
    count = ("attack", values[:, -1].astype(np.int64), {"units": "1", "long_name": "paragraphs the attack could ask"})
    settings = {"seed": seed, "continuation_len": paras.continuation_len, "interval": "95 %, clusters resampled"}
    return xr.Dataset(variables | {"paragraphs": count}, {"attack": list(attacks)}, settings)


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
