"""A detector in a folder: numbers as safetensors, everything else as JSON, nothing that is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.files import check_output, foreign_entries, replacing
from mechmem.data.stored_json import check_types, read_object
from mechmem.detect.detector import Detector
from mechmem.detect.detector_settings import DetectorSettings
from mechmem.detect.features.feature_choice import FeatureChoice, FeatureGroup
from mechmem.detect.features.step_features import feature_names
from mechmem.detect.identity import Identity
from mechmem.detect.probes.boosting import TreeProbes
from mechmem.detect.probes.calibration import IsotonicCalibration, PlattCalibration
from mechmem.detect.probes.logistic import LogisticProbes
from mechmem.detect.probes.rules import Rule
from mechmem.detect.probes.stored_arrays import check_finite, shaped
from mechmem.weights.tensor_files import read_tensors

TENSORS, ABOUT = "detector.safetensors", "detector.json"
FORMAT = 1
ADVICE = "train the detector again"
PROBES = {"logistic": LogisticProbes, "boosting": TreeProbes}
CALIBRATIONS = {"platt": PlattCalibration, "isotonic": IsotonicCalibration}
# What detector.json holds, beside notes.
TYPES: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "method": str,
    "calibration": str,
    "rule": str,
    "choice": dict,
    "names": list,
    "buckets": list,
    "generation_len": int,
    "identity": dict,
    "settings": dict,
    "notes": dict,
    "sha256": str,
}


def check_folder(folder: Path) -> None:
    """Refuse a folder that a detector cannot be written to, before any work.

    Raises:
        InputError: it holds files of something else, or cannot be written.
    """
    check_output(folder, "folder")
    foreign = [path for path in foreign_entries(folder) if path.name not in (TENSORS, ABOUT)] if folder.is_dir() else []
    if foreign:
        raise InputError(
            f"{folder}: holds files of something else ({foreign[0].name}); need a folder of its own: choose another"
        )


def write_detector(detector: Detector, folder: Path) -> None:
    """Both files at once: a folder is replaced as a whole."""
    check_folder(folder)
    tensors = {f"probe.{name}": tensor for name, tensor in detector.probes.tensors().items()}
    tensors |= {f"calibration.{name}": tensor for name, tensor in detector.calibration.tensors().items()}
    tensors |= {"null": torch.from_numpy(detector.null.copy()), "trained_on": torch.from_numpy(detector.trained_on)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(folder) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / TENSORS)
        about = {
            "format": FORMAT,
            "method": detector.method,
            "calibration": "platt" if isinstance(detector.calibration, PlattCalibration) else "isotonic",
            "rule": detector.rule,
            "choice": asdict(detector.choice),
            "names": list(detector.names),
            "buckets": list(detector.buckets),
            "generation_len": detector.generation_len,
            "identity": asdict(detector.identity),
            "settings": asdict(detector.settings),
            "notes": dict(detector.notes),
            "sha256": hashlib.sha256((temporary / TENSORS).read_bytes()).hexdigest(),
        }
        (temporary / ABOUT).write_text(json.dumps(about, indent=1))


def read_detector(folder: Path) -> Detector:
    """As `Detector.load`.

    Raises:
        InputError: files that are missing, damaged or of something else.
    """
    if not (folder / ABOUT).is_file():
        raise InputError(f"{folder}: holds no {ABOUT}; need a folder that Detector.save wrote")
    about = read_object(folder / ABOUT, advice=ADVICE)
    check_types(about, TYPES, folder / ABOUT, advice=ADVICE)
    if about["format"] != FORMAT:
        raise InputError(f"{folder}: is a detector of format {about['format']}, this version reads {FORMAT}; {ADVICE}")
    tensors, _ = read_tensors(folder / TENSORS, "Detector.save", ADVICE)
    if hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest() != about["sha256"]:
        raise InputError(f"{folder}: {TENSORS} was damaged or changed after it was written; {ADVICE}")
    try:
        return _made(about, tensors)
    except (InputError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise InputError(f"{folder}: is damaged or was changed ({error}); {ADVICE}") from error


def _made(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Detector:
    buckets, names = tuple(about["buckets"]), tuple(about["names"])
    _check_words(about, names)
    rising = all(isinstance(first, int) for first in buckets) and list(buckets) == sorted(set(buckets))
    if not rising or buckets[:1] != (0,) or about["generation_len"] < 1:
        raise InputError("buckets must rise from 0, and generation_len be at least 1")
    null = shaped(tensors, "null", torch.float64, (None,))
    check_finite({"null": null})
    if not len(null) or bool((null.diff() < 0).any()):
        raise InputError("'null' must hold sorted numbers")
    choice, identity = _choice(about["choice"]), _identity(about["identity"])
    _check_columns(names, choice, identity)
    probes = PROBES[about["method"]].stored(_part(tensors, "probe"), len(buckets), len(names))
    calibration = CALIBRATIONS[about["calibration"]].stored(_part(tensors, "calibration"), len(buckets))
    trained_on = shaped(tensors, "trained_on", torch.int64, (None,)).numpy()
    return Detector(
        choice,
        names,
        buckets,
        probes,
        calibration,
        about["rule"],
        null.numpy(),
        about["generation_len"],
        identity,
        DetectorSettings(**{name: _tuples(value) for name, value in about["settings"].items()}),
        trained_on,
        about["notes"],
    )


def _check_words(about: Mapping[str, Any], names: tuple[Any, ...]) -> None:
    for name, known in (("method", PROBES), ("calibration", CALIBRATIONS), ("rule", get_args(Rule))):
        if about[name] not in known:
            raise InputError(f"{name} is {about[name]!r}; need one of {', '.join(known)}")
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError("'names' must be different names of columns")


def _check_columns(names: tuple[str, ...], choice: FeatureChoice, identity: Identity) -> None:
    """Refuse columns that this version would read in another order, or not at all."""
    wide = len(choice.depths) * identity.d_model if "residual" in choice.groups else 0
    deep = identity.layers if "gradient" in choice.groups else 0
    # Looked at first: names of a width that somebody made up would fill the memory.
    if max(wide, deep) > len(names) or feature_names(choice, identity.d_model, identity.layers) != names:
        raise InputError("its columns are not those that this version reads for its features")


def _choice(stored: Mapping[str, Any]) -> FeatureChoice:
    values = {name: _tuples(value) for name, value in stored.items()}
    if not values.get("groups") or not set(values["groups"]) <= set(get_args(FeatureGroup)):
        raise InputError(f"'choice' names the groups {values.get('groups')!r}")
    choice = FeatureChoice(**values)
    whole: list[Any] = [*choice.depths, *(choice.rare or ())]
    for pair in (*choice.heads, *choice.neurons):
        if len(pair) != 2:
            raise InputError(f"'choice' names {pair!r}; need a layer and an index")
        whole += pair
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in whole):
        raise InputError("'choice' must name layers, heads, neurons and tokens by numbers from 0")
    return choice


def _identity(stored: Mapping[str, Any]) -> Identity:
    kinds = {each.name: str if each.type.startswith("str") else int for each in fields(Identity)}  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in stored.items():
        if not isinstance(value, kinds[name]) and not (name == "tokenizer" and value is None):
            raise InputError(f"identity's {name} is {value!r}")
    return Identity(**stored)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.split(".", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}
