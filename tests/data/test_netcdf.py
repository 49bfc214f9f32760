import ast
import errno
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import mechmem
from mechmem.data.errors import InputError
from mechmem.data.netcdf import SEALED, load_netcdf, load_netcdf_array, save_netcdf

ODD = ["", "\0", "a\0b\0", "\ud800", "x\udfff", "\\", "\\x00", "\\ud800\0", "\\\\\0", "é\n\r\t", "𝕏"]


def text(dim, values):
    """A variable of any text: by the usual way pandas looks at it, and cannot hold lone surrogates."""
    return xr.Variable((dim,), np.array(values, dtype=object), fastpath=True)


def results():
    coords = {"token": text("pos", ODD), "paragraph": ("paragraph", np.array(["a", "b\0", "c"], dtype=object))}
    data = {
        "nll": (("paragraph", "pos"), np.arange(33.0).reshape(3, 11), {"units": "nats per token", "odd": "\0\ud800"}),
        "said": text("pos", ODD[::-1]),
        "plain": ("pos", np.array([f"\\{i}" for i in range(11)], dtype=object)),
        "whole": ("paragraph", np.array([True, False, True])),
    }
    return xr.Dataset(data, coords, attrs={"model": "x\0y\\", "plain": "\\x00", "count": 3})


def test_every_text_comes_back_as_it_was(tmp_path):
    result = results()
    save_netcdf(result, tmp_path / "r.nc")
    read = load_netcdf(tmp_path / "r.nc")
    xr.testing.assert_identical(read, result)
    assert set(read.coords) == set(result.coords) and read.whole.dtype == bool


def test_text_that_fits_is_written_as_it_is_and_the_rest_visibly(tmp_path):
    save_netcdf(results(), tmp_path / "r.nc")
    raw = xr.load_dataset(tmp_path / "r.nc", engine="h5netcdf")
    assert raw["plain"].values[3] == "\\3" and raw.attrs["plain"] == "\\x00"
    assert list(raw["token"].values[:4]) == ["", "\\x00", "a\\x00b\\x00", "\\ud800"]
    assert raw.attrs["model"] == "x\\x00y\\\\"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec=None), max_size=6), max_size=4), st.text(st.characters(codec=None)))
def test_any_text_round_trips(tmp_path_factory, texts, note):
    path = tmp_path_factory.mktemp("nc") / "r.nc"
    result = xr.Dataset({"t": text("row", texts)}, attrs={"note": note})
    save_netcdf(result, path)
    read = load_netcdf(path)
    assert list(read.t.values) == texts and read.attrs == {"note": note}


def test_no_rows_of_text_are_still_text(tmp_path):
    save_netcdf(xr.Dataset({"t": ("row", np.array([], dtype=object)), "n": ("row", np.zeros(0))}), tmp_path / "r.nc")
    read = load_netcdf(tmp_path / "r.nc")
    assert read.t.dtype.kind in "OU" and read.n.dtype == float and read.sizes == {"row": 0}


def test_equal_results_give_equal_bytes_and_do_not_change(tmp_path):
    result, copy = results(), results()
    for name in ("a.nc", "b.nc"):
        save_netcdf(result, tmp_path / name)
    xr.testing.assert_identical(result, copy)
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()


@pytest.mark.parametrize("name", [None, "score"])
def test_an_array_comes_back_as_an_array(tmp_path, name):
    array = xr.DataArray(np.arange(3), {"layer": [1, 2, 3]}, ("layer",), name=name, attrs={"units": "\0"})
    save_netcdf(array, tmp_path / "a.nc")
    xr.testing.assert_identical(load_netcdf_array(tmp_path / "a.nc"), array)
    xr.load_dataarray(tmp_path / "a.nc", engine="h5netcdf")
    save_netcdf(results(), tmp_path / "r.nc")
    with pytest.raises(InputError, match="holds 4 variables; need one"):
        load_netcdf_array(tmp_path / "r.nc")


@pytest.mark.parametrize("place", [0, 9, 100, 1000, 3000, -200, -81, -80, -40])
def test_a_changed_byte_is_seen_before_hdf5_sees_the_file(tmp_path, place, monkeypatch):
    path = tmp_path / "r.nc"
    save_netcdf(results(), path)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(h5py, "File", None)
    with pytest.raises(InputError, match=r"r\.nc: (was damaged or changed|not a readable netCDF)"):
        load_netcdf(path)


