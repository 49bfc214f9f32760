"""Which unlearning method costs least: methods, masks and controls with one stopping rule, on the bundled model.

    python experiments/unlearning.py     # about an hour on two cores; resumes; writes docs/unlearning.md

1. Learning rates are chosen on nearly memorized paragraphs (EM 30 to 49) from clusters that no run below uses.
2. For each seed, memorized clusters are split: targets from one half, held-out memorized paragraphs from the other.
   Other paragraphs are split into a keep set, which methods are given, and a set on which costs are measured.
3. Every method runs until the targets' mean EM is 10 of 50 or less, for at most `steps` steps. Then its cost is
   measured and the edited model is attacked.

The paper's own recipe takes its fixed number of steps, because it has no stopping rule. Results are saved after
each run.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from inputs import Inputs, open_inputs, start
from outputs import agree_on_settings, photograph, read_json, write_json
from samples import at_length, one_per_cluster, refuse_few, shuffled
from unlearning_page import Results, draw, write
from unlearning_ways import ROWS, Row, Sets, run

import mechmem as mm
from mechmem.data.bounds import Amount, Count, Seed, Share
from mechmem.intervene.attacks.prompts import perturbed_prefix_attack
from mechmem.intervene.attacks.quantize import quantize
from mechmem.intervene.attacks.relearn import relearning_attack
from mechmem.intervene.attacks.sampling import sampling_attack
from mechmem.model.load import HookedTransformer
from mechmem.weights.support import changed_weights


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seeds: of splits, samples, masks and orders.
        targets: number of memorized paragraphs to unlearn, one per cluster.
        held: number of paragraphs in every other set.
        steps: maximum number of steps.
        tuning_steps: maximum number of steps while learning rates are chosen.
        target_em: the stopping rule: mean EM of the targets, in tokens; None: a fifth of the continuation.
        fraction: share of the attention and MLP weights that sparse edits may move.
        relearning: maximum number of relearning steps; measured every tenth step.
        rows: names of the rows to run; empty: all.
        candidates: number of paragraphs from which sets are drawn; None: all.
        out: folder of the results.
        page: the table, or None.
    """

    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    targets: Count = 8
    held: Count = 16
    steps: Count = 100
    tuning_steps: Count = 30
    target_em: Amount | None = None
    fraction: Share = 0.001
    relearning: Count = 20
    rows: tuple[str, ...] = ()
    candidates: Count | None = None
    out: Path = Path("results/unlearning")
    page: Path | None = Path("docs/unlearning.md")


def rest_of(paragraphs: mm.Paragraphs, count: int) -> mm.Paragraphs:
    """All but the first `count`, and at least the last."""
    return paragraphs[min(count, len(paragraphs) - 1) :]


