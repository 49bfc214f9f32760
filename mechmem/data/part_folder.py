"""A result that is made part by part: parts are whole files in a folder, joined into one file at the end."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.files import LOCK_NAME, foreign_entries, remove_partials, replacing
from mechmem.data.full_disk import check_room
from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.data.netcdf_parts import Declared, netcdf_in_parts, open_netcdf
from mechmem.data.settings_match import refuse_other_settings
from mechmem.data.stored_json import check_types, read_object

PLAN, AXIS = "plan.json", "paragraph"
# In the finished file: which work it is the result of.
WORK = "mechmem_work"
# In a file whose result is one array: the array's name.
ARRAY = "mechmem_array"
ADVICE = "remove it, or choose another output"


class PartFolder:
    """The folder `NAME.parts` beside an output `NAME.nc`, which holds the parts until the output is written.

    Each part has all variables for some paragraphs, in order. A part is there when its file is, whoever wrote it.

    Args:
        out: the output.
        plan: everything that decides the result, as JSON has it: a folder of another plan is refused.
        rows: the paragraphs of each part.
    """

    def __init__(self, out: Path, plan: Mapping[str, Any], rows: list[slice]) -> None:
        self.out, self.rows = out, rows
        self.folder = out.with_suffix(".parts")
        self._plan = json.loads(json.dumps(plan))
        self._digest = hashlib.sha256(json.dumps(self._plan, sort_keys=True).encode()).hexdigest()[:16]

    def finished(self) -> xr.Dataset | xr.DataArray | None:
        """The output, if it is there and of this plan."""
        if not self.out.is_file():
            return None
        # Whatever else lies there is replaced at the end, as by any function that writes a file.
        try:
            return self._opened()
        except (OSError, ValueError, KeyError, RuntimeError, TypeError):
            return None

    def begin(self) -> None:
        """Make the folder, or find what was begun there; the caller holds its lock.

        Raises:
            InputError: it holds something else, or parts of another plan.
        """
        if self.folder.is_symlink():
            raise InputError(f"{self.folder}: is a link, and parts of the result are kept there; remove the link")
        path = self.folder / PLAN
        if path.is_file():
            was = read_object(path, advice=ADVICE)
            check_types(was, {"function": str, "options": dict}, path, advice=ADVICE)
            refuse_other_settings(self.folder, was, self._plan, advice=ADVICE)
        elif foreign := foreign_entries(self.folder):
            raise InputError(f"{self.folder}: holds files of something else ({foreign[0].name}); choose another output")
        else:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(self._plan))
        remove_partials(self.folder)

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there."""
        return [number for number in range(len(self.rows)) if not self._path(number).is_file()]

    def write(self, number: int, part: xr.Dataset) -> None:
        """Keep a part.

        Raises:
            InputError: the disk has no room for all parts and for the output.
        """
        if not any(self._path(other).is_file() for other in range(len(self.rows))):
            check_room(self.folder, 2 * part.nbytes * len(self.rows))
        save_netcdf(part, self._path(number))

    def read(self, number: int) -> xr.Dataset:
        """A part, checked against damage."""
        return load_netcdf(self._path(number), advice="remove it and run the same call again", sealed=True)

    def join(self, summary: Callable[[PartFolder, list[xr.Dataset]], xr.Dataset]) -> xr.Dataset | xr.DataArray:
        """Write the output from all parts, in memory one at a time, and remove the folder.

        Args:
            summary: gives the variables that have no paragraphs, and the attributes, from those of every part.
        """
        first = self.read(0)
        large = [str(name) for name, v in first.data_vars.items() if AXIS in v.dims and v.dtype.kind in "fiu"]
        heads = [first.drop_vars(large), *(self.read(n).drop_vars(large) for n in range(1, len(self.rows)))]
        own = [head.drop_dims(AXIS) for head in heads]
        whole = summary(self, own)
        skeleton = xr.concat(
            [head.drop_vars(list(own[0].data_vars)) for head in heads],
            AXIS,
            data_vars="minimal",
            coords="minimal",
            compat="override",
            join="exact",
            combine_attrs="override",
        )
        array = whole.attrs.pop(ARRAY, None)
        skeleton = skeleton.assign(whole.data_vars).assign_coords(whole.coords)
        skeleton.attrs = {WORK: self._digest} | ({ARRAY: array} if array else whole.attrs)
        total = self.rows[-1].stop
        variables = {}
        for name in large:
            shape = tuple(total if dim == AXIS else size for dim, size in first[name].sizes.items())
            attrs = whole.attrs if name == array else first[name].attrs
            variables[name] = Declared(tuple(map(str, first[name].dims)), shape, first[name].dtype, attrs)
        with netcdf_in_parts(self.out, skeleton, variables, sealed=True) as opened:
            for number, rows in enumerate(self.rows):
                part = self.read(number)
                for name in large:
                    index = tuple(rows if dim == AXIS else slice(None) for dim in part[name].dims)
                    opened[name][index] = part[name].values
        self.remove()
        result = self._opened()
        assert result is not None
        return result

    def joined(self, name: str) -> np.ndarray:
        """One variable of all parts, in memory."""
        parts = [self.read(number)[name] for number in range(len(self.rows))]
        return np.concatenate([part.values for part in parts], parts[0].dims.index(AXIS))

    def remove(self) -> None:
        """Remove the plan and the parts, and the folder if it holds nothing else; the caller holds its lock."""
        if not (self.folder / PLAN).is_file():
            return
        remove_partials(self.folder)
        for number in range(len(self.rows)):
            self._path(number).unlink(missing_ok=True)
        (self.folder / PLAN).unlink()
        if not foreign_entries(self.folder):
            (self.folder / LOCK_NAME).unlink(missing_ok=True)
            with suppress(OSError):
                shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.nc"

    def _opened(self) -> xr.Dataset | xr.DataArray | None:
        dataset = open_netcdf(self.out)
        if dataset.attrs.pop(WORK, None) != self._digest:
            dataset.close()
            return None
        array = dataset.attrs.pop(ARRAY, None)
        return dataset if array is None else dataset[array]
