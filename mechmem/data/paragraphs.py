"""Paragraphs: token rows of one length, each a prefix to give and a continuation to expect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.data.paragraph_files import PREFIX_LEN, PREFIX_LEN_KEY, columns_of, read_parts, token_column


@dataclass(frozen=True)
class Paragraphs:
    """Rows of token ids, all of one length, split at `prefix_len`.

    Attributes:
        tokens: ids, [paragraph, pos]. No BOS token is added anywhere.
        prefix_len: the first `prefix_len` tokens are given, the rest is the continuation; logit column j scores token
            j + 1, so the continuation is scored by columns prefix_len - 1 ... n - 2.
        table: one row a paragraph with whatever is known of it: `id, source, count, cluster, em, nll, text`; or None.

    Raises:
        InputError: the tokens are not integers in two dimensions, the prefix leaves no continuation, an id is
            negative, or the table's length differs.
    """

    tokens: Tensor
    prefix_len: int = 50
    table: datasets.Dataset | None = None

    def __post_init__(self) -> None:
        tokens = self.tokens
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise InputError(
                f"paragraphs came as {tokens.dtype} of shape {list(tokens.shape)}; wanted integer ids "
                "[paragraph, pos]: give one row of token ids for each paragraph, all of one length"
            )
        if not 1 <= self.prefix_len < tokens.shape[1]:
            raise InputError(
                f"prefix_len is {self.prefix_len} and paragraphs have {tokens.shape[1]} tokens; wanted "
                "1 <= prefix_len < length: give longer paragraphs or a shorter prefix"
            )
        if len(tokens) and int(tokens.min()) < 0:
            raise InputError(f"a token id is {int(tokens.min())}; ids start at 0: remove padding before building rows")
        if self.table is not None and len(self.table) != len(tokens):
            raise InputError(
                f"the table has {len(self.table)} rows for {len(tokens)} paragraphs; wanted one row for each"
            )
        object.__setattr__(self, "tokens", tokens.long())

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def prefix(self) -> Int[Tensor, "paragraph prefix_pos"]:
        """The tokens that are given."""
        return self.tokens[:, : self.prefix_len]

    @property
    def continuation(self) -> Int[Tensor, "paragraph continuation_pos"]:
        """The tokens that are expected."""
        return self.tokens[:, self.prefix_len :]

    @property
    def continuation_len(self) -> int:
        """How many tokens are expected: the highest EM there can be."""
        return self.tokens.shape[1] - self.prefix_len

    def select(self, chosen: Any) -> Paragraphs:
        """The rows where a boolean mask [paragraph] holds, or those at integer indices [chosen], in that order.

        Anything that NumPy makes an array of will do; table rows go along.

        Raises:
            InputError: a mask of another length.
        """
        index = np.asarray(chosen)
        if index.dtype == bool:
            if len(index) != len(self):
                raise InputError(f"a mask of {len(index)} values came for {len(self)} paragraphs; wanted one for each")
            index = np.flatnonzero(index)
        table = None if self.table is None else self.table.select(index.tolist())
        return Paragraphs(self.tokens[torch.as_tensor(index, dtype=torch.long)], self.prefix_len, table)

    def split_by_cluster(self, fraction: float = 0.5, *, seed: int = 0) -> tuple[Paragraphs, Paragraphs]:
        """Two parts that share no cluster (column `cluster`), so that no near-duplicate of one is in the other.

        Clusters are taken in random order until the first part holds at least `fraction` of the paragraphs.

        Raises:
            InputError: no column `cluster`, or a fraction outside 0..1.
        """
        if not 0 <= fraction <= 1:
            raise InputError(f"fraction is {fraction}; wanted the first part's share of the paragraphs, 0 to 1")
        labels, members = np.unique(self.column("cluster"), return_inverse=True)
        order = np.random.default_rng(seed).permutation(len(labels))
        sizes = np.bincount(members, minlength=len(labels))[order]
        needed = np.cumsum(sizes) - sizes < fraction * len(self)
        first = np.isin(members, order[needed])
        return self.select(first), self.select(~first)

    def column(self, name: str) -> np.ndarray:
        """One column of the table as an array, [paragraph].

        Raises:
            InputError: there is no table or no such column.
        """
        known = [] if self.table is None else self.table.column_names
        if self.table is None or name not in known:
            raise InputError(f"these paragraphs carry no column '{name}'; the columns known here are {known}")
        return np.asarray(self.table[name][:])

    def with_columns(self, **columns: Any) -> Paragraphs:
        """The same paragraphs with columns [paragraph] added to the table or replaced in it.

        Raises:
            InputError: a column of another length.
        """
        import pyarrow as pa

        table = {} if self.table is None else columns_of(self.table)
        for name, values in columns.items():
            array = np.asarray(values)
            if array.ndim == 0 or len(array) != len(self):
                raise InputError(
                    f"column '{name}' has shape {list(array.shape)} for {len(self)} paragraphs; "
                    "wanted one value for each"
                )
            # Integers and floats get the types that a Python list of them would get.
            wide = {"i": np.int64, "f": np.float64}.get(array.dtype.kind) if array.ndim == 1 else None
            table[name] = pa.array(array.tolist() if wide is None else np.asarray(array, dtype=wide))
        return Paragraphs(self.tokens, self.prefix_len, datasets.Dataset(pa.table(table)))

    def save(self, path: str | Path) -> None:
        """Write a parquet file: column `tokens`, the table's columns, `prefix_len` in the schema's metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {} if self.table is None else columns_of(self.table)
        table = pa.table({**columns, "tokens": token_column(self.tokens.cpu().numpy())})
        table = table.replace_schema_metadata({PREFIX_LEN_KEY: str(self.prefix_len)})
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @staticmethod
    def load(path: str | Path, *, prefix_len: int | None = None) -> Paragraphs:
        """Read a parquet file that `save` wrote (or any with a `tokens` column), or a `.npy` array of ids.

        Args:
            path: the file; its suffix says which. A folder is read as parquet files, in the order of their names.
            prefix_len: where to split; by default what the file says, or else 50 (the paper's).

        Raises:
            InputError: no such file, another suffix, a missing column, ids that are no integers, rows of unequal
                length, or parts that do not fit together.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path}: no such file; wanted a .parquet or .npy file of paragraphs")
        if path.is_dir():
            parts = sorted(part for part in path.glob("*.parquet") if not part.name.startswith("."))
            if not parts:
                raise InputError(f"{path}: this folder holds no .parquet file; wanted parts with a column 'tokens'")
            return _load_parquet(parts, prefix_len)
        if path.suffix == ".npy":
            return _load_array(path, prefix_len)
        if path.suffix != ".parquet":
            raise InputError(f"{path}: wanted .parquet (column 'tokens') or .npy (ids, [paragraph, pos])")
        return _load_parquet([path], prefix_len)


def _load_array(path: Path, prefix_len: int | None) -> Paragraphs:
    try:
        tokens = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(
            f"{path}: not an array of numbers, or rows of unequal length ({error}); wanted integer ids "
            "[paragraph, pos]: save one row of ids for each paragraph, all of one length"
        ) from error
    # Torch computes nothing with unsigned integers of more than a byte.
    tokens = tokens.astype(np.int64) if tokens.dtype.kind == "u" else tokens
    if tokens.dtype.kind not in "ifb":
        raise InputError(f"{path}: an array of {tokens.dtype} came; wanted integer ids [paragraph, pos]")
    return Paragraphs(torch.as_tensor(tokens), PREFIX_LEN if prefix_len is None else prefix_len)


def _load_parquet(parts: list[Path], prefix_len: int | None) -> Paragraphs:
    tokens, prefix_len, table = read_parts(parts, prefix_len)
    return Paragraphs(torch.from_numpy(tokens), prefix_len, table)