def split(paragraphs: mm.Paragraphs, em: np.ndarray, settings: Settings, seed: int) -> Sets:
    """Targets, held-out memorized, keep and other paragraphs for a seed; no two sets share a cluster."""
    order = np.random.default_rng(seed).permutation(len(paragraphs))
    paragraphs, em = paragraphs.select(order), em[order]
    known = np.isin(paragraphs.clusters, paragraphs.clusters[em == paragraphs.continuation_len])
    memorized = paragraphs.select(em == paragraphs.continuation_len)
    refuse_few({"memorized": len(np.unique(memorized.clusters))}, len(em), 3)
    targeted, held = memorized.split_by_cluster(0.5, seed=seed)
    keep, other = paragraphs.select((em <= paragraphs.continuation_len // 5) & ~known).split_by_cluster(0.5, seed=seed)
    return {
        "targets": one_per_cluster(targeted, settings.targets),
        "held-out memorized": one_per_cluster(held, settings.held),
        "relearned": rest_of(one_per_cluster(held, 2 * settings.held), settings.held),
        "keep": one_per_cluster(keep, settings.held),
        "other": one_per_cluster(other, settings.held),
    }


def development(paragraphs: mm.Paragraphs, em: np.ndarray, settings: Settings) -> Sets:
    """Nearly memorized targets and partly known keep and other sets, from clusters without a memorized paragraph."""
    order = np.random.default_rng(1000).permutation(len(paragraphs))
    paragraphs, em = paragraphs.select(order), em[order]
    known = np.isin(paragraphs.clusters, paragraphs.clusters[em == paragraphs.continuation_len])
    few, much = paragraphs.continuation_len // 5, at_length((30, 49), paragraphs.continuation_len)[0]
    half = paragraphs.select((em > few) & (em < much) & ~known)
    nearly = paragraphs.select((em >= much) & (em < paragraphs.continuation_len) & ~known)
    refuse_few({f"EM {few + 1} to {much - 1}": len(np.unique(half.clusters))}, len(em), 2)
    refuse_few({f"EM {much} and more, but not memorized": len(nearly)}, len(em))
    keep, other = half.split_by_cluster(0.5, seed=0)
    return {
        "targets": one_per_cluster(nearly, settings.targets),
        "keep": keep[: settings.held],
        "other": other[: 2 * settings.held],
    }


def price(before: HookedTransformer, after: HookedTransformer, sets: Sets, settings: Settings, seed: int) -> Any:
    """What an edit changed on every set, and what attacks recover."""
    targets = sets["targets"]
    found: dict[str, Any] = {}
    for name in ("targets", "held-out memorized", "other"):
        scored = mm.score(after, sets[name])
        found[f"{name} EM"] = float(scored.em.mean())
        found[f"{name} NLL"] = float(scored.nll.mean())
    found["keep KL"] = float(mm.kl(before, after, sets["keep"]).mean())
    found["other KL"] = float(mm.kl(before, after, sets["other"]).mean())
    found["held-out memorized KL"] = float(mm.kl(before, after, sets["held-out memorized"]).mean())
    found["weights"] = changed_weights(before, after)
    found["perturbed prefix EM"] = float(perturbed_prefix_attack(after, targets, draws=16, seed=seed).em_best.mean())
    found["extracted in 100 draws"] = float(
        sampling_attack(after, targets, draws=(100,), top_k=40).probability.values.mean()
    )
    found["int8 EM"] = float(mm.score(quantize(after, "int8"), targets).em.mean())
    training = mm.Training(settings.relearning, 1e-4)
    learned = relearning_attack(after, targets, sets["relearned"], training=training, every=10, seed=seed)
    found["relearning steps"] = int(learned.attrs.get("steps_until", -1))
    found["relearned EM"] = float(learned.em.mean("paragraph").max())
    return found


def choose_rates(model: HookedTransformer, sets: Sets, settings: Settings, known: dict[str, float]) -> dict[str, float]:
    """For each row with rates, the rate that meets the stopping rule with the lowest KL on the development sets."""
    length = sets["targets"].continuation_len
    goal = float(length // 5) if settings.target_em is None else settings.target_em
    for row in rows_of(settings):
        if not row.rates or row.name in known:
            continue
        tried = []
        for rate in row.rates:
            edited, _ = run(model, row, sets, replace(settings, steps=settings.tuning_steps), 1000, rate)
            em = float(mm.score(edited, sets["targets"]).em.mean())
            tried.append((max(em - goal, 0.0), float(mm.kl(model, edited, sets["other"]).mean()), rate))
        known[row.name] = min(tried)[2]
        write_json(settings.out / "rates.json", known)
        print(row.name, [(round(em, 1), round(kl, 3), rate) for em, kl, rate in tried], flush=True)
    return known


def rows_of(settings: Settings) -> list[Row]:
    """The selected rows."""
    return [row for row in ROWS if not settings.rows or row.name in settings.rows]


def main(settings: Settings, model: HookedTransformer | None = None) -> Results:
    """Run every row for every seed that has no result yet.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        Row -> seed -> measurements.
    """
    model, paragraphs = open_inputs(settings, model)
    if settings.candidates is not None:
        paragraphs = shuffled(paragraphs, 0)[: settings.candidates]
    if settings.target_em is None:
        settings = replace(settings, target_em=float(paragraphs.continuation_len // 5))
    em = mm.score(model, paragraphs).em.values
    tuned = development(paragraphs, em, settings)
    splits = {seed: split(paragraphs, em, settings, seed) for seed in settings.seeds}
    # Rows and seeds may be added later; devices differ by rounding.
    agree_on_settings(settings.out, settings, free=("rows", "seeds", "device", "out", "page"))
    rates = choose_rates(model, tuned, settings, read_json(settings.out / "rates.json"))
    results = read_json(settings.out / "results.json")
    for seed, sets in splits.items():
        for row in (None, *rows_of(settings)):
            name = "before" if row is None else row.name
            if str(seed) in results.get(name, {}):
                continue
            edited, how = model, {}
            if row is not None:
                edited, how = run(model, row, sets, settings, seed, rates.get(row.name))
            results.setdefault(name, {})[str(seed)] = how | price(model, edited, sets, settings, seed)
            write_json(settings.out / "results.json", results)
            brief = {key: round(value, 3) for key, value in results[name][str(seed)].items()}
            print(seed, name, brief, flush=True)
    figure = draw(results)
    if settings.page is not None:
        photograph(figure, settings.page.with_name("unlearning.png"))
    write(settings, results, rates)
    return results


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*diverged.*")
    start(main, Settings, __doc__)
