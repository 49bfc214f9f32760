"""One finished edit of a study, as its folder holds it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from mechmem.data.checksums import refuse_damaged
from mechmem.data.netcdf import load_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.stored_json import check_types, read_object
from mechmem.model.load import HookedTransformer
from mechmem.weights.masks import Mask
from mechmem.weights.sparse_edit import load_edit


@dataclass(frozen=True)
class SavedEdit:
    """An edit in a study's folder `edits/NAME`.

    A file that was damaged or changed after it was written is refused, with what to do, before it is opened.

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
        path = self._file("settings.json")
        values = read_object(path, advice=self._anew)
        check_types(values, {"kind": str, "method": str, "weights": str, "seed": int}, path, advice=self._anew)
        return values

    @property
    def targets(self) -> Paragraphs:
        """The paragraphs that it was to change."""
        return Paragraphs.load(self._file("targets.parquet"))

    @property
    def mask(self) -> Mask | None:
        """The weights that could move; None: all attention and MLP weights."""
        path = self._file("mask.safetensors")
        return Mask.load(path) if path.is_file() else None

    @property
    def history(self) -> xr.Dataset:
        """What happened at each step."""
        return load_netcdf(self._file("history.nc"), advice=self._anew, sealed=True)

    @property
    def costs(self) -> xr.Dataset | None:
        """What `evaluate` found; None before it ran."""
        return self._result("costs.nc", "evaluate")

    @property
    def attacks(self) -> xr.Dataset | None:
        """What `attack` found; None before it ran."""
        return self._result("attacks.nc", "evaluate")

    def apply(self, model: HookedTransformer) -> HookedTransformer:
        """A copy of the study's model with the edit.

        Raises:
            InputError: a model with other weights than the one that was edited.
        """
        return load_edit(model, self._file("edit.safetensors"))[0]

    @property
    def _anew(self) -> str:
        return f"remove {self.folder} and make the edit again"

    def _file(self, name: str, advice: str | None = None) -> Path:
        """A file of the edit, unless it was damaged or changed after it was written.

        Raises:
            InputError: its checksum differs.
        """
        study = self.folder.parents[1]
        refuse_damaged(study, f"edits/{self.folder.name}/{name}", advice=advice or self._anew)
        return self.folder / name

    def _result(self, name: str, command: str) -> xr.Dataset | None:
        if not (self.folder / name).is_file():
            return None
        advice = f"run `mechmem {command} {self.folder.name} --out {self.folder.parents[1]}` again"
        return load_netcdf(self._file(name, advice), advice=advice, sealed=True)
