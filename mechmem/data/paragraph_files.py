"""Paragraphs as parquet columns, by way of flat Arrow values and never of Python lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from mechmem.data.decompress import BrokenFileError
from mechmem.data.errors import InputError
from mechmem.data.id_arrays import mapped_ids
from mechmem.data.parquet_text import damage_named
from mechmem.data.progress import batches

PREFIX_LEN_KEY, TOKENIZER_KEY = "mechmem.prefix_len", "mechmem.tokenizer"
PREFIX_LEN = 50
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
# Columns that are computed with.
NUMBERS = ("count", "em", "nll", "match_fraction", "edit_distance")
# Rows of a chunk when saving: its lists' offsets are 32-bit numbers.
ROWS = 2**18


def read_parts(
    parts: list[Path], prefix_len: int | None
) -> tuple[Int64[np.ndarray, "paragraph pos"], int, datasets.Dataset | None, str | None]:
    """Token rows, prefix length, the other columns and the tokenizer's fingerprint of parquet files, in order.

    Args:
        parts: the files, at least one.
        prefix_len: where to split; by default what the files say, or else the paper's.

    Raises:
        InputError: a file that is none, has no column `tokens` of integers, rows of unequal length, or does not fit to
            the others.
    """
    tables, tokens = [], []
    for path in parts:
        try:
            # `read_table` would take a column from folder names like `x=1`.
            with damage_named():
                table = pq.ParquetFile(path).read()
        except (BrokenFileError, OSError) as error:
            raise InputError(f"{path}: not a readable parquet file ({error}); write or download it again") from error
        _check_columns(table, path)
        if "tokens" not in table.column_names:
            raise InputError(f"{path}: got columns {table.column_names}; need 'tokens', a list of ids in each row")
        tokens.append(_flat_tokens(table["tokens"], path))
        tables.append(table.drop_columns(["tokens"]))
    lengths = {part.shape[1] for part in tokens if len(part)}
    if len(lengths) > 1:
        raise InputError(f"{parts[0].parent}: rows have {len(lengths)} different lengths; need one: cut all rows to it")
    stored = {(table.schema.metadata or {}).get(PREFIX_LEN_KEY.encode()) for table in tables}
    marks = {(table.schema.metadata or {}).get(TOKENIZER_KEY.encode()) for table in tables}
    if len(marks) > 1:
        raise InputError(f"{parts[0].parent}: the parts belong to {len(marks)} tokenizers; need parts of one tokenizer")
    if prefix_len is None and len(stored) > 1:
        raise InputError(f"{parts[0].parent}: the parts name prefix_len {sorted(map(str, stored))}; need one: name it")
    try:
        rest = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    except pa.ArrowInvalid as error:
        raise InputError(f"{parts[0].parent}: the parts' columns differ ({error}); need the same in each") from error
    if prefix_len is None:
        prefix_len = _stored_prefix_len(next(iter(stored)), parts[0])
    if not lengths:
        lengths = {max(part.shape[1] for part in tokens) or prefix_len + 1}
    rows = [part.reshape(-1, max(lengths)) for part in tokens]
    mark = next(iter(marks))
    try:
        table = datasets.Dataset(rest) if rest.num_columns else None
    except (ValueError, TypeError, NotImplementedError, pa.ArrowException) as error:
        raise InputError(f"{parts[0]}: columns that cannot be used ({error}); need numbers and texts") from error
    return np.concatenate(rows), prefix_len, table, None if mark is None else mark.decode(errors="backslashreplace")


def _check_columns(table: pa.Table, path: Path) -> None:
    """Refuse names that occur twice, and columns of the wrong kind that are read by their names."""
    names = table.column_names
    # Not a truth value: a name may be empty.
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise InputError(f"{path}: got the column '{twice}' {names.count(twice)} times; need it once: rename one")
    for place, name in enumerate(names):
        kind, column = table.schema.field(place).type, table.column(place)
        if name in NUMBERS and not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
            raise InputError(f"{path}: got '{name}' as {kind}; need numbers: rename the column, or write it again")
        if name == "id" and (pa.types.is_nested(kind) or column.null_count):
            raise InputError(f"{path}: got '{name}' as {kind} with {column.null_count} nulls; need one id in each row")


def _stored_prefix_len(stored: bytes | None, path: Path) -> int:
    if stored is None:
        return PREFIX_LEN
    if not stored.isdigit() or len(stored) > 9:
        raise InputError(f"{path}: says that its prefix_len is {stored!r}; need a number of tokens: name it")
    return int(stored)


def metadata(prefix_len: int, tokenizer: str | None) -> dict[str, str]:
    """What a file of paragraphs says about itself."""
    return {PREFIX_LEN_KEY: str(prefix_len)} | ({} if tokenizer is None else {TOKENIZER_KEY: tokenizer})


def read_array(path: Path) -> Int64[np.ndarray, "paragraph pos"]:
    """A `.npy` file of ids.

    Raises:
        InputError: not an array of integers in two dimensions.
    """
    need = "need integer ids [paragraph, pos]: save one row of ids for each paragraph, all of one length"
    return mapped_ids(path, INTEGERS, need).astype(np.int64)


def _flat_tokens(column: Any, path: Path) -> Int64[np.ndarray, "paragraph pos"]:
    """A column of lists as an array, by way of its flat values; no rows are [0, 0] unless the type says more."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) or not (
        pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type)
    ):
        raise InputError(f"{path}: got 'tokens' as {kind}; need a list of integer ids in each row")
    lengths = pc.call_function("list_value_length", [column]).unique().to_pylist()
    if len(lengths) > 1:
        raise InputError(f"{path}: rows have {len(lengths)} different lengths; need one: cut all rows to one length")
    chunks = [chunk.flatten() for chunk in column.chunks]
    if lengths == [None] or any(chunk.null_count for chunk in chunks):
        raise InputError(f"{path}: an id in 'tokens' is null; need integers: remove such rows")
    if not lengths:
        return np.zeros((0, kind.list_size if pa.types.is_fixed_size_list(kind) else 0), dtype=np.int64)
    return np.concatenate([chunk.to_numpy() for chunk in chunks]).astype(np.int64).reshape(len(column), lengths[0])


