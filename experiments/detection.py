"""Can recitation be noticed while a model speaks: detectors against output statistics, on the bundled model.

    python experiments/detection.py     # resumes; writes docs/detection.md

1. Rows are decoded once; the training text is written again, to tell recitations of another text from other text.
2. Each fold of clusters, with a seed of its own, is judged by detectors that were trained on the other folds.
3. Detectors and output statistics are compared on the same rows, on matched sets, and on text of other kinds.

Everything is kept in a folder as it is made, so the same command goes on where it was stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import detection_nulls as nulls
import numpy as np
from detection_actions import actions
from detection_compare import BEST, detector_scores, free_statistics, sets_of, special_rows, table
from detection_kinds import bound, by_kind, held_out
from detection_methods import TRANSFER, cross_fitted, folds_of, methods
from detection_models import MODELS
from detection_page import write
from detection_rows import Rows, open_rows
from detection_sets import confound_auc, synthetic_corpus
from detection_transfer import ROWS, bench_of, judge
from inputs import start
from outputs import agree_on_settings, read_json, write_json

import mechmem as mm
from mechmem.data.bounds import Count, Rate, Seed, Share, check_fields
from mechmem.detect.detector_settings import DetectorSettings, Folds
from mechmem.model.load import HookedTransformer

# What is compared on kinds that were held out.
KINDS = ("output", "output + prefix", "output + residual", "output + prefix + residual")


@dataclass(frozen=True)
class Settings:
    """What decides the numbers.

    Attributes:
        seeds: one for each fold of clusters, of what is random in its detectors.
        candidates: number of bundled paragraphs; None: all.
        predictable: number of predictable texts of each family.
        reserved: share of the clusters that every detector is trained on and none judged on: neurons are chosen there.
        localized: number of paragraphs that neurons and heads are localized on.
        localizer: method of `mm.localize_neurons`.
        neuron_share: share of all neurons that the group "neurons" has.
        penalties: C of logistic regression to choose from by nested cross-validation.
        inner_folds: of the clusters that a detector is trained on, for that choice and that of the depth.
        only: names of the detectors whose features are decoded and that are trained; empty: all.
        sections: names of the sections that are run; empty: all.
        perturbed: number of memorized paragraphs whose prefix is perturbed.
        edited: number of memorized paragraphs that the edited model forgets.
        injected: number of paragraphs that are injected.
        planted: number of memories written by hand, beside four times as many other texts.
        gradients: number of recitations, and of other texts, whose gradients are computed.
        acted: number of recitations, and of other texts, on which the monitor acts.
        sampled_windows: number of windows of the training text for the base rates.
        draws: resamples of clusters for intervals of rates by rank; those of means are computed without.
        out: folder of the results.
        page: the page, or None.
    """

    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    candidates: Count | None = None
    predictable: Count = 20
    reserved: Share = 0.05
    localized: Count = 16
    localizer: Literal["gate_gradient", "zero_out"] = "gate_gradient"
    neuron_share: Share = 0.005
    penalties: tuple[Rate, ...] = (0.1, 1.0)
    inner_folds: Folds = 3
    only: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    perturbed: Count = 24
    edited: Count = 8
    injected: Count = 12
    planted: Count = 10
    gradients: Count = 40
    acted: Count = 40
    sampled_windows: Count = 400
    draws: Count = 400
    out: Path = Path("results/detection")
    page: Path | None = Path("docs/detection.md")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def fit(self) -> DetectorSettings:
        """Settings of every detector; predictable texts are given to it as they are."""
        return DetectorSettings(penalties=self.penalties, folds=self.inner_folds)


# Settings that decide nothing that is kept.
FREE = ("out", "page", "draws", "sections")


def main(settings: Settings, model: HookedTransformer | None = None) -> dict[str, Any]:
    """Run what has no result yet, and write the page after every section.

    Args:
        settings: what decides the numbers.
        model: the bundled model, if it is loaded already.

    Returns:
        Every section's numbers, as in results.json.
    """
    model = mm.load_model("bundled") if model is None else model
    agree_on_settings(settings.out, settings, free=FREE)
    table = methods(model.cfg.n_layers)
    groups = {group for name in names_of(settings, model) for group in table[name].groups}
    rows = open_rows(settings, model, sorted(groups))
    folds = folds_of(rows, len(settings.seeds))
    results = read_json(settings.out / "results.json")
    for name, section in SECTIONS.items():
        if settings.sections and name not in settings.sections:
            continue
        section(settings, model, rows, folds, results)
        write_json(settings.out / "results.json", results)
        print(f"section {name} is done", flush=True)
        write(settings, results)
    return results


Section = Callable[[Settings, HookedTransformer, Rows, np.ndarray, dict[str, Any]], None]


def names_of(settings: Settings, model: HookedTransformer) -> list[str]:
    """Detectors that are trained."""
    return [name for name in methods(model.cfg.n_layers) if not settings.only or name in settings.only]


def count_truth(settings: Settings, _: HookedTransformer, rows: Rows, folds: np.ndarray, results: dict) -> None:
    """How many rows are what, and whether confounds alone tell them."""
    truth, own = rows.truth, ~rows.predictable
    named = {"recites": rows.recites, "other": rows.other, "predictable": rows.predictable}
    named["recites, but not in the training text"] = rows.recites & (rows.paragraphs.column("count") == 0)
    named |= {name: getattr(truth, name) & own for name in ("elsewhere", "partly", "between")}
    results["rows"] = {name: [int(part.sum()), len(np.unique(rows.clusters[part]))] for name, part in named.items()}
    outside = rows.recites & (rows.paragraphs.column("count") == 0)
    results["rows"]["recites, but not in the training text"] = [
        int(outside.sum()),
        len(np.unique(rows.clusters[outside])),
    ]
    results["said"] = {
        name: float(np.exp(-rows.features.said_nll.values[part].mean())) for name, part in named.items() if part.any()
    }
    results["sets"] = {}
    for name, chosen in sets_of(rows, folds).items():
        part, labels = rows.paragraphs.select(chosen), rows.recites[chosen]
        auc = confound_auc(part, labels.astype(int), draws=settings.draws)
        results["sets"][name] = {"recites": int(labels.sum()), "other": int((~labels).sum()), "confounds": auc}


def compare(settings: Settings, model: HookedTransformer, rows: Rows, folds: np.ndarray, results: dict) -> None:
    """Train what has no result, then compare everything on the sets."""
    names, work = names_of(settings, model), settings.out / "folds"
    cross_fitted(rows, names, model, settings, folds, work)
    scores = detector_scores(rows, names, len(settings.seeds), work) | free_statistics(rows, folds, model)
    results["compared"] = {
        name: table(scores, rows, chosen, settings.draws) for name, chosen in sets_of(rows, folds).items()
    }
    results["special"] = special_rows(scores, rows, folds)


def hold_out_kinds(settings: Settings, model: HookedTransformer, rows: Rows, folds: np.ndarray, results: dict) -> None:
    """Leave one kind out."""
    names, work = tuple(name for name in KINDS if name in names_of(settings, model)), settings.out / "kinds"
    held_out(rows, names, model, settings, work)
    scores = by_kind(rows, names, work)
    sets = sets_of(rows, folds)
    free = free_statistics(rows, folds, model)
    results["kinds"] = {
        name: table(scores | {BEST: free[BEST]}, rows, chosen, settings.draws) for name, chosen in sets.items()
    }
    results["bound"] = bound(scores, rows)


def transfer(settings: Settings, model: HookedTransformer, rows: Rows, folds: np.ndarray, results: dict) -> None:
    """Text of another kind, each a row; a row that is there is not run again."""
    bench = bench_of(settings, model, rows, folds, [name for name in TRANSFER if name in names_of(settings, model)])
    found = results.setdefault("transfer", {})
    for name, make in (ROWS | MODELS).items():
        if name not in found:
            judged = make(bench)
            counts = [int(part.any(1).sum()) for part in (judged.recites, judged.other)]
            found[name] = {"rows": counts, "notes": dict(judged.notes)} | judge(judged, bench.detectors, settings.draws)
            write_json(settings.out / "results.json", results)
            print("transfer", name, found[name]["rows"], judged.notes, flush=True)


def act(settings: Settings, model: HookedTransformer, rows: Rows, folds: np.ndarray, results: dict) -> None:
    """What a monitor's actions prevent and cost."""
    bench = bench_of(settings, model, rows, folds, [name for name in TRANSFER if name in names_of(settings, model)])
    if "actions" not in results:
        results["actions"] = actions(bench)


def limits(settings: Settings, model: HookedTransformer, rows: Rows, folds: np.ndarray, results: dict) -> None:
    """A random model, the corpus' own rate, and gradients."""
    if "base rates" not in results:
        results["base rates"] = nulls.base_rates(model, synthetic_corpus(), rows.corpus, settings.sampled_windows)
    if "random model" not in results:
        results["random model"] = nulls.random_model_row(rows, model, sets_of(rows, folds), settings)
    if "gradients" not in results:
        results["gradients"] = nulls.gradient_ceiling(rows, model, settings)


SECTIONS: dict[str, Section] = {
    "truth": count_truth,
    "compared": compare,
    "kinds": hold_out_kinds,
    "transfer": transfer,
    "limits": limits,
    "actions": act,
}


if __name__ == "__main__":
    start(main, Settings, __doc__)
