"""The detector of a study: trained on half of its clusters, judged on the other half, by `mechmem detect`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.checksums import damaged
from mechmem.data.errors import InputError
from mechmem.data.files import check_output, replacing
from mechmem.data.netcdf import save_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, between
from mechmem.data.settings_match import refuse_other_settings
from mechmem.data.spread_sample import spread_sample
from mechmem.data.stored_json import read_object
from mechmem.detect.detector import Detector
from mechmem.detect.evaluation.compared_methods import EvaluationSettings
from mechmem.detect.evaluation.evaluate_detector import evaluate_detector
from mechmem.detect.training.train_detector import train_detector
from mechmem.report.study_contents import read_result
from mechmem.study.config import described
from mechmem.study.detection_examples import chosen_examples
from mechmem.study.detection_settings import DetectionSettings
from mechmem.study.folder import DETECTOR, SETS, StudyFolder
from mechmem.study.stages import token_frequencies

RESULT, WORK, SETTINGS = "detect.nc", "detector-work", "settings.json"
FILES = (RESULT, f"{DETECTOR}/detector.json", f"{DETECTOR}/detector.safetensors")
# Of the whole, what training takes; the rest is judging.
TRAINING = 0.6
ADVICE = f"remove {RESULT}, {DETECTOR} and {WORK} to train another detector, or repeat these settings"


def run_detection(study: StudyFolder, settings: DetectionSettings, *, progress: ProgressLike = None) -> xr.Dataset:
    """Train a study's detector and judge it; -> detector/, detect.nc.

    1. The memorized and the other paragraphs are split by cluster: no near-duplicate is on both sides.
    2. The detector is trained on one half. What was decoded for it is kept in `detector-work/` until all is done, so
       that a call that was stopped goes on.
    3. It is judged on the other half, beside the free baselines; a few generations are kept as examples.

    Args:
        study: scanned, with two clusters of each set in each half.
        settings: what decides the numbers, beside the study's seed.
        progress: called with (done, total).

    Returns:
        What `evaluate_detector` gives, with examples; `attrs` hold the settings as JSON. A study that has it already is
        read.

    Raises:
        InputError: a detector of other settings, too few clusters, or as `train_detector`.
    """
    known = finished(study.folder, settings)
    if known is not None:
        return known
    check_output(study.folder / DETECTOR, "folder")
    check_output(study.folder / RESULT)
    memorized, other, judged = detection_sets(study, settings)
    with study.writing(*FILES):
        _begin(study.folder / WORK, settings)
        detector = _trained(study, settings, memorized, other, between(progress, 0, int(100 * TRAINING), 100))
        found = evaluate_detector(
            detector,
            study.model,
            judged,
            counts=token_frequencies(study),
            base_rate=float((study.paragraphs.column("set").astype(str) == SETS[0]).mean()),
            settings=EvaluationSettings(false_alarms=settings.false_alarms, seed=study.settings.seed),
            progress=between(progress, int(100 * TRAINING), 100, 100),
        )
        found = found.merge(chosen_examples(found, judged, study.model.tokenizer, seed=study.settings.seed))
        about = {"model": study.settings.model, "settings": json.dumps(described(settings))}
        found = found.assign_attrs(about | {"prefix_len": judged.prefix_len})
        detector.save(study.folder / DETECTOR)
        save_netcdf(found, study.folder / RESULT)
        shutil.rmtree(study.folder / WORK)
    return found


def finished(folder: Path, settings: DetectionSettings) -> xr.Dataset | None:
    """The result that a study has with these settings; None where there is none, or where a file was damaged.

    Raises:
        InputError: it has one of other settings.
    """
    if not all((folder / name).is_file() for name in FILES) or not set(FILES).isdisjoint(damaged(folder)):
        return None
    found = read_result(folder, RESULT)
    _refuse_others(folder / RESULT, json.loads(found.attrs["settings"]), settings)
    return found


def detection_sets(study: StudyFolder, settings: DetectionSettings) -> tuple[Paragraphs, Paragraphs, Paragraphs]:
    """The memorized and the other paragraphs to train on, and those of both sets to judge on, which share no cluster.

    Raises:
        InputError: fewer than two clusters of a set in one of the halves.
    """
    labelled = study.paragraphs.select(np.flatnonzero(np.isin(study.paragraphs.column("set").astype(str), SETS)))
    training, judging = labelled.split_by_cluster(0.5, seed=study.settings.seed)
    drawn = [_drawn(study, training, name, settings.trained) for name in SETS]
    judged = np.sort(np.concatenate([_drawn(study, judging, name, settings.evaluated) for name in SETS]))
    return training.select(drawn[0]), training.select(drawn[1]), judging.select(judged)


def _drawn(study: StudyFolder, half: Paragraphs, name: str, count: int | None) -> np.ndarray:
    """Rows of a set in one half, from as many clusters as can be."""
    members = np.flatnonzero(half.column("set").astype(str) == name)
    clusters = half.column("cluster")[members]
    if len(np.unique(clusters)) < 2:
        raise InputError(
            f"{study.folder}: one half of its clusters has {len(np.unique(clusters))} clusters of {name} paragraphs; "
            "need at least 2 to train a detector and to judge it: scan more text"
        )
    return spread_sample(members, clusters, count, seed=[study.settings.seed, len(name)])


def _begin(work: Path, settings: DetectionSettings) -> None:
    """Make the folder of the work, or find what was begun with the same settings.

    Raises:
        InputError: it was begun with others.
    """
    stored = work / SETTINGS
    if stored.is_file():
        _refuse_others(work, read_object(stored, advice=ADVICE), settings)
    with replacing(stored) as temporary:
        temporary.write_text(json.dumps(described(settings)))


def _refuse_others(place: Path, was: dict[str, Any], settings: DetectionSettings) -> None:
    refuse_other_settings(place, was, described(settings), advice=ADVICE)


def _trained(
    study: StudyFolder,
    settings: DetectionSettings,
    memorized: Paragraphs,
    other: Paragraphs,
    progress: ProgressLike,
) -> Detector:
    """The detector, or what a stopped call had trained already."""
    done = study.folder / WORK / DETECTOR
    if (done / "detector.json").is_file():
        return Detector.load(done)
    detector = train_detector(
        study.model,
        memorized,
        other,
        features=settings.features,
        method=settings.method,
        work=study.folder / WORK / "decoded",
        seed=study.settings.seed,
        progress=progress,
    )
    detector.save(done)
    return detector
