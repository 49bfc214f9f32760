import errno
import os
import stat
import subprocess
from pathlib import Path
from typing import Literal

import pytest
import safetensors.torch
import torch

from mechmem.data.errors import InputError
from mechmem.data.files import check_output, foreign_entries, remove_partials, replacing
from mechmem.data.full_disk import check_room, is_full_disk

OURS = ".mechmem-0123456789abcdef0123456789abcdef.partial"
FOREIGN = [".video.partial.mp4", ".mechmem-12.partial.nc", f"x{OURS}", f"{OURS}.tar.gz", ".a.deadbeef.partial", "a.txt"]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert not path.exists() and temporary.suffix == ".txt"
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path):
    path = tmp_path / "folder"
    for name in ("first", "second"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [p.name for p in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("write failed: errno = 28, error message = 'No space left on device'"),
        OSError("1000 requested and 12 written"),
    ],
)
def test_a_full_disk_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with (
        pytest.raises(InputError, match=r"a\.bin: the disk is full \([0-9,]+ are free\); what was there"),
        replacing(path) as temporary,
    ):
        temporary.write_bytes(b"new, cut o")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_room_is_looked_for_where_it_is_needed(tmp_path):
    check_room(tmp_path / "new" / "a", 1)
    with pytest.raises(InputError, match=r"new/a: the disk is full \(1,000,000,000,000,000,000 bytes are needed, "):
        check_room(tmp_path / "new" / "a", 10**18)


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="Input/output"), replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"x")
        raise OSError(errno.EIO, "Input/output error")
    assert not is_full_disk(ValueError("shape [28, 28]")) and not any(tmp_path.iterdir())


@pytest.mark.parametrize("writer", ["bytes", "safetensors"])
def test_on_a_disk_that_is_full_the_old_file_stays(small_disk, writer):
    path = small_disk / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="the disk is full"), replacing(path) as temporary:
        if writer == "bytes":
            temporary.write_bytes(bytes(2 << 20))
        else:
            safetensors.torch.save_file({"a": torch.zeros(1 << 19)}, temporary)
    assert path.read_bytes() == b"old" and list(small_disk.iterdir()) == [path]


def test_files_get_the_mode_that_open_gives(tmp_path, umask):
    with replacing(tmp_path / "a.safetensors") as temporary:
        safetensors.torch.save_file({"a": torch.zeros(2)}, temporary)
        temporary.chmod(0o600)
    with replacing(tmp_path / "folder") as temporary:
        (temporary / "below").mkdir(parents=True, mode=0o700)
        (temporary / "below" / "b").write_text("b")
        (temporary / "below" / "b").chmod(0o600)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    files, folders = 0o666 & ~umask, 0o777 & ~umask
    assert modes == {"a.safetensors": files, "folder": folders, "below": folders, "b": files}


def test_only_our_own_partials_are_removed_and_links_are_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    folder = tmp_path / "folder"
    for made in (elsewhere, folder, folder / f"{OURS}.deep", folder / OURS, folder / f"{FOREIGN[0]}.folder"):
        made.mkdir()
    (elsewhere / "kept").write_text("x")
    (folder / OURS / "inside").symlink_to(elsewhere)
    (folder / f"{OURS}.nc").write_text("half")
    for name in FOREIGN:
        (folder / name).write_text("foreign")
    (folder / OURS.replace("0", "a")).symlink_to(elsewhere)
    left = {p.name for p in folder.iterdir()} - {OURS, f"{OURS}.nc", f"{OURS}.deep"}
    assert {p.name for p in foreign_entries(folder)} == left
    remove_partials(folder)
    assert {p.name for p in folder.iterdir()} == left and (elsewhere / "kept").is_file()


def test_a_name_as_long_as_it_may_be_is_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".bin")
    check_output(path)
    with replacing(path) as temporary:
        temporary.write_text("x")
    assert path.read_text() == "x"


def outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    os.mkfifo(tmp_path / "pipe")
    return [
        (tmp_path / "folder", "file", "is a folder"),
        (tmp_path / "file", "folder", "is a file; need a folder"),
        (tmp_path / "file" / "below", "file", "file is a file; need a folder there"),
        (tmp_path / "file" / "far" / "below", "folder", "file is a file; need a folder there"),
        (tmp_path / "one", "file", "is a link that leads nowhere"),
        (tmp_path / "one" / "below", "folder", "is a link that leads nowhere"),
        (tmp_path / ("x" * 256), "file", "name of 256 bytes; need at most 255"),
        (tmp_path / ("é" * 128) / "below", "folder", "name of 256 bytes; need at most 255"),
        (tmp_path.joinpath(*["deep" * 50] * 21), "file", "path of [0-9]+ bytes; need less than 4096"),
        (tmp_path / "pipe", "file", "is a device or a pipe"),
        (tmp_path / "a\0b", "file", "null"),
        (Path("/proc/nothing/x"), "file", "cannot be written"),
    ]


@pytest.mark.parametrize("number", range(12))
def test_what_cannot_be_written_is_refused_before_any_work(tmp_path, number):
    path, kind, sentence = outputs_that_cannot_be_written(tmp_path)[number]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=sentence):
        check_output(path, kind)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_read_only_disk_is_refused_before_any_work(small_disk):
    (small_disk / "study").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    places: list[tuple[str, Literal["file", "folder"]]] = [("a.nc", "file"), ("a/b", "folder"), ("study", "folder")]
    for name, kind in places:
        with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"):
            check_output(small_disk / name, kind)


def test_what_can_be_written_is_not_made_yet(tmp_path):
    (tmp_path / "old.nc").write_text("old")
    for path in ("new/er/a.nc", "old.nc"):
        check_output(tmp_path / path)
    for path in ("new/er", "."):
        check_output(tmp_path / path, "folder")
    assert [p.name for p in tmp_path.rglob("*")] == ["old.nc"] and (tmp_path / "old.nc").read_text() == "old"
