"""Detectors of the detection experiment: what each one reads, and how a fold is judged by the others."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from detection_rows import Rows

from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.detect.detector import Detector
from mechmem.detect.detector_settings import DetectorSettings
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.identity import model_identity
from mechmem.detect.probes.choose import Candidate, ProbeMethod
from mechmem.detect.probes.examples import Examples, cluster_folds
from mechmem.detect.probes.fit import fit_detector, step_scores, step_statistics
from mechmem.model.load import HookedTransformer

FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class Method:
    """A detector: the features it reads and its kind of probe.

    Attributes:
        groups: of features.
        depths: sets of residual streams to choose from by nested cross-validation, or ().
        probe: "logistic" or "boosting".
        rare: whether heads' attention to rare tokens is read.
        shuffled: whether labels are dealt out anew among clusters: a null.
    """

    groups: tuple[str, ...]
    depths: tuple[tuple[int, ...], ...] = ()
    probe: ProbeMethod = "logistic"
    rare: bool = True
    shuffled: bool = False


def methods(n_layers: int) -> dict[str, Method]:
    """All detectors by name."""
    some = tuple((depth,) for depth in sorted({n_layers // 3, 2 * n_layers // 3, n_layers}))
    every = (tuple(range(n_layers + 1)),)
    table = {
        "output": Method(("output",)),
        "output, boosting": Method(("output",), probe="boosting"),
        "prefix": Method(("prefix",)),
        "output + prefix": Method(("output", "prefix")),
        "output + prefix, boosting": Method(("output", "prefix"), probe="boosting"),
        "output + residual": Method(("output", "residual"), some),
        "output + prefix + residual": Method(("output", "prefix", "residual"), some),
        "output + lens": Method(("output", "lens"), every),
        "output + heads": Method(("output", "heads")),
        "output + heads, no rare tokens": Method(("output", "heads"), rare=False),
        "output + neurons": Method(("output", "neurons")),
        "text alone": Method(("text",)),
        "shuffled labels": Method(("output", "residual"), some[1:2], shuffled=True),
    }
    return table | {f"residual, depth {depth}": Method(("residual",), ((depth,),)) for depth in range(n_layers + 1)}


# What is judged on other text than it was trained on.
TRANSFER = ("output", "output + prefix", "output + residual", "output + prefix + residual")


def folds_of(rows: Rows, count: int) -> np.ndarray:
    """Fold of each row, by cluster; -1 for reserved rows, which every detector is trained on."""
    fold = np.full(len(rows.recites), -1)
    free = ~rows.reserved
    fold[free] = cluster_folds(rows.recites[free], rows.clusters[free], count, 0)
    return fold


def usable(rows: Rows) -> np.ndarray:
    """Rows that detectors are trained on: recitations, other text, and predictable texts of some families."""
    return rows.recites | rows.other | rows.taught


def train(
    rows: Rows, method: Method, chosen: np.ndarray, *, model: HookedTransformer, seed: int, settings: DetectorSettings
) -> Detector:
    """A detector fitted, calibrated and given its threshold on some rows.

    Args:
        rows: all of them.
        method: what it reads.
        chosen: rows to train on, bool [row].
        model: the bundled model.
        seed: of divisions.
        settings: of the fit.
    """
    part = Examples(only(rows.features, method), rows.recites, rows.clusters).select(np.flatnonzero(chosen))
    if method.shuffled:
        part = replace(part, recites=_dealt_anew(part, seed))
    candidates = [Candidate(method.probe, choice) for choice in choices(rows, method)]
    return fit_detector(part, candidates, identity=model_identity(model), settings=settings, seed=seed)


def choices(rows: Rows, method: Method) -> list[FeatureChoice]:
    """The choices of features among which a method's detector is chosen."""
    features = rows.features
    known: dict[str, Any] = {"groups": method.groups}
    if "heads" in method.groups:
        # "L1H2" is layer 1, head 2.
        known["heads"] = tuple(_pair(name[1:].replace("H", ".")) for name in features.head_name.values.tolist())
        known["rare"] = tuple(features.rare.values.tolist()) if method.rare else None
    if "neurons" in method.groups:
        known["neurons"] = tuple(_pair(name) for name in features.neuron.values.tolist())
    return [FeatureChoice(**known, depths=depths) for depths in method.depths or ((),)]


