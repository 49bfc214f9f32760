"""The lines of a plain or compressed file, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mechmem.data.decompress import byte_chunks
from mechmem.data.records import Tally

# A longer line is not held: what is read from it takes several times its bytes.
LONGEST_LINE = 2**28


def byte_lines(path: Path, tally: Tally) -> Iterator[bytes | bytearray | int]:
    """Yield a file's lines without their ends and without byte-order marks.

    A line that a broken file cuts off is not yielded, because its rest is unknown. No line is referred to here after it
    was yielded, so that its memory can be given back before what was made of it grows.

    Args:
        path: as in `byte_chunks`.
        tally: as in `byte_chunks`.

    Yields:
        Lines; of one longer than `LONGEST_LINE` its length in bytes.

    Raises:
        BrokenFileError: the compressed stream is cut or damaged; raised after the last whole line.
    """
    held = _Line()
    for chunk in byte_chunks(path, tally):
        first, newline, rest = chunk.partition(b"\n")
        held.add(first)
        if not newline:
            continue
        yield held.taken()
        *lines, tail = rest.split(b"\n")
        del chunk, first, rest
        yield from lines
        held.add(tail)
    if len(held):
        yield held.taken()


class _Line:
    """The line that is being read. It grows in place: joined anew with each chunk, it would take quadratic time."""

    def __init__(self) -> None:
        self._bytes, self._length = bytearray(), 0

    def __len__(self) -> int:
        return self._length

    def add(self, part: bytes) -> None:
        self._length += len(part)
        if self._length > LONGEST_LINE:
            self._bytes = bytearray()
        else:
            self._bytes += part

    def taken(self) -> bytes | bytearray | int:
        """What was added; nothing is kept of it."""
        box = [self._bytes if self._length <= LONGEST_LINE else self._length]
        self._bytes, self._length = bytearray(), 0
        return box.pop()
