"""Results as netCDF files: the only place that reads or writes them, with `netcdf_parts`."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from xarray.coding.strings import create_vlen_dtype

from mechmem.data.errors import InputError
from mechmem.data.files import replacing

# After the HDF5 data, which says itself where it ends. It is checked before HDF5 sees the file: its reader can hang or
# crash on a damaged one.
SEAL = b"\nmechmem sha256 %s\n"
SEALED = re.compile(rb"\nmechmem sha256 ([0-9a-f]{64})\n\Z")
# xarray's own name for an array without one.
UNNAMED = "__xarray_dataarray_variable__"
# Attributes that say what was escaped.
ESCAPED, ESCAPED_ATTRS = "mechmem_escaped_text", "mechmem_escaped_attrs"
# NUL ends a string in HDF5, and a lone surrogate has no UTF-8 form.
UNFIT = re.compile("[\x00\ud800-\udfff]")
ESCAPES = re.compile(r"\\(\\|x00|u[0-9a-f]{4})")


def save_netcdf(result: xr.Dataset | xr.DataArray, path: str | Path) -> None:
    r"""Write a result, whole or not at all, with a checksum at the end; equal results give equal bytes.

    Text with a NUL or a lone surrogate, which netCDF cannot hold, is written with these as `\x00` and `\ud800` and
    each backslash doubled; `load_netcdf` gives it back unchanged. Any other text is written as it is.

    Raises:
        InputError: the disk is full.
    """
    dataset = _as_dataset(result)
    # Written in memory: HDF5 crashes while it closes a file on a full disk.
    data = bytes(storable(dataset).to_netcdf(engine="h5netcdf"))
    data += SEAL % hashlib.sha256(data).hexdigest().encode()
    with replacing(path, size=len(data)) as temporary:
        temporary.write_bytes(data)


def load_netcdf(
    path: str | Path, need: Collection[str] = (), *, advice: str = "write it again", sealed: bool = False
) -> xr.Dataset:
    """Read a result that `save_netcdf` wrote, into memory.

    Args:
        path: the file.
        need: variables that it must have.
        advice: what to do with a file that cannot be used, for the end of the sentence.
        sealed: refuse a file without a checksum: one that lost its end, or of another program. HDF5's reader can hang
            on damage.

    Raises:
        InputError: no such file, one that is damaged or no netCDF file, or one without a variable that is needed.
    """
    path = Path(path)
    _check_seal(path, advice, needed=sealed)
    try:
        _check_structure(path, advice)
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            dataset = restored(opened.load())
    except InputError:
        raise
    # HDF5, h5netcdf and xarray answer damage with nearly every exception there is.
    except Exception as error:
        raise InputError(f"{path}: not a readable netCDF file ({type(error).__name__}: {error}); {advice}") from error
    missing = sorted(set(need) - set(dataset.variables))
    if missing:
        held = ", ".join(map(str, dataset.variables)) or "nothing"
        raise InputError(f"{path}: holds {held}; need {', '.join(missing)} as well: {advice}")
    return dataset


def load_netcdf_array(path: str | Path) -> xr.DataArray:
    """Read a result that is one array, as `save_netcdf` wrote it.

    Raises:
        InputError: as `load_netcdf`, or there is not exactly one variable.
    """
    dataset = load_netcdf(path)
    if len(dataset.data_vars) != 1:
        raise InputError(f"{path}: holds {len(dataset.data_vars)} variables; need one: write it again")
    (name,) = dataset.data_vars
    return dataset[name].rename(None if name == UNNAMED else name)


def _check_seal(path: Path, advice: str, *, needed: bool) -> None:
    """Refuse a file whose content is not what was written, without opening it as netCDF.

    A file of another program has no checksum, and passes unless one is needed.

    Raises:
        InputError: it cannot be read, its checksum differs, or there is none and one is needed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); need a netCDF file") from error
    sealed = SEALED.search(data, max(0, len(data) - 128))
    if needed and not sealed:
        raise InputError(
            f"{path}: has no checksum at its end: it was cut off, or another program wrote it; remove it, {advice}"
        )
    if sealed and hashlib.sha256(memoryview(data)[: sealed.start()]).hexdigest() != sealed[1].decode():
        raise InputError(f"{path}: was damaged or changed after it was written; {advice}")


