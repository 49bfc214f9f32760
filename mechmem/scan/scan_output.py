"""The rows of all parts, with near-duplicate clusters, as one parquet file or a folder of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mechmem.data.counts import Clusters
from mechmem.data.files import replacing
from mechmem.scan.scan_parts import rows_path
from mechmem.scan.scan_rows import Report


def write_output(
    folder: Path, parts: int, out: Path, *, run: int | None, rows_per_file: int | None = None, report: Report
) -> int:
    """Write the output, whole or not at all; -> rows written.

    Args:
        folder: the scan's work folder.
        parts: how many parts it has.
        out: the file, or with `rows_per_file` the folder of files.
        run: tokens that rows of one cluster share; rows that have a column `cluster` keep it. None: no clusters.
        rows_per_file: most rows of a file of the folder.
        report: called after each part is read; each is read twice.
    """
    labels = _clusters(folder, parts, run, report)
    schema = _schema(folder, parts)
    if labels is not None:
        schema = schema.append(pa.field("cluster", pa.int64()))
    written = 0
    with replacing(out) as temporary, closing(_Files(temporary, schema, rows_per_file)) as files:
        for number in range(parts):
            for table in _tables(folder, number):
                if labels is not None:
                    table = table.append_column("cluster", pa.array(labels[written : written + len(table)]))
                files.write(table.cast(schema))
                written += len(table)
            report("writing", parts + number + 1, 2 * parts)
    return written


class _Files:
    """One parquet file at a path, or a folder there with a given number of rows per file."""

    def __init__(self, path: Path, schema: pa.Schema, rows_per_file: int | None):
        self._path, self._schema, self._rows_per_file = path, schema, rows_per_file
        self._opened, self._room = 0, 0
        if rows_per_file is not None:
            path.mkdir()
        self._writer = self._next()

    def write(self, table: pa.Table) -> None:
        while len(table):
            if not self._room:
                self._writer.close()
                self._writer = self._next()
            head = table.slice(0, self._room)
            self._writer.write_table(head)
            self._room -= len(head)
            table = table.slice(len(head))

    def close(self) -> None:
        self._writer.close()

    def _next(self) -> pq.ParquetWriter:
        path = self._path if self._rows_per_file is None else self._path / f"part-{self._opened:05d}.parquet"
        self._opened, self._room = self._opened + 1, self._rows_per_file or 2**62
        return pq.ParquetWriter(path, self._schema, compression="zstd")


def _clusters(folder: Path, parts: int, run: int | None, report: Report) -> np.ndarray | None:
    """Each row's cluster, or None where the rows bring their own."""
    if run is None or "cluster" in pq.read_schema(rows_path(folder, 0)).names:
        return None
    runs = folder / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    clusters = Clusters(run, runs)
    for number in range(parts):
        for table in _tables(folder, number, ["tokens"]):
            clusters.add(table["tokens"].combine_chunks().flatten().to_numpy().reshape(len(table), -1))
        report("writing", number + 1, 2 * parts)
    labels = clusters.labels()
    shutil.rmtree(runs, ignore_errors=True)
    return labels


def _schema(folder: Path, parts: int) -> pa.Schema:
    """The columns of all parts, with their types.

    A column without a value in one part has no type there, and tokens of no rows have that of lists of one length,
    which says how long they would be: where any part has rows, their types count.
    """
    schemas = [pq.read_schema(rows_path(folder, number)) for number in range(parts)]
    tokens = [schema.field("tokens") for schema in schemas]
    own = next((field for field in tokens if not pa.types.is_fixed_size_list(field.type)), tokens[0])
    schemas = [schema.set(schema.get_field_index("tokens"), own) for schema in schemas]
    return pa.unify_schemas(schemas).with_metadata(schemas[0].metadata)


def _tables(folder: Path, number: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A part's rows as they were written, a block at a time; none of an empty part."""
    with pq.ParquetFile(rows_path(folder, number)) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            if len(table):
                yield table
