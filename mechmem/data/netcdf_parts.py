"""A netCDF file that is written part by part, for results larger than memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import xarray as xr

from mechmem.data.files import replacing
from mechmem.data.full_disk import check_room
from mechmem.data.netcdf import SEAL, restored, storable


@dataclass(frozen=True)
class Declared:
    """A variable before it has values.

    Attributes:
        dims: its dimensions.
        shape: their sizes.
        dtype: of its numbers.
        attrs: its attributes.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    attrs: Mapping[str, str]


@contextmanager
def netcdf_in_parts(
    path: str | Path, skeleton: xr.Dataset, variables: Mapping[str, Declared], *, sealed: bool = False
) -> Iterator[Mapping[str, Any]]:
    """Write a file that appears at `path`, whole, when the block ends without an error.

    Room for all of it is looked for first: HDF5
    crashes while it closes a file on a full disk.

    Args:
        path: the file.
        skeleton: the coordinates and attributes.
        variables: what is written in the block.
        sealed: whether to read all of it again, and to add the checksum that `load_netcdf` knows.

    Raises:
        InputError: the disk has no room for it.

    Yields:
        name -> what takes parts: `yielded["z"][0:8, 2] = values`.
    """
    size = sum(math.prod(declared.shape) * declared.dtype.itemsize for declared in variables.values())
    check_room(path, size + skeleton.nbytes)
    with replacing(path, size=size) as temporary:
        storable(skeleton).to_netcdf(temporary, engine="h5netcdf")
        with h5netcdf.File(temporary, "a") as file:
            opened = {}
            for name, declared in variables.items():
                for dim, size in zip(declared.dims, declared.shape, strict=True):
                    if dim not in file.dimensions:
                        file.dimensions[dim] = size
                opened[name] = file.create_variable(name, declared.dims, declared.dtype)
                opened[name].attrs.update(declared.attrs)
            yield opened
        if sealed:
            with temporary.open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
            with temporary.open("ab") as end:
                end.write(SEAL % digest.encode())


def open_netcdf(path: str | Path) -> xr.Dataset:
    """Open a file whose arrays are read where they are looked at; close it, or use it as a context manager."""
    return restored(xr.open_dataset(path, engine="h5netcdf"))