@pytest.mark.parametrize("keep", [0, 10, 600, 3000, -1, -79, -100])
def test_a_file_that_is_cut_short_is_refused(tmp_path, keep):
    path = tmp_path / "r.nc"
    save_netcdf(results(), path)
    path.write_bytes(path.read_bytes()[:keep])
    if keep in (-1, -79):  # all the data are there, the checksum is not
        xr.testing.assert_identical(load_netcdf(path), results())
        return
    with pytest.raises(InputError, match="not a readable netCDF file"):
        load_netcdf(path)


def test_files_of_other_programs_are_read(tmp_path):
    result = xr.Dataset({"a": ("x", np.arange(3))})
    result.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    xr.testing.assert_identical(load_netcdf(tmp_path / "a.nc"), result)


def test_an_array_that_the_file_cannot_hold_is_refused(tmp_path):
    with h5py.File(tmp_path / "bomb.nc", "w") as file:
        file.create_dataset("a", shape=(10**12,), dtype="f8", chunks=(1000,))
    with pytest.raises(InputError, match=r"'a' has 8,000,000,000,000 bytes in a file of"):
        load_netcdf(tmp_path / "bomb.nc")


def test_what_is_missing_is_named(tmp_path):
    save_netcdf(xr.Dataset({"a": 1, "b": 2}), tmp_path / "r.nc")
    assert load_netcdf(tmp_path / "r.nc", need=("a",)).a == 1
    with pytest.raises(InputError, match="holds a, b; need c, d as well"):
        load_netcdf(tmp_path / "r.nc", need=("a", "d", "c"))
    with pytest.raises(InputError, match=r"none\.nc: cannot be read \(No such file"):
        load_netcdf(tmp_path / "none.nc")
    with pytest.raises(InputError, match="cannot be read"):
        load_netcdf(tmp_path)


def test_a_full_disk_says_how_much_is_needed_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "r.nc"
    save_netcdf(xr.Dataset({"a": 1}), path)
    old = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match=r"r\.nc: the disk is full \([0-9,]+ bytes are needed, [0-9,]+ are free\)"):
        save_netcdf(results(), path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_netcdf_is_read_and_written_in_one_place():
    root = Path(mechmem.__file__).parent
    files = [*root.rglob("*.py"), *(root.parent / "experiments").rglob("*.py")]
    banned = {"to_netcdf", "open_dataset", "open_dataarray", "load_dataarray", "open_mfdataset"}
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                of_xarray = isinstance(node.value, ast.Name) and node.value.id in ("xr", "xarray")
                if node.attr in banned or (node.attr == "load_dataset" and of_xarray):
                    found.append(f"{file.name}:{node.lineno}")
    assert {line.split(":")[0] for line in found} == {"netcdf.py", "netcdf_parts.py"}, found


@pytest.mark.parametrize("keep", [-1, -79, -100, 3000])
def test_where_a_checksum_is_needed_a_cut_file_is_refused_unopened(tmp_path, keep, monkeypatch):
    path = tmp_path / "r.nc"
    save_netcdf(results(), path)
    assert load_netcdf(path, sealed=True).sizes
    path.write_bytes(path.read_bytes()[:keep])
    monkeypatch.setattr(h5py, "File", None)
    with pytest.raises(InputError, match=r"r\.nc: has no checksum at its end.*; remove it, write it again"):
        load_netcdf(path, sealed=True)


@pytest.mark.parametrize("name", ["DIMENSION_LIST", "REFERENCE_LIST"])
@pytest.mark.parametrize("value", [-1, [1, 2], "x"])
def test_ties_of_dimensions_of_another_kind_are_refused(tmp_path, name, value):
    """HDF5 writes beyond its memory when it reads them."""
    path = tmp_path / "r.nc"
    save_netcdf(xr.Dataset({"a": (("x", "y"), np.zeros((2, 3)))}, {"x": [1, 2], "y": [1, 2, 3]}), path)
    with h5py.File(path, "r+") as file:
        for entry in (file["a"], file["x"]):
            if name in entry.attrs:
                del entry.attrs[name]
                entry.attrs[name] = value
    path.write_bytes(SEALED.sub(b"", path.read_bytes()))
    with pytest.raises(InputError, match="are of another kind; write it again"):
        load_netcdf(path)
