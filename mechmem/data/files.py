"""Files are written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mechmem.data.errors import InputError
from mechmem.data.full_disk import existing_parent, full_disk_named, is_full_disk

# What nobody but this file writes. A name of one length, however long the name of the file: a result whose own name
# is as long as the file system allows can still be written.
TEMPORARY = re.compile(r"\.mechmem-[0-9a-f]{32}\.partial(\.[A-Za-z0-9]{1,12})?")
# Of `data.folder_lock`; named here because a folder with nothing else in it counts as empty.
LOCK_NAME = ".mechmem.lock"


@contextmanager
def replacing(path: str | Path, *, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write (a file, or a folder made inside); rename it over `path` at the end.

    If the block raises, the temporary is removed and whatever was at `path` stays as it was. A process that is killed
    leaves at most a hidden `.mechmem-*.partial` beside an intact `path`. A folder replaces a folder by way of a rename,
    so a reader sees the old one or the new one. What is written can be read by whom the user's umask lets read it.

    Args:
        path: the file or folder to write.
        size: how many bytes it will have, if that is known: for the sentence about a full disk.

    Raises:
        InputError: the disk is full.
    """
    path = Path(path)
    with full_disk_named(path, size=size):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            _flush(temporary)
            _give_usual_mode(temporary)
            if temporary.is_dir() and path.is_dir():
                old = _temporary(path)
                path.rename(old)
                temporary.rename(path)
                shutil.rmtree(old)
            else:
                temporary.replace(path)
        finally:
            _remove(temporary)


def check_output(path: str | Path, kind: Literal["file", "folder"] = "file") -> None:
    """Refuse, before any work, an output that could not be written at the end.

    Args:
        path: where something will be written; folders above it may be missing.
        kind: whether that is a file or a folder. What a folder holds is not looked at.

    Raises:
        InputError: the other kind is there, or a device; a file lies where a folder is needed; links that lead in a
            circle; a name that is too long; a place that cannot be written to.
    """
    path = Path(path)
    try:
        parent = existing_parent(path)
        _check_link(path, parent)
        if not parent.is_dir():
            raise InputError(f"{path}: {parent} is a file; need a folder there: choose another output")
        _check_names(path, parent)
        _check_link(path, path)
        if path.exists():
            _check_kind(path, kind)
        # Tried and not asked: rights, read-only file systems, quotas and locked folders all answer here.
        place = path if kind == "folder" and path.is_dir() else parent
        probe = _temporary(place / "probe")
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        probe.unlink()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        with full_disk_named(path):
            if is_full_disk(error):
                raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be written ({reason}); choose another output") from error


def _check_link(path: Path, there: Path) -> None:
    # `os.path.exists` is False for a circle of links, at which `Path.exists` may raise.
    if there.is_symlink() and not os.path.exists(there):  # noqa: PTH110
        raise InputError(f"{path}: {there} is a link that leads nowhere; choose another output, or mend it")


def _check_kind(path: Path, kind: str) -> None:
    if kind == "folder" and not path.is_dir():
        raise InputError(f"{path}: is a file; need a folder: choose another output, or remove it")
    if kind == "file" and path.is_dir():
        raise InputError(f"{path}: is a folder; need the name of a file: choose another output")
    if kind == "file" and not path.is_file():
        raise InputError(f"{path}: is a device or a pipe; need the name of a file: choose another output")


def _check_names(path: Path, parent: Path) -> None:
    """Names that the file system takes, of the path and of the temporary that is renamed over it."""
    longest = os.pathconf(parent, "PC_NAME_MAX")
    for name in path.absolute().relative_to(parent).parts:
        if "\0" in name:
            raise InputError(f"got the output name {name!r}; need one without a null character")
        if len(os.fsencode(name)) > longest:
            raise InputError(f"got an output with a name of {len(os.fsencode(name))} bytes; need at most {longest}")
    whole = len(os.fsencode(path.absolute().parent)) + len(_temporary(path).name) + 1
    if whole >= (most := os.pathconf(parent, "PC_PATH_MAX")):
        raise InputError(f"got an output with a path of {whole} bytes; need less than {most}: choose a shorter one")


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left in a folder; the caller holds the folder's lock (`data.folder_lock`).

    Nothing is removed but files and folders with a name that only `replacing` gives. Links are never followed.
    """
    for path in sorted(folder.iterdir()):
        if _is_ours(path):
            _remove(path)


def foreign_entries(folder: Path) -> list[Path]:
    """What lies in a folder, without the temporaries of killed writers and without the lock; sorted."""
    return [path for path in sorted(folder.iterdir()) if path.name != LOCK_NAME and not _is_ours(path)]


def _is_ours(path: Path) -> bool:
    return bool(TEMPORARY.fullmatch(path.name)) and not path.is_symlink()


def _temporary(path: Path) -> Path:
    # The suffix is kept at the end: several writers choose their format by it.
    suffix = path.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,12}", path.suffix) else ""
    return path.with_name(f".mechmem-{uuid.uuid4().hex}.partial{suffix}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    """The file itself, or all files of a folder."""
    return [file for file in [path, *path.rglob("*")] if file.is_file() and not file.is_symlink()]


def _flush(path: Path) -> None:
    """Push a file, or a folder's files, to the disk: a rename that outlives its content would be half a file."""
    for file in _files(path):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _give_usual_mode(path: Path) -> None:
    """Give files the mode that `open` would: some writers make files that nobody but their owner can read.

    The mode is read from a new file: the umask itself cannot be read without changing it for all threads, and a
    folder's default access list has a say as well.
    """
    probe = _temporary(path.with_suffix(""))
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()
    for file in _files(path):
        if stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)
    for folder in [path, *path.rglob("*")] if path.is_dir() else []:
        if folder.is_dir():
            # Whoever can read a file may enter its folder. A bit that hands the group down stays.
            folder.chmod(mode | (mode & 0o444) >> 2 | folder.stat().st_mode & stat.S_ISGID)
