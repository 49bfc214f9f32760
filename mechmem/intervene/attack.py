"""Is the text gone or only hidden: every attack on an edited model, and the same attacks on the original."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import xarray as xr
from jaxtyping import Num

from mechmem.data.bounds import Count, Rate, Seed, check_fields
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, between
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
from mechmem.intervene.baseline import Baseline, baseline_of
from mechmem.measure.scores import score
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.stats.bootstrap import cluster_bootstrap
from mechmem.stats.ranges import token_range
from mechmem.weights.training import Training, gathering

# The share of the layers, at least one, that the original model lends to read the edited one's activations.
LATE_SHARE = 0.25
Attack = Literal[
    "none",
    "perturbed prefix",
    "prefix length",
    "sampling",
    "near-duplicates",
    "quantization",
    "relearning",
    "late layers",
]
# What an attack recovers from a model: one number a paragraph, tokens; NaN where it has nothing to ask.
Recover = Callable[[HookedTransformer, ProgressLike], Num[np.ndarray, " paragraph"]]


@dataclass(frozen=True)
class AttackSizes:
    """How hard the attacks try.

    Attributes:
        draws: changed prefixes of each paragraph.
        samples: sampled continuations of each paragraph.
        steps: updates of relearning.
        learning_rate: of relearning.
        batch_size: paragraphs of one update of relearning.

    Raises:
        InputError: a number that is out of its bounds.
    """

    draws: Count = 32
    samples: Count = 100
    steps: Count = 30
    learning_rate: Rate = 1e-4
    batch_size: Count = 8

    def __post_init__(self) -> None:
        check_fields(self)


@gathering(AttackSizes, "sizes")
@public("refuse", renamed={"paras": "paragraphs"})
def attack(
    original: HookedTransformer,
    edited: HookedTransformer,
    paragraphs: Paragraphs,
    other_memorized: Paragraphs,
    *,
    near: Paragraphs | None = None,
    attacks: Sequence[Attack] | None = None,
    sizes: AttackSizes | None = None,
    baseline: Baseline | None = None,
    seed: Seed = 0,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """How much of the targets each attack recovers from the edited model, and from the original.

    Every row is the mean over paragraphs of an EM in tokens:

    - none: the prefix as it is (`score`).
    - perturbed prefix: the best of `sizes.draws` prefixes with one token changed (`perturbed_prefix_attack`).
    - prefix length: the best of shorter and longer prompts; after a longer one only what it does not give counts, so
      the row never flatters itself with tokens that were given (`prefix_length_attack`).
    - sampling: expected EM of the best of `sizes.samples` draws, top-k 40 (`sampling_attack`).
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
        paragraphs: what the edit should have removed; intervals are by cluster if the table has a column `cluster`.
        other_memorized: memorized paragraphs of other clusters, to relearn from.
        near: near-duplicates of the targets; None: no such row.
        attacks: names of the rows, in any order; None: all for which there are paragraphs.
        sizes: draws, samples and steps; None: `AttackSizes()`.
        baseline: `Baseline(original)`, where several edits are attacked: the attacks on the original run once.
        seed: of changed prefixes and of the order of relearning.
        progress: called with (work done, work), in units of about one forward of all targets, both models together.

    Returns:
        Dataset [attack], tokens, higher: more of the text is still there: em_before (the attack on `original`),
        em_after (on `edited`), em_after_low, em_after_high (95 % interval of em_after, by cluster);
        paragraphs[attack]: how many the attack could ask; seconds[attack]: what it took.

    Raises:
        InputError: models of different shapes, targets shared with other_memorized, no near-duplicate among `near`, an
            unknown attack, a baseline of another model, or paragraphs that do not fit.
        NotFiniteError: the learning rate is too high.
    """
    sizes = sizes or AttackSizes()
    check_pair(original, edited)
    check_relearning(original, paragraphs, other_memorized)
    if near is not None:
        near_pairs(paragraphs, near)
    known = baseline_of(original, baseline) or Baseline(original)
    available = _prompt_attacks(paragraphs, near, sizes, seed)
    available |= _weight_attacks(original, paragraphs, other_memorized, sizes, seed)
    chosen: dict[Attack, Recover] = {name: available[name] for name in _chosen(attacks, near)}
    settings = (sizes, seed, other_memorized.ids.tolist(), None if near is None else near.ids.tolist())
    work: dict[Attack, int] = {name: _work(name, sizes, original.cfg.n_layers) for name in chosen}
    total, done, rows = 2 * sum(work.values()), 0, []
    for name, recover in chosen.items():
        started, middle, end = time.perf_counter(), done + work[name], done + 2 * work[name]
        first, second = between(progress, done, middle, total), between(progress, middle, end, total)
        before = known.once(name, paragraphs, settings, lambda run=recover, report=first: run(original, report))
        after = recover(edited, second)
        if second is not None:
            second(1, 1)
        rows.append(_row(before, after, paragraphs) | {"seconds": time.perf_counter() - started})
        done = end
    return _dataset(list(chosen), rows, paragraphs, seed)


def _chosen(attacks: Sequence[Attack] | None, near: Paragraphs | None) -> list[Attack]:
    """The rows, in their usual order."""
    for name in attacks or ():
        check_choice("attack", name, Attack)
    if attacks is not None and not attacks:
        raise InputError("got no attack; need at least one, or None for all")
    if attacks is not None and "near-duplicates" in attacks and near is None:
        raise InputError("got the attack 'near-duplicates' and no near-duplicates; give some with near=")
    usual: tuple[Attack, ...] = get_args(Attack)
    return [name for name in usual if (name != "near-duplicates" or near is not None) and name in (attacks or usual)]


def _work(name: Attack, sizes: AttackSizes, layers: int) -> int:
    """About how many forwards of all targets an attack takes on one model."""
    counts = {"perturbed prefix": sizes.draws, "prefix length": 6, "near-duplicates": 2, "quantization": 4}
    counts |= {"relearning": 3 * sizes.steps, "late layers": (layers + 3) // 2 + 1}
    return counts.get(name, 1)


def _prompt_attacks(
    paragraphs: Paragraphs, near: Paragraphs | None, sizes: AttackSizes, seed: int
) -> dict[Attack, Recover]:
    """Those that ask the model otherwise and leave its weights."""

    def perturbed(model: HookedTransformer, progress: ProgressLike) -> Num[np.ndarray, " paragraph"]:
        found = perturbed_prefix_attack(model, paragraphs, draws=sizes.draws, seed=seed, progress=progress)
        return found.em_best.values

    def sampled(model: HookedTransformer, progress: ProgressLike) -> Num[np.ndarray, " paragraph"]:
        found = sampling_attack(model, paragraphs, draws=(sizes.samples,), progress=progress)
        return found.em_best.values[:, 0]

    attacks: dict[Attack, Recover] = {
        "none": lambda model, progress: score(model, paragraphs, progress=progress).em.values,
        "perturbed prefix": perturbed,
        "prefix length": lambda model, progress: (
            prefix_length_attack(model, paragraphs, progress=progress).em.max("given").values
        ),
        "sampling": sampled,
    }
    if near is not None:
        attacks["near-duplicates"] = lambda model, progress: (
            near_duplicate_attack(model, paragraphs, near, progress=progress).target_em_best.values
        )
    return attacks


def _weight_attacks(
    original: HookedTransformer, paragraphs: Paragraphs, other_memorized: Paragraphs, sizes: AttackSizes, seed: int
) -> dict[Attack, Recover]:
    """Those that change the model, or read its activations."""

    def relearned(model: HookedTransformer, progress: ProgressLike) -> Num[np.ndarray, " paragraph"]:
        found = relearning_attack(
            model,
            paragraphs,
            other_memorized,
            training=Training(sizes.steps, sizes.learning_rate, batch_size=sizes.batch_size),
            every=max(1, sizes.steps // 5),
            seed=seed,
            progress=progress,
        )
        # One model for all paragraphs: the best step of each would be the best of many tries.
        return found.em.values[found.em.values.mean(1).argmax()]

    def late(model: HookedTransformer, progress: ProgressLike) -> Num[np.ndarray, " paragraph"]:
        lent = max(1, round(LATE_SHARE * original.cfg.n_layers))
        return depth_score(original, model, paragraphs, progress=progress).em.values[-1 - lent :].max(0)

    return {
        "quantization": lambda model, progress: (
            quantization_attack(model, paragraphs, progress=progress).em.max("scheme").values
        ),
        "relearning": relearned,
        "late layers": late,
    }


def _row(before: np.ndarray, after: np.ndarray, paragraphs: Paragraphs) -> dict[str, float]:
    """One row of the table, over the paragraphs that the attack could ask."""
    asked = ~np.isnan(after)
    within = token_range(paragraphs.continuation_len)
    low, high = cluster_bootstrap(after[asked], paragraphs.clusters[asked], within=within)
    ends = {"em_after_low": low, "em_after_high": high, "paragraphs": float(asked.sum())}
    return {"em_before": float(before[asked].mean()), "em_after": float(after[asked].mean())} | ends


def _dataset(names: list[Attack], rows: list[dict[str, float]], paragraphs: Paragraphs, seed: int) -> xr.Dataset:
    about = {
        "paragraphs": {"units": "1", "long_name": "paragraphs the attack could ask"},
        "seconds": {"units": "s", "long_name": "both models, without what the baseline held"},
    }
    tokens = {"units": "tokens", "higher": "more of the text is still there"}
    variables = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        kind = np.int64 if name == "paragraphs" else np.float64
        variables[name] = ("attack", values.astype(kind), about.get(name, tokens))
    settings = {"seed": seed, "continuation_len": paragraphs.continuation_len, "interval": "95 %, by cluster"}
    return xr.Dataset(variables, {"attack": names}, settings)
