"""Checksums of a folder's results, in the form that `sha256sum --check` reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.data.folder_lock import only_writer

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  (.+)")


@contextmanager
def writing(folder: str | Path, *names: str) -> Iterator[None]:
    """Be the only writer of a folder, and record the checksums of files that the block writes.

    While the block runs, and after a kill in it, the files have no checksum: nothing is said about them.

    Args:
        folder: the folder, with its checksums in `SHA256SUMS`.
        names: the files that the block may write, relative to the folder. What is not there at the end gets none.

    Raises:
        InputError: another process or thread works in the folder.
    """
    folder = Path(folder)
    with only_writer(folder):
        before = recorded(folder)
        if not before.keys().isdisjoint(names):
            _store(folder, {name: value for name, value in before.items() if name not in names})
        try:
            yield
        except BaseException:
            # What the block did not come to write is still what it was.
            kept = {name: before[name] for name in names if name in before and (folder / name).is_file()}
            same = {name: value for name, value in kept.items() if checksum(folder / name) == value}
            if same:
                _store(folder, recorded(folder) | same)
            raise
        record(folder, names)


def record(folder: Path, names: Iterable[str]) -> None:
    """Record the checksums of files as they are now; the caller is the folder's only writer."""
    now = {name: checksum(folder / name) for name in names if (folder / name).is_file()}
    if now:
        _store(folder, recorded(folder) | now)


def recorded(folder: Path) -> dict[str, str]:
    """File, relative to the folder -> its checksum.

    Raises:
        InputError: the list of checksums is damaged.
    """
    path = folder / SUMS
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    if not all(found):
        raise InputError(f"{path}: is damaged; remove it to use the folder's files without checksums")
    return {match[2]: match[1] for match in found if match}


def damaged(folder: Path) -> list[str]:
    """Files whose content is no longer what was written. One that is gone is not damaged."""
    return [name for name in recorded(folder) if (folder / name).is_file() and not _unchanged(folder, name)]


def refuse_damaged(folder: Path, name: str, *, advice: str) -> None:
    """Refuse a file whose content is no longer what was written, before it is opened.

    Raises:
        InputError: its checksum differs.
    """
    if (folder / name).is_file() and not _unchanged(folder, name):
        raise InputError(f"{folder / name}: was damaged or changed after it was written; {advice}")


def checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unchanged(folder: Path, name: str) -> bool:
    was = recorded(folder).get(name)
    return was is None or was == checksum(folder / name)


def _store(folder: Path, sums: dict[str, str]) -> None:
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()) if (folder / name).is_file())
    with replacing(folder / SUMS) as temporary:
        temporary.write_text(lines, encoding="utf-8", errors="surrogateescape")
