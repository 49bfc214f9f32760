"""The bytes of a plain, gzip or zstd file, in memory that neither the file nor what it claims decides."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from mechmem.data.records import Tally

CHUNK = 2**20
# The largest window that the format's own tool reads; `zstd --ultra --long=31` writes it.
LARGEST_WINDOW = 2**31
FRAME, SKIPPABLE = b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"
# No block of a frame is larger, nor is what it holds.
LARGEST_BLOCK = 2**17
RAW, RLE, COMPRESSED = 0, 1, 2
CUT = "Truncated: the file ends inside its compressed data"
# Whether a text begins here, and its bytes: every frame or member may begin with a byte-order mark.
Piece = tuple[bool, bytes]


class BrokenFileError(Exception):
    """The file cannot be read further; what was yielded before is sound."""


def byte_chunks(path: Path, tally: Tally) -> Iterator[bytes]:
    """Yield a file's decompressed bytes, at most `CHUNK` at a time, without byte-order marks.

    The suffix says the compression. Several frames or members one after the other are one text; each may begin with a
    byte-order mark.

    Args:
        path: the file.
        tally: its `position` follows the bytes read from the disk.

    Raises:
        BrokenFileError: the compressed data are cut or damaged; raised after all bytes before the break.
        OSError: the disk or the network failed.
    """
    read = {".zst": _zstd, ".gz": _gzip}.get(path.suffix.lower(), _plain)
    with path.open("rb", buffering=CHUNK) as raw:
        for chunk in _without_marks(read(raw)):
            tally.position = raw.tell()
            yield chunk


def _without_marks(pieces: Iterator[Piece]) -> Iterator[bytes]:
    start: bytes | None = None  # of a text, while it is too short to say whether it is a mark
    try:
        for begins, piece in pieces:
            if begins:
                if start:
                    yield start
                start = b""
            if start is not None:
                start += piece
                if len(start) < len(codecs.BOM_UTF8):
                    continue
                piece, start = start.removeprefix(codecs.BOM_UTF8), None
            if piece:
                yield piece
    except BrokenFileError:
        if start:
            yield start
        raise
    if start:
        yield start


def _plain(raw: BinaryIO) -> Iterator[Piece]:
    begins = True
    while chunk := raw.read(CHUNK):
        yield begins, chunk
        begins = False


def _gzip(raw: BinaryIO) -> Iterator[Piece]:
    data = raw.read(CHUNK)
    if not data:
        raise BrokenFileError("the compressed file is empty")
    while data:
        member, begins = zlib.decompressobj(zlib.MAX_WBITS | 16), True
        while not member.eof:
            if not data and not (data := raw.read(CHUNK)):
                raise BrokenFileError(CUT)
            before = member.copy()
            try:
                piece = member.decompress(data, CHUNK)
            except zlib.error as error:
                yield begins, _before_damage(before, data)
                raise BrokenFileError(str(error)) from error
            yield begins, piece
            begins, data = False, member.unconsumed_tail
        # Zeros may fill up the end, as on a tape.
        data = member.unused_data.lstrip(b"\0")
        while not data and (more := raw.read(CHUNK)):
            data = more.lstrip(b"\0")


def _before_damage(member: Any, data: bytes) -> bytes:
    """What a member holds before the place that cannot be decompressed: a failed call gives nothing of it."""
    found = bytearray()
    for step in (2**12, 1):
        while True:
            before = member.copy()
            try:
                piece = member.decompress(data, step)
            except zlib.error:
                member = before
                break
            if not piece:
                return bytes(found)
            found += piece
            data = member.unconsumed_tail
    return bytes(found)


def _zstd(raw: BinaryIO) -> Iterator[Piece]:
    """Frame by frame and block by block: a block is small whatever the window, and damage costs no block before it."""
    context = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    magic = raw.read(4)
    if not magic:
        raise BrokenFileError("the compressed file is empty")
    while magic:
        if magic == FRAME:
            yield from _frame(raw, context.decompressobj())
        elif len(magic) == 4 and magic[1:] == SKIPPABLE and magic[0] >> 4 == 5:
            _skip(raw, int.from_bytes(_exactly(raw, 4), "little"))
        else:
            raise BrokenFileError(f"Unknown frame descriptor at byte {raw.tell() - len(magic)}: not zstd")
        magic = raw.read(4)


def _frame(raw: BinaryIO, frame: Any) -> Iterator[Piece]:
    descriptor = _exactly(raw, 1)
    single, checksum = descriptor[0] >> 5 & 1, descriptor[0] >> 2 & 1
    of_content = (single, 2, 4, 8)[descriptor[0] >> 6]
    header = FRAME + descriptor + _exactly(raw, 1 - single + (0, 1, 2, 4)[descriptor[0] & 3] + of_content)
    yield True, _decompressed(frame, header)
    last = 0
    while not last:
        head = _exactly(raw, 3)
        size, kind, last = (number := int.from_bytes(head, "little")) >> 3, number >> 1 & 3, number & 1
        if kind not in (RAW, RLE, COMPRESSED) or size > LARGEST_BLOCK:
            raise BrokenFileError(f"Data corruption detected: no block of zstd at byte {raw.tell() - 3}")
        yield False, _decompressed(frame, head + _exactly(raw, 1 if kind == RLE else size))
    if checksum:
        yield False, _decompressed(frame, _exactly(raw, 4))


def _decompressed(frame: Any, data: bytes) -> bytes:
    try:
        return frame.decompress(data)
    except (zstandard.ZstdError, MemoryError) as error:
        raise BrokenFileError(str(error) or "not enough memory for its window") from error


def _exactly(raw: BinaryIO, size: int) -> bytes:
    data = raw.read(size)
    if len(data) < size:
        raise BrokenFileError(CUT)
    return data


def _skip(raw: BinaryIO, size: int) -> None:
    for start in range(0, size, CHUNK):
        _exactly(raw, min(CHUNK, size - start))
