"""One kind of document held out at a time: does a detector know a kind it was never trained on, does its bound hold?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detection_compare import Scores
from detection_methods import FALSE_ALARMS, judged, methods, only, train, usable
from detection_rows import Rows
from detection_statistics import conformal_threshold, one_of_each, share
from scipy.stats import binomtest

from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.model.load import HookedTransformer


def kinds_of(rows: Rows) -> list[str]:
    """Kinds of the bundled corpus, in order."""
    return sorted(set(rows.paragraphs.column("source")[~rows.predictable].tolist()))


def held_out(rows: Rows, names: tuple[str, ...], model: HookedTransformer, settings: Any, work: Path) -> None:
    """Judge every kind by detectors that were trained on the others; a result that is there is not made again."""
    table = methods(model.cfg.n_layers)
    sources = rows.paragraphs.column("source")
    for name in names:
        for number, kind in enumerate(kinds_of(rows)):
            path = work / f"{name}-{number}.nc"
            if path.is_file():
                continue
            detector = train(
                rows,
                table[name],
                usable(rows) & (sources != kind),
                model=model,
                seed=settings.seeds[0],
                settings=settings.fit,
            )
            test = np.flatnonzero(sources == kind)
            save_netcdf(judged(detector, only(rows.features, table[name]).isel(paragraph=test)), path)
            print(f"{kind} held out: {name}: {detector}", flush=True)


def by_kind(rows: Rows, names: tuple[str, ...], work: Path) -> dict[str, Scores]:
    """Scores of every row by detectors that never saw its kind."""
    found = {}
    sources = rows.paragraphs.column("source")
    for name in names:
        paths = [work / f"{name}-{number}.nc" for number in range(len(kinds_of(rows)))]
        if not all(path.is_file() for path in paths):
            continue
        parts = [load_netcdf(path) for path in paths]
        shape = len(sources), parts[0].sizes["k"]
        score, statistic, threshold = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape[0], np.nan)
        for kind, part in zip(kinds_of(rows), parts, strict=True):
            at = sources == kind
            score[at], statistic[at] = part.score.values, part.statistic.values
            threshold[at] = part.attrs["threshold"]
        found[name] = Scores(score, statistic, threshold, True)
    return found


def bound(scores: Mapping[str, Scores], rows: Rows) -> dict[str, Any]:
    """Whether the bound on false alarms holds on kinds that were held out, in three ways to set the threshold.

    "own": from clusters of the kinds trained on, as `train_detector` does. "other kinds": from the statistics that
    other kinds' texts had when these kinds were held out themselves. "worst kind": the highest of these kinds' own
    thresholds. The last two use detectors that were trained with the kind they are judged on as well, each with another
    kind left out, so that only thresholds, and no scores of the judged kind, come from it.
    """
    sources = rows.paragraphs.column("source")
    found: dict[str, Any] = {}
    for name, method in scores.items():
        last = method.statistic[:, -1]
        ways: dict[str, np.ndarray] = {"own": method.threshold.copy()}
        for way in ("other kinds", "worst kind"):
            ways[way] = np.full(len(last), np.nan)
        for kind in kinds_of(rows):
            others = [other for other in kinds_of(rows) if other != kind]
            nulls = [
                last[one_of_each(rows.clusters, np.flatnonzero(rows.other & (sources == other)))] for other in others
            ]
            ways["other kinds"][sources == kind] = conformal_threshold(np.concatenate(nulls), FALSE_ALARMS)
            ways["worst kind"][sources == kind] = max(conformal_threshold(null, FALSE_ALARMS) for null in nulls)
        found[name] = {way: _rates(last > threshold, rows) for way, threshold in ways.items()}
        found[name]["by kind"] = {
            kind: [
                int((last > method.threshold)[rows.other & (sources == kind)].sum()),
                int((rows.other & (sources == kind)).sum()),
            ]
            for kind in kinds_of(rows)
        }
    return found


def _rates(flagged: np.ndarray, rows: Rows) -> dict[str, Any]:
    other, recites = np.flatnonzero(rows.other), np.flatnonzero(rows.recites)
    single = one_of_each(rows.clusters, other)
    alarms = int(flagged[single].sum())
    exact = binomtest(alarms, len(single), FALSE_ALARMS, alternative="greater")
    return {
        "false alarms": share(flagged[other], rows.clusters[other]),
        "flagged": share(flagged[recites], rows.clusters[recites]),
        "one per cluster": [alarms, len(single)],
        "p that the bound holds": float(exact.pvalue),
    }
