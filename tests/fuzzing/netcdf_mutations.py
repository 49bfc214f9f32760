"""Damage of netCDF that leaves a sound HDF5 file: variables, attributes and values that no stage wrote."""

import hashlib
import io
import random
from typing import Any

import h5py
import numpy as np

from mechmem.data.netcdf import SEAL, SEALED
from tests.fuzzing.format_mutations import FLOATS


def mutate_netcdf(data: bytes, rng: random.Random) -> bytes:
    """A sound file of HDF5 with a variable, an attribute or values that are others."""
    buffer = io.BytesIO(SEALED.sub(b"", data))
    with h5py.File(buffer, "r+") as opened:
        file: Any = opened
        names = list(file)
        name = rng.choice(names)
        try:
            _NETCDF[rng.randrange(len(_NETCDF))](file, name, rng)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError):
            return data
    changed = buffer.getvalue()
    # Our files end with their checksum, which a stranger can compute as well.
    seal = rng.choice((b"", b"0" * 64) + 4 * (hashlib.sha256(changed).hexdigest().encode(),))
    return changed + (SEAL % seal if seal else b"")


def _delete(file: Any, name: str, rng: random.Random) -> None:
    del file[name]
    if rng.random() < 0.3:
        file.create_group(name)


def _rename(file: Any, name: str, rng: random.Random) -> None:
    file.move(name, rng.choice(("a", name.upper(), "layer", "é")))


def _retype(file: Any, name: str, rng: random.Random) -> None:
    values = file[name][()] if isinstance(file[name], h5py.Dataset) else np.zeros(3)
    attrs = dict(file[name].attrs)
    del file[name]
    shape = rng.choice((values.shape, values.shape[::-1], (*values.shape, 1), (), (0,), values.shape[1:]))
    new = rng.choice((np.zeros(shape), np.full(shape, np.nan), np.zeros(shape, "i1"), np.full(shape, b"x", "S1")))
    made = file.create_dataset(name, data=new)
    for key, value in attrs.items():
        if key not in ("REFERENCE_LIST", "CLASS", "NAME", "DIMENSION_LIST") or rng.random() < 0.5:
            made.attrs[key] = value


def _values(file: Any, name: str, rng: random.Random) -> None:
    dataset = file[name]
    values = dataset[()]
    if values.dtype.kind == "f":
        values.flat[rng.randrange(max(values.size, 1))] = rng.choice(FLOATS)
    elif values.dtype.kind in "iu":
        values.flat[rng.randrange(max(values.size, 1))] = rng.choice((0, -1, 10**6, -(10**9)))
    elif values.dtype.kind == "O":
        values.flat[rng.randrange(max(values.size, 1))] = rng.choice(("", "x" * 5000, "\\u0000", "<script>"))
    dataset[...] = values


def _attribute(file: Any, name: str, rng: random.Random) -> None:
    owner = file[name] if rng.random() < 0.6 else file
    keys = list(owner.attrs) or ["units"]
    key = rng.choice(
        (*keys, "_FillValue", "units", "scale_factor", "calendar", "coordinates", "dtype", "missing_value")
    )
    if key in owner.attrs:
        del owner.attrs[key]
    if rng.random() < 0.7:
        owner.attrs[key] = rng.choice((0, -1, 1e300, "", "days since 0000-00-00", "days since 2000-01-01", "x", [1, 2]))


_NETCDF = (_delete, _rename, _retype, _values, _values, _attribute, _attribute)