def token_column(tokens: Int64[np.ndarray, "paragraph pos"]) -> pa.ChunkedArray:
    """Token rows as a column of lists of 32-bit ids, by way of flat values."""
    if not len(tokens):
        # Nothing but the type can say how long no rows are.
        return pa.chunked_array([], pa.list_(pa.int32(), tokens.shape[1]))
    return pa.chunked_array([_lists(tokens[rows]) for rows in batches(len(tokens), ROWS)], pa.list_(pa.int32()))


def _lists(tokens: Int64[np.ndarray, "paragraph pos"]) -> pa.ListArray:
    offsets = np.arange(len(tokens) + 1, dtype=np.int32) * tokens.shape[1]
    return pa.ListArray.from_arrays(offsets, tokens.reshape(-1).astype(np.int32))


def made_column(name: str, values: Any, count: int) -> Any:
    """A column of a table, one value for each of `count` paragraphs.

    Raises:
        InputError: another number of values, kinds of values that a table cannot hold, or the name of the tokens.
    """
    if name == "tokens":
        raise InputError("got a column 'tokens', which is the ids themselves; choose another name, or replace_tokens")
    try:
        array = np.asarray(values)
        if array.ndim == 0 or len(array) != count:
            raise InputError(
                f"column '{name}' has shape {list(array.shape)} for {count} paragraphs; need one value for each"
            )
        # Integers and floats get the types that a Python list of them would get.
        wide = {"i": np.int64, "f": np.float64}.get(array.dtype.kind) if array.ndim == 1 else None
        if wide is not None:
            return pa.array(np.asarray(array, dtype=wide))
        if array.dtype.kind == "U" and array.ndim == 1:
            # An array of fixed width has lost the NULs at the ends of its texts.
            return pa.array([_storable(str(value)) for value in values])
        return pa.array([_storable(value) for value in array.tolist()])
    except InputError:
        raise
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"column '{name}' cannot be kept in a table ({error}); need numbers, text or lists, of one kind"
        ) from error


def _storable(value: Any) -> Any:
    """Text with lone surrogates, which have no UTF-8 form, as their escapes; all else as it is."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def columns_of(table: datasets.Dataset) -> dict[str, Any]:
    """A table's columns as Arrow arrays, rows as `select` left them (the table below still holds every row)."""
    rows: Any = table.with_format("arrow")[:]
    return {name: rows.column(name) for name in table.column_names}
