"""Files of text -> records, one after the other, in constant memory; what cannot be read is accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mechmem.data.byte_lines import BrokenFileError, byte_chunks, byte_lines
from mechmem.data.records import Record, Tally, checked_text

# A larger text file is several documents: one tokenizer call holds a whole document.
PIECE_BYTES = 8 * 2**20
PARQUET_ROWS = 256
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
    except (BrokenFileError, OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            # The disk or the network failed, not the file: going on would lose data that is there.
            raise
        tally.records += 1
        tally.skip(f"{path}:{tally.records}", "broken file", str(error))


def read_rows(rows: Iterable[dict[str, Any]], name: str, tally: Tally, *, column: str = "text") -> Iterator[Record]:
    """Yield the records of a dataset's rows; fields as in `read_text`, places are "name:row" from 1."""
    for number, row in enumerate(rows, 1):
        text = checked_text(row.get(column), f"{name}:{number}", tally, column=column)
        if text is not None:
            yield Record(text, _source(row, name))


def _read_jsonl(path: Path, tally: Tally, column: str) -> Iterator[Record]:
    for number, line in enumerate(byte_lines(path, tally), 1):
        if not line.strip():
            continue
        row = _parsed(line, f"{path}:{number}", tally)
        if row is None:
            continue
        text = checked_text(row.get(column), f"{path}:{number}", tally, column=column)
        if text is not None:
            yield Record(text, _source(row, path.name))


def _parsed(line: bytes, place: str, tally: Tally) -> dict[str, Any] | None:
    reason, detail = "bad JSON", ""
    try:
        row = json.loads(line.decode())
        if isinstance(row, dict):
            return row
        reason, detail = "no text", f"the line is {type(row).__name__}; need an object"
    except UnicodeDecodeError as error:
        reason, detail = "invalid UTF-8", f"{error.reason} at byte {error.start}"
    except (ValueError, RecursionError) as error:
        detail = str(error)
    tally.records += 1
    tally.skip(place, reason, detail)
    return None


def _read_parquet(path: Path, tally: Tally, column: str) -> Iterator[Record]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        names = file.schema_arrow.names
        if column not in names:
            raise BrokenFileError(f"its columns are {names}; need '{column}'")
        need = [name for name in (column, "meta", "source") if name in names]
        before, size = 0, path.stat().st_size
        for group in range(file.num_row_groups):
            rows, number = file.metadata.row_group(group).num_rows, before
            try:
                for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=need):
                    for index in range(batch.num_rows):
                        number += 1
                        yield from _parquet_record(batch, index, path, number, tally, column)
            except (OSError, pa.ArrowException) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                # The groups after a damaged one can be read: the file's end says where they stand.
                missing = before + rows - number
                tally.records += missing
                tally.skip(f"{path}:{number + 1}", "broken file", f"{missing} rows: {error}", count=missing)
            before += rows
            tally.position = size * before // file.metadata.num_rows


def _parquet_record(
    batch: pa.RecordBatch, index: int, path: Path, number: int, tally: Tally, column: str
) -> Iterator[Record]:
    try:
        row = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        tally.records += 1
        tally.skip(f"{path}:{number}", "invalid UTF-8", f"{error.reason} at byte {error.start}")
        return
    text = checked_text(row[column], f"{path}:{number}", tally, column=column)
    if text is not None:
        yield Record(text, _source(row, path.name))


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
    piece, empty = b"", True
    try:
        for chunk in byte_chunks(path, tally):
            piece += chunk
            while len(piece) > PIECE_BYTES:
                cut = _cut(piece[:PIECE_BYTES])
                yield piece[:cut]
                piece, empty = piece[cut:], False
    except BrokenFileError:
        # The last line is cut off, and its rest is unknown.
        whole = piece[: piece.rfind(b"\n") + 1]
        if whole:
            yield whole
        raise
    if piece or empty:
        yield piece  # an empty file is a record without text, not nothing


def _cut(piece: bytes) -> int:
    newline = piece.rfind(b"\n") + 1
    if newline:
        return newline
    # Bytes 10xxxxxx continue a character: step back to where the last character begins.
    cut = len(piece) - 1
    while cut > 1 and piece[cut] & 0xC0 == 0x80:
        cut -= 1
    return max(cut, 1)


def _source(row: dict[str, Any], name: str) -> str:
    meta = row.get("meta")
    named = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return str(named or row.get("source") or name)


READERS: dict[str, Callable[[Path, Tally, str], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".jsonl.zst": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
    ".txt.zst": _read_txt,
    ".txt.gz": _read_txt,
}
