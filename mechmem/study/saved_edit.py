"""One finished edit of a study, as its folder holds it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from mechmem.data.netcdf import load_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.load import HookedTransformer
from mechmem.weights.masks import Mask
from mechmem.weights.sparse_edit import load_edit


@dataclass(frozen=True)
class SavedEdit:
    """An edit in a study's folder `edits/NAME`.

    Attributes:
        folder: where it lies.
    """

    folder: Path

    def __repr__(self) -> str:
        values = self.settings
        about = ", ".join(f"{name} {values[name]!r}" for name in ("kind", "method", "weights") if name in values)
        return f"SavedEdit({self.folder.name!r}, {about})"

    @property
    def settings(self) -> dict[str, Any]:
        """What the edit was made with."""
        return json.loads((self.folder / "settings.json").read_text())

    @property
    def targets(self) -> Paragraphs:
        """The paragraphs that it was to change."""
        return Paragraphs.load(self.folder / "targets.parquet")

    @property
    def mask(self) -> Mask | None:
        """The weights that could move; None: all attention and MLP weights."""
        path = self.folder / "mask.safetensors"
        return Mask.load(path) if path.is_file() else None

    @property
    def history(self) -> xr.Dataset:
        """What happened at each step."""
        return load_netcdf(self.folder / "history.nc")

    @property
    def costs(self) -> xr.Dataset | None:
        """What `evaluate` found; None before it ran."""
        return self._result("costs.nc")

    @property
    def attacks(self) -> xr.Dataset | None:
        """What `attack` found; None before it ran."""
        return self._result("attacks.nc")

    def apply(self, model: HookedTransformer) -> HookedTransformer:
        """A copy of the study's model with the edit.

        Raises:
            InputError: a model with other weights than the one that was edited.
        """
        return load_edit(model, self.folder / "edit.safetensors")[0]

    def _result(self, name: str) -> xr.Dataset | None:
        path = self.folder / name
        return load_netcdf(path) if path.is_file() else None