def _pair(name: str) -> tuple[int, int]:
    first, second = name.split(".")
    return int(first), int(second)


def judged(detector: Detector, features: xr.Dataset) -> xr.Dataset:
    """A detector's scores and statistics at every step of some rows, and its threshold."""
    data = {
        "score": (("paragraph", "k"), step_scores(detector, features).astype(np.float32)),
        "statistic": (("paragraph", "k"), step_statistics(detector, features).astype(np.float32)),
    }
    attrs = {
        "threshold": detector.threshold(FALSE_ALARMS),
        "null": len(detector.null),
        "depths": list(detector.choice.stream_depths) or [-1],
    }
    coords = {"paragraph": features.paragraph.values, "k": features.k.values}
    return xr.Dataset(data, coords, attrs)


def cross_fitted(
    rows: Rows, names: Sequence[str], model: HookedTransformer, settings: Any, folds: np.ndarray, work: Path
) -> None:
    """Judge every fold by detectors of the others; a result that is there is not made again.

    Args:
        rows: all of them.
        names: of methods.
        model: the bundled model.
        settings: of the experiment.
        folds: of each row.
        work: folder of results, "METHOD-FOLD.nc".
    """
    table = methods(model.cfg.n_layers)
    for name in names:
        for number, seed in enumerate(settings.seeds):
            path = work / f"{name}-{number}.nc"
            if path.is_file():
                continue
            started = time.perf_counter()
            chosen = usable(rows) & (folds != number)
            detector = train(rows, table[name], chosen, model=model, seed=seed, settings=settings.fit)
            if number == 0 and name in TRANSFER:
                detector.save(work / f"{name}-{number}")
            test = np.flatnonzero(folds == number)
            save_netcdf(judged(detector, only(rows.features, table[name]).isel(paragraph=test)), path)
            print(f"fold {number}, {time.perf_counter() - started:.0f} s: {name}: {detector}", flush=True)


def collected(rows: Rows, name: str, folds: int, work: Path) -> xr.Dataset:
    """The results of all folds, [row, k], NaN for reserved rows; `threshold` [row] is that of the row's fold."""
    parts = [load_netcdf(work / f"{name}-{number}.nc") for number in range(folds)]
    shape = len(rows.recites), parts[0].sizes["k"]
    found = {key: np.full(shape, np.nan, np.float32) for key in ("score", "statistic")}
    threshold = np.full(shape[0], np.nan)
    place = {int(number): at for at, number in enumerate(rows.paragraphs.ids)}
    for part in parts:
        at = [place[int(number)] for number in part.paragraph.values]
        for key, values in found.items():
            values[at] = part[key].values
        threshold[at] = part.attrs["threshold"]
    data: dict[str, Any] = {key: (("paragraph", "k"), values) for key, values in found.items()}
    data["threshold"] = ("paragraph", threshold)
    return xr.Dataset(data, {"paragraph": rows.paragraphs.ids, "k": parts[0].k.values})


def only(features: xr.Dataset, method: Method) -> xr.Dataset:
    """The features that a method reads."""
    # "output" brings the steps along, which the prefix alone does not have.
    rare = ["rare"] if method.rare and "heads" in method.groups else []
    found = features[sorted({*method.groups, "output", "said", "em", *rare})]
    if method.depths:
        needed = sorted({depth for depths in method.depths for depth in depths})
        found = found.sel(depth=needed)
    return found


def _dealt_anew(part: Examples, seed: int) -> np.ndarray:
    """Labels of clusters, in another order."""
    labels, members = np.unique(part.clusters, return_inverse=True)
    known = np.zeros(len(labels), dtype=bool)
    known[members] = part.recites
    return np.random.default_rng(seed).permutation(known)[members]
