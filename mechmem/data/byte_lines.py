"""The lines of a plain or compressed file, in constant memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from mechmem.data.records import Tally

CODECS = {".zst": "zstd", ".gz": "gzip"}
CHUNK = 2**20


class BrokenFileError(Exception):
    """The file cannot be read further; what was yielded before is sound."""


def byte_lines(path: Path, tally: Tally) -> Iterator[bytes]:
    """Yield a file's lines without their ends, a leading byte-order mark removed.

    The suffix says the compression; several frames or members one after the other are one text. A line that a broken
    file cuts is not yielded, since nobody knows how it goes on.

    Args:
        path: the file.
        tally: its `position` follows the bytes read from the disk.

    Raises:
        BrokenFileError: the compressed stream is cut or damaged; raised after the last whole line.
    """
    rest, first = b"", True
    broken: BrokenFileError | None = None
    chunks = _chunks(path, tally)
    while broken is None:
        try:
            chunk = next(chunks, None)
        except BrokenFileError as error:
            broken, chunk = error, error.args[1]
        if chunk is None:
            break
        if first:
            chunk, first = chunk.removeprefix(codecs.BOM_UTF8), False
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            # Joining only when a line is complete would be faster for lines of many chunks; such lines are rare.
            rest += chunk
            continue
        yield from (rest + head).split(b"\n")
        rest = tail
    if broken is not None:
        raise BrokenFileError(broken.args[0]) from broken
    if rest:
        yield rest


def _chunks(path: Path, tally: Tally) -> Iterator[bytes]:
    codec = CODECS.get(path.suffix)
    if codec is not None and path.stat().st_size == 0:
        raise BrokenFileError("the compressed file is empty", b"")
    done = 0
    with pa.OSFile(str(path)) as raw:
        stream = raw if codec is None else pa.CompressedInputStream(raw, codec)
        while True:
            try:
                chunk = stream.read(CHUNK)
            except OSError as error:
                if codec is None:
                    raise
                raise BrokenFileError(str(error), _before_break(path, codec, done)) from error
            if not chunk:
                return
            done += len(chunk)
            tally.position = raw.tell()
            yield chunk


def _before_break(path: Path, codec: str, done: int) -> bytes:
    """What stands between the last good chunk and the break: a failed read loses it, so it is read again in small."""
    found = bytearray()
    with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, codec) as stream:
        size = CHUNK
        while True:
            want = min(size, done) if done else 1
            try:
                chunk = stream.read(want)
            except OSError:
                return bytes(found)
            if done:
                done -= len(chunk)
            else:
                found += chunk
            if not chunk:
                return bytes(found)
