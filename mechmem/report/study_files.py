"""What a study folder holds, read once; a file that is not there yet is None."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.netcdf import load_netcdf
from mechmem.data.paragraphs import Paragraphs


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

    def column(self, name: str) -> np.ndarray | None:
        """A column of the paragraphs' table, or None if there is none."""
        if self.paragraphs is None or self.paragraphs.table is None:
            return None
        return self.paragraphs.column(name) if name in self.paragraphs.table.column_names else None

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
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; need a study folder: write one with `mechmem run --out {folder}`")
    study = StudyFiles(
        manifest=_read_manifest(folder / "study.json"),
        paragraphs=Paragraphs.load(path) if (path := folder / "paragraphs.parquet").is_file() else None,
        gradients=_read_dataset(folder / "gradients.nc"),
        heads=_read_dataset(folder / "heads.nc"),
        rare=_read_dataset(folder / "rare.nc"),
        attention=_read_dataset(folder / "attention.nc"),
        patching=_read_dataset(folder / "patching.nc"),
        unlearned=_read_dataset(folder / "unlearn.nc"),
        attacks=_read_dataset(folder / "attacks.nc"),
    )
    if all(value is None for value in vars(study).values()):
        raise InputError(f"{folder}: holds no study; need study.json, paragraphs.parquet or a stage's .nc file in it")
    return study


def _read_manifest(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error}); run the study again or restore the file") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: holds a {type(manifest).__name__}; need a JSON object with 'model' and 'settings'")
    return manifest


def _read_dataset(path: Path) -> xr.Dataset | None:
    if not path.is_file():
        return None
    return load_netcdf(path)
