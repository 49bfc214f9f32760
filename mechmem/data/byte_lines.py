"""The bytes and lines of a plain or compressed file, in constant memory."""

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

    A line that a broken file cuts off is not yielded, because its rest is unknown.

    Args:
        path: as in `byte_chunks`.
        tally: as in `byte_chunks`.

    Raises:
        BrokenFileError: the compressed stream is cut or damaged; raised after the last whole line.
    """
    # Joined when a line is complete, so that a line of many chunks takes linear time.
    held: list[bytes] = []
    for chunk in byte_chunks(path, tally):
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            held.append(chunk)
            continue
        held.append(head)
        yield from b"".join(held).split(b"\n")
        held = [tail]
    rest = b"".join(held)
    if rest:
        yield rest


def byte_chunks(path: Path, tally: Tally) -> Iterator[bytes]:
    """Yield a file's decompressed bytes, at most `CHUNK` at a time, a leading byte-order mark removed.

    The suffix says the compression; several frames or members one after the other are one text.

    Args:
        path: the file.
        tally: its `position` follows the bytes read from the disk.

    Raises:
        BrokenFileError: the compressed stream is cut or damaged; raised after all bytes before the break.
    """
    codec = CODECS.get(path.suffix.lower())
    if codec is not None and path.stat().st_size == 0:
        raise BrokenFileError("the compressed file is empty")
    done = 0
    with pa.OSFile(str(path)) as raw:
        stream = raw if codec is None else pa.CompressedInputStream(raw, codec)
        while True:
            try:
                chunk = stream.read(CHUNK)
            except OSError as error:
                if codec is None:
                    raise
                yield _without_mark(_before_break(path, codec, done), done)
                raise BrokenFileError(str(error)) from error
            if not chunk:
                return
            tally.position = raw.tell()
            yield _without_mark(chunk, done)
            done += len(chunk)


def _without_mark(chunk: bytes, done: int) -> bytes:
    return chunk if done else chunk.removeprefix(codecs.BOM_UTF8)


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
