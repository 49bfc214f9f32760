"""A parquet file with a column of text -> records; what cannot be read is accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mechmem.data.decompress import BrokenFileError
from mechmem.data.records import BROKEN_FILE, Record, Tally, checked_text, source_of

# Rows that are decoded together, and of a group with long rows how many bytes they may have. A dictionary may name one
# long text for every row: a group's bytes bound those of each of its rows.
ROWS, BYTES = 256, 2**28
# Pages are read one by one: a group's bytes are not held.
BUFFER = 2**20
# Where a source may be named.
META, SOURCE = "meta", "source"


def read_parquet(path: Path, tally: Tally, column: str) -> Iterator[Record]:
    """Yield the records of one file; see `readers.read_text`.

    Raises:
        BrokenFileError: not parquet, or without exactly one column of that name.
        OSError: the disk or the network failed.
    """
    with _opened(path) as file:
        with damage_named():
            names = file.schema_arrow.names
        if names.count(column) != 1:
            raise BrokenFileError(f"its columns are {_listed(names)}; need '{column}', once")
        need = [column, *(name for name in (META, SOURCE) if name != column and names.count(name) == 1)]
        before, size, total = 0, path.stat().st_size, max(1, file.metadata.num_rows)
        for group in range(file.metadata.num_row_groups):
            rows, number = max(0, file.metadata.row_group(group).num_rows), before
            try:
                for batch in _batches(file, group, need):
                    for index in range(batch.num_rows):
                        number += 1
                        yield from _record(batch, index, f"{path}:{number}", path.name, tally, column)
            except BrokenFileError as error:
                # The groups after a damaged one can be read: the file's end says where they stand.
                missing = max(1, before + rows - number)
                tally.records += missing
                tally.skip(f"{path}:{number + 1}", BROKEN_FILE, f"{missing} rows: {error}", count=missing)
            before += rows
            tally.position = min(size, size * before // total)


@contextmanager
def damage_named() -> Iterator[None]:
    """Raise BrokenFileError for what Arrow raises at damage.

    That depends on which bytes are damaged: Arrow's own errors, names that are no UTF-8, sizes that no memory holds,
    counts that overflow.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise BrokenFileError(str(error)) from error
    except (pa.ArrowException, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise BrokenFileError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    with damage_named():
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
    with file:
        yield file


def _batches(file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with damage_named():
        size = max(1, file.metadata.row_group(group).total_byte_size)
        batches = file.iter_batches(max(1, min(ROWS, BYTES // size)), row_groups=[group], columns=columns)
    while True:
        with damage_named():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _record(batch: pa.RecordBatch, index: int, place: str, name: str, tally: Tally, column: str) -> Iterator[Record]:
    try:
        value = batch.column(column)[index].as_py()
    except UnicodeDecodeError as error:
        tally.records += 1
        tally.skip(place, "invalid UTF-8", f"{error.reason} at byte {error.start}")
        return
    except (pa.ArrowException, ValueError, OverflowError, KeyError) as error:
        tally.records += 1
        tally.skip(place, "no text", f"{type(error).__name__}: {error}")
        return
    text = checked_text(value, place, tally, column=column)
    if text is not None:
        yield Record(text, source_of({known: _value(batch, known, index) for known in (META, SOURCE)}, name))


def _value(batch: pa.RecordBatch, column: str, index: int) -> Any:
    """A value that may name the source; what cannot be read names nothing."""
    if column not in batch.schema.names:
        return None
    try:
        return batch.column(column)[index].as_py()
    except (pa.ArrowException, ValueError, OverflowError, KeyError):
        return None


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:20]))
    return f"[{shown}]" if len(names) <= 20 else f"[{shown}, ... ({len(names)} in all)]"
