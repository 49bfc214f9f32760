"""What a study folder holds, read once; a file that is not there yet is None."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.stored_json import read_object
from mechmem.report.study_contents import SCORES, read_paragraphs, read_result

RESTORE = "restore the file, or run the study again in a new folder"


@dataclass(frozen=True)
class StudyFiles:
    """A study folder's results.

    Attributes:
        manifest: `study.json`.
        paragraphs: `paragraphs.parquet`.
        gradients: `gradients.nc`: max_gradient[set, layer, component], layer_share[set, layer].
        heads: `heads.nc`: em_change, nll_change [set, layer, head].
        rare: `rare.nc`: spearman, kendall, excess, p_value [layer, head].
        attention: `attention.nc`: patterns to show.
        patching: `patching.nc`: resid_pre[paragraph, layer, pos], z[paragraph, layer, head, pos].
        unlearned: `unlearn.nc`: em_mean and others [mask, set].
        attacks: `attacks.nc`: em_before, em_after [mask, attack].
        detection: `detect.nc`: what a detector finds [method, k], its alarms, and examples; of `mechmem detect`.
    """

    manifest: dict[str, Any] | None = None
    paragraphs: Paragraphs | None = None
    gradients: xr.Dataset | None = None
    heads: xr.Dataset | None = None
    rare: xr.Dataset | None = None
    attention: xr.Dataset | None = None
    patching: xr.Dataset | None = None
    unlearned: xr.Dataset | None = None
    attacks: xr.Dataset | None = None
    detection: xr.Dataset | None = None

    def column(self, name: str) -> np.ndarray | None:
        """A column of the paragraphs' table, or None if there is none."""
        if self.paragraphs is None or self.paragraphs.table is None:
            return None
        return self.paragraphs.column(name) if name in self.paragraphs.table.column_names else None

    def column_names(self) -> set[str]:
        """Names of the paragraphs' columns."""
        known = None if self.paragraphs is None else self.paragraphs.table
        return set() if known is None else set(known.column_names)

    def counts(self) -> np.ndarray | None:
        """How often each paragraph occurs in the training text, or None where that is not known of all of them."""
        count = self.column("count")
        return count if count is not None and np.issubdtype(count.dtype, np.integer) else None

    def members(self, name: str) -> np.ndarray:
        """The rows of a set, "memorized", "between" or "other"; none without paragraphs."""
        labels = self.column("set")
        return np.zeros(0, dtype=int) if labels is None else np.flatnonzero(labels == name)


def read_study(folder: str | Path) -> StudyFiles:
    """Read whatever a study has written so far.

    Raises:
        InputError: no such folder, nothing of a study in it, or a file that cannot be read.
    """
    folder = Path(folder)
    # `Path.is_dir` raises for a name that is too long.
    if not os.path.isdir(folder):  # noqa: PTH112
        raise InputError(f"{folder}: no such folder; need a study folder: write one with `mechmem run --out {folder}`")
    study = StudyFiles(
        manifest=_read_manifest(folder / "study.json"),
        paragraphs=read_paragraphs(folder) if (folder / SCORES).is_file() else None,
        gradients=_result(folder, "gradients.nc"),
        heads=_result(folder, "heads.nc"),
        rare=_result(folder, "rare.nc"),
        attention=_result(folder, "attention.nc"),
        patching=_result(folder, "patching.nc"),
        unlearned=_result(folder, "unlearn.nc"),
        attacks=_result(folder, "attacks.nc"),
        detection=_result(folder, "detect.nc"),
    )
    if all(value is None for value in vars(study).values()):
        raise InputError(f"{folder}: holds no study; need study.json, paragraphs.parquet or a stage's .nc file in it")
    return study


def _read_manifest(path: Path) -> dict[str, Any] | None:
    return read_object(path, advice=RESTORE) if path.is_file() else None


def _result(folder: Path, name: str) -> xr.Dataset | None:
    return read_result(folder, name) if (folder / name).is_file() else None
