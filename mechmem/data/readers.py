"""Files of text -> records, one after the other, in constant memory; what cannot be read is accounted for."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mechmem.data.byte_lines import LONGEST_LINE, byte_lines
from mechmem.data.decompress import CHUNK, BrokenFileError, byte_chunks
from mechmem.data.errors import InputError
from mechmem.data.parquet_text import read_parquet
from mechmem.data.records import BROKEN_FILE, Record, Tally, checked_text, source_of

# Of valid UTF-8 the characters that take four bytes, there and in a string that holds any.
ABOVE_PLANE_0 = re.compile(rb"[\xf0-\xf4][\x80-\xbf]{3}")
# A larger text file is several documents: one tokenizer call holds a whole document.
PIECE_BYTES = 8 * 2**20
TEXT_SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet", ".txt", ".txt.zst", ".txt.gz")


def text_suffix(path: Path) -> str | None:
    """The suffix of a file that `read_text` reads, or None for any other file."""
    return next((suffix for suffix in TEXT_SUFFIXES if path.name.lower().endswith(suffix)), None)


def read_text(path: Path, tally: Tally, *, column: str = "text") -> Iterator[Record]:
    """Yield the records of one file, in order.

    `.jsonl` (also `.zst`, `.gz`) has a JSON object a line with the text under `column`; blank lines are no records.
    `.parquet` has a column of that name. A `.txt` (also `.zst`, `.gz`) is one record; one of more than 8 MiB is cut at
    line ends. The source is `meta.pile_set_name`, else `source`, else the file's name.

    A record without usable text, and the point where a damaged file breaks off, are accounted for in the tally.

    Args:
        path: a file with one of `TEXT_SUFFIXES`.
        tally: counts this file's records.
        column: the field that holds the text.

    Raises:
        InputError: the tally is strict and a record or the file cannot be read; the message names file and line.
    """
    reader = READERS[text_suffix(path) or ""]
    try:
        yield from reader(path, tally, column)
    except BrokenFileError as error:
        tally.records += 1
        tally.skip(f"{path}:{tally.records}", BROKEN_FILE, str(error))
    except OSError as error:
        # The disk or the network failed, not the file: going on would lose data that is there.
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); read it again when it can be") from error


def read_rows(rows: Iterable[dict[str, Any]], name: str, tally: Tally, *, column: str = "text") -> Iterator[Record]:
    """Yield the records of a dataset's rows; fields as in `read_text`, places are "name:row" from 1."""
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            text = checked_text(row.get(column), f"{name}:{number}", tally, column=column)
            if text is not None:
                yield Record(text, source_of(row, name))
    except (pa.ArrowException, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        tally.records += 1
        tally.skip(f"{name}:{number + 1}", BROKEN_FILE, str(error))


def _read_jsonl(path: Path, tally: Tally, column: str) -> Iterator[Record]:
    number = 0
    for line in byte_lines(path, tally):
        number += 1
        if isinstance(line, bytes | bytearray) and not line.strip():
            continue
        box = [line]
        del line
        row = _parsed(box, f"{path}:{number}", tally)
        if row is None:
            continue
        text = checked_text(row.get(column), f"{path}:{number}", tally, column=column)
        if text is not None:
            yield Record(text, source_of(row, path.name))


def _parsed(box: list[bytes | bytearray | int], place: str, tally: Tally) -> dict[str, Any] | None:
    """The object that a line holds. The line is taken out of its box, so that nothing refers to it while it grows."""
    reason, detail = "bad JSON", ""
    try:
        row = json.loads(_as_text(box))
        if isinstance(row, dict):
            return row
        reason, detail = "no text", f"the line is {type(row).__name__}; need an object"
    except _TooLongError as error:
        reason, detail = "too long", str(error)
    except UnicodeDecodeError as error:
        reason, detail = "invalid UTF-8", f"{error.reason} at byte {error.start}"
    except (ValueError, RecursionError) as error:
        detail = str(error)
    tally.records += 1
    tally.skip(place, reason, detail)
    return None


class _TooLongError(Exception):
    """A line that is not held."""


def _as_text(box: list[bytes | bytearray | int]) -> str:
    line = box.pop()
    if isinstance(line, int):
        raise _TooLongError(f"{line:,} bytes; need at most {LONGEST_LINE:,}")
    if line.startswith(codecs.BOM_UTF8):
        # Files may be joined, each with its mark at the start.
        line = line[len(codecs.BOM_UTF8) :]
    return (_escaped(line) if len(line) > CHUNK else line).decode()


def _escaped(line: bytes | bytearray) -> bytes | bytearray:
    """A long line of JSON with the characters above plane 0 escaped, if they are few.

    One such character makes a string of four bytes for every character.
    """
    if 8 * sum(line.count(bytes([lead])) for lead in range(0xF0, 0xF5)) > len(line):
        return line
    escaped, start = bytearray(), 0
    while start < len(line):
        stop = min(start + CHUNK, len(line))
        while stop < len(line) and stop - start < CHUNK + 3 and line[stop] & 0xC0 == 0x80:  # inside a character
            stop += 1
        escaped += ABOVE_PLANE_0.sub(_escape, line[start:stop])
        start = stop
    return escaped


def _escape(found: re.Match[bytes]) -> bytes:
    return json.dumps(found[0].decode()).encode()[1:-1]


def _read_txt(path: Path, tally: Tally, column: str) -> Iterator[Record]:
    for number, piece in enumerate(_pieces(path, tally), 1):
        place = f"{path}:piece {number}"
        try:
            text = piece.decode()
        except UnicodeDecodeError as error:
            tally.records += 1
            tally.skip(place, "invalid UTF-8", f"{error.reason} at byte {error.start}")
            continue
        checked = checked_text(text, place, tally, column=column)
        if checked is not None:
            yield Record(checked, path.name)


def _pieces(path: Path, tally: Tally) -> Iterator[bytes]:
    """A file's bytes, cut where a line ends, or inside a line that alone is too long."""
    held, empty = bytearray(), True
    try:
        for chunk in byte_chunks(path, tally):
            held += chunk
            while len(held) > PIECE_BYTES:
                piece = bytes(held[:PIECE_BYTES])
                piece = piece[: _cut(piece)]
                del held[: len(piece)]
                yield piece
                empty = False
    except BrokenFileError:
        # The last line is cut off, and its rest is unknown.
        whole = bytes(held[: held.rfind(b"\n") + 1])
        if whole:
            yield whole
        raise
    if held or empty:
        yield bytes(held)  # an empty file is a record without text, not nothing


def _cut(piece: bytes) -> int:
    newline = piece.rfind(b"\n") + 1
    if newline:
        return newline
    # Bytes 10xxxxxx continue a character: step back to where the last character begins.
    cut = len(piece) - 1
    while cut > 1 and piece[cut] & 0xC0 == 0x80:
        cut -= 1
    return max(cut, 1)


READERS: dict[str, Callable[[Path, Tally, str], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".jsonl.zst": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".parquet": read_parquet,
    ".txt": _read_txt,
    ".txt.zst": _read_txt,
    ".txt.gz": _read_txt,
}
