"""A full disk is a sentence, whatever the library that met it made of it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mechmem.data.errors import InputError

FULL = {errno.ENOSPC, errno.EDQUOT}
# Libraries that report a full disk in words and not by the error's number: safetensors, HDF5, NumPy.
FULL_WORDS = re.compile(
    r"no space left|os error 28\b|errno = 28\b|disk quota exceeded|\d+ requested and \d+ written", re.IGNORECASE
)


class FullDisk(InputError):
    """There is no room for what is to be written; the same call goes on when there is."""


@contextmanager
def full_disk_named(path: str | Path, *, size: int | None = None) -> Iterator[None]:
    """Turn whatever a library raises on a full disk or a used-up quota into a sentence.

    Args:
        path: what was to be written.
        size: how many bytes it needs, if that is known.

    Raises:
        FullDisk: the block raised an error that says that the disk is full.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise _full(Path(path), size) from error


def check_room(path: str | Path, size: int) -> None:
    """Refuse, before anything is written, what the disk has no room for.

    Raises:
        FullDisk: fewer than `size` bytes are free where `path` is to be written.
    """
    if _free(Path(path)) < size:
        raise _full(Path(path), size)


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that the disk is full or a quota used up."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or FULL_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def existing_parent(path: Path) -> Path:
    """The nearest folder above a path that is there; a link that leads nowhere is there as well."""
    return next(parent for parent in path.absolute().parents if os.path.lexists(parent))


def _full(path: Path, size: int | None) -> FullDisk:
    need = "" if size is None else f"{size:,} bytes are needed, "
    return FullDisk(
        f"{path}: the disk is full ({need}{_free(path):,} are free); what was there is unchanged: free some space and "
        "run the same command again"
    )


def _free(path: Path) -> int:
    return shutil.disk_usage(existing_parent(path)).free
