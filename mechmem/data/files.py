"""Files are written whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write (a file, or a folder made inside); rename it over `path` at the end.

    If the block raises, the temporary is removed and whatever was at `path` stays as it was. A process that is killed
    leaves at most a hidden `.NAME.*.partial` beside an intact `path`. A folder replaces a folder by way of a rename, so
    a reader sees the old one or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept at the end: several writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.partial{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        if temporary.is_dir() and path.is_dir():
            old = temporary.with_name(temporary.name + ".old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left in a folder; no process may be writing there."""
    for path in folder.glob(".*.partial*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _flush(path: Path) -> None:
    """Push a file, or a folder's files, to the disk: a rename that outlives its content would be half a file."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