def _check_structure(path: Path, advice: str) -> None:
    """Refuse a file whose reading would fill the memory or write beyond it.

    Arrays are written whole and not compressed, so none is larger than the file. HDF5 takes the attributes that tie
    dimensions to arrays for what they should be, without looking at their types.
    """
    size = path.stat().st_size
    with h5py.File(path, "r") as file:

        def check(name: str, entry: Any) -> None:
            if not isinstance(entry, h5py.Dataset):
                return
            length = math.prod(entry.shape or ()) * entry.dtype.itemsize
            # A netCDF dimension without values of its own is an array that is never written or read.
            if length > size and "netCDF dimension" not in str(entry.attrs.get("NAME", "")):
                raise InputError(f"{path}: is damaged: '{name}' has {length:,} bytes in a file of {size:,}; {advice}")
            if not _ties_are_sound(entry):
                raise InputError(f"{path}: is damaged: the dimensions of '{name}' are of another kind; {advice}")

        file.visititems(check)


def _ties_are_sound(entry: h5py.Dataset) -> bool:
    """Whether the references between an array and its dimensions have the types that HDF5 reads them as."""
    types = h5py.h5t
    if "DIMENSION_LIST" in entry.attrs:
        held = h5py.h5a.open(entry.id, b"DIMENSION_LIST")
        kind = held.get_type()
        lists = isinstance(kind, types.TypeVlenID) and isinstance(kind.get_super(), types.TypeReferenceID)
        if not lists or held.shape != (entry.ndim,):
            return False
    if "REFERENCE_LIST" in entry.attrs:
        held = h5py.h5a.open(entry.id, b"REFERENCE_LIST")
        kind = held.get_type()
        if not isinstance(kind, types.TypeCompoundID) or kind.get_nmembers() != 2 or len(held.shape) != 1:
            return False
        return isinstance(kind.get_member_type(0), types.TypeReferenceID)
    return True


def _as_dataset(result: xr.Dataset | xr.DataArray) -> xr.Dataset:
    if isinstance(result, xr.Dataset):
        return result
    return result.to_dataset(name=UNNAMED if result.name is None else result.name)


def storable(dataset: xr.Dataset) -> xr.Dataset:
    """With text that netCDF can hold; a variable or attribute that had to be escaped is marked."""
    changed = dataset.copy()
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "OU":
            changed[name] = _storable_text(variable)
        changed[name].attrs = changed[name].attrs | _escaped_attrs(variable.attrs)
    changed.attrs = dataset.attrs | _escaped_attrs(dataset.attrs)
    return changed


def _storable_text(variable: xr.Variable) -> xr.Variable:
    values, attrs = variable.values, dict(variable.attrs)
    if any(isinstance(value, str) and UNFIT.search(value) for value in values.flat):
        attrs[ESCAPED] = 1
        values = _each(values, _escape)
    if values.dtype == object and all(isinstance(value, str) for value in values.flat):
        # Without rows, nothing else says that this is text.
        values = values.astype(create_vlen_dtype(str))
    return _text_variable(variable, values, attrs)


def _text_variable(variable: xr.Variable, values: np.ndarray, attrs: Mapping[Any, Any]) -> xr.Variable:
    # Without `fastpath`, pandas looks at the text, and cannot hold lone surrogates.
    return xr.Variable(variable.dims, values, dict(attrs), fastpath=True)


def _escaped_attrs(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    unfit = [str(name) for name, value in attrs.items() if isinstance(value, str) and UNFIT.search(value)]
    return {name: _escape(attrs[name]) for name in unfit} | ({ESCAPED_ATTRS: unfit} if unfit else {})


def restored(dataset: xr.Dataset) -> xr.Dataset:
    """With the text that `storable` was given."""
    changed = dataset.copy()
    for name, variable in dataset.variables.items():
        if ESCAPED in variable.attrs:
            changed[name] = _text_variable(variable, _each(variable.values, _unescape), variable.attrs)
        changed[name].attrs = _restored_attrs(variable.attrs)
    changed.attrs = _restored_attrs(dataset.attrs)
    return changed


def _restored_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    kept = {name: value for name, value in attrs.items() if name not in (ESCAPED, ESCAPED_ATTRS)}
    return kept | {name: _unescape(kept[name]) for name in np.atleast_1d(attrs.get(ESCAPED_ATTRS, []))}


def _each(values: np.ndarray, change: Callable[[str], str]) -> np.ndarray:
    changed = np.empty(values.shape, dtype=object)
    for place, value in np.ndenumerate(values):
        changed[place] = change(value) if isinstance(value, str) else value
    return changed


def _escape(text: str) -> str:
    doubled = text.replace("\\", "\\\\")
    return UNFIT.sub(lambda found: "\\x00" if found[0] == "\0" else f"\\u{ord(found[0]):04x}", doubled)


def _unescape(text: str) -> str:
    return ESCAPES.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), text)
