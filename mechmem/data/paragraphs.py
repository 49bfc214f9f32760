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

from mechmem.data.atomic import replacing
from mechmem.data.errors import InputError

PREFIX_LEN_KEY = "mechmem.prefix_len"


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
        """The same paragraphs with columns [paragraph] added to the table or replaced in it."""
        data = {} if self.table is None else self.table.to_dict()
        assert isinstance(data, dict)
        data |= {name: np.asarray(values).tolist() for name, values in columns.items()}
        return Paragraphs(self.tokens, self.prefix_len, datasets.Dataset.from_dict(data))

    def save(self, path: str | Path) -> None:
        """Write a parquet file: column `tokens`, the table's columns, `prefix_len` in the schema's metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {} if self.table is None else {n: self.table.data.column(n) for n in self.table.column_names}
        rows = pa.array(self.tokens.to(torch.int32).numpy().tolist(), pa.list_(pa.int32()))
        table = pa.table({**columns, "tokens": rows})
        table = table.replace_schema_metadata({PREFIX_LEN_KEY: str(self.prefix_len)})
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @staticmethod
    def load(path: str | Path, *, prefix_len: int | None = None) -> Paragraphs:
        """Read a parquet file that `save` wrote (or any with a `tokens` column), or a `.npy` array of ids.

        Args:
            path: the file; its suffix says which.
            prefix_len: where to split; by default what the file says, or else 50 (the paper's).

        Raises:
            InputError: no such file, another suffix, a missing column or rows of unequal length.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; wanted a .parquet or .npy file of paragraphs")
        if path.suffix == ".npy":
            return Paragraphs(torch.as_tensor(np.load(path, allow_pickle=False)), prefix_len or 50)
        if path.suffix != ".parquet":
            raise InputError(f"{path}: wanted .parquet (column 'tokens') or .npy (ids, [paragraph, pos])")
        return _load_parquet(path, prefix_len)


def _load_parquet(path: Path, prefix_len: int | None) -> Paragraphs:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a readable parquet file ({error}); write it again or fetch it anew") from error
    if "tokens" not in table.column_names:
        raise InputError(f"{path}: columns {table.column_names} came; wanted 'tokens', a list of ids in each row")
    rows = table["tokens"].to_pylist()
    lengths = set(map(len, rows))
    if len(lengths) > 1:
        raise InputError(f"{path}: rows have {len(lengths)} different lengths; wanted one: cut all rows to one length")
    stored = (table.schema.metadata or {}).get(PREFIX_LEN_KEY.encode())
    tokens = np.asarray(rows, dtype=np.int64).reshape(len(rows), -1)
    rest = table.drop_columns(["tokens"]).replace_schema_metadata(None)
    return Paragraphs(
        torch.as_tensor(tokens),
        prefix_len or int(stored or 50),
        datasets.Dataset(rest) if rest.num_columns else None,
    )
