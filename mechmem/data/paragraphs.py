"""Paragraphs: token rows of one length, each a prefix to give and a continuation to expect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.data.bounds import Count, Proportion, Seed, check_bounds, checked
from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.data.paragraph_files import columns_of, made_column, metadata, read_array, read_parts, token_column
from mechmem.data.paragraph_ids import check_unique, content_ids
from mechmem.data.paragraph_table import html_table
from mechmem.data.token_ids import as_rows, as_token_ids

# It is a tensor once the object is made; other types are refused there, with a sentence that says how to get ids.
if TYPE_CHECKING:
    TokenIds = Tensor
else:
    TokenIds = Any


@dataclass(frozen=True, repr=False)
class Paragraphs:
    """Rows of token ids, all of one length, split at `prefix_len`.

    Every paragraph has an id, and results about paragraphs carry these ids as their coordinate `paragraph`, so that
    two results are aligned by paragraph and not by row. `paragraphs[2:5]`, `paragraphs[mask]` and iteration give
    `Paragraphs` again.

    Attributes:
        tokens: ids of tokens, [paragraph, pos]. No BOS token is added anywhere.
        prefix_len: the first `prefix_len` tokens are given, the rest is the continuation; logit column j scores token
            j + 1, so the continuation is scored by columns prefix_len - 1 ... n - 2.
        table: one row per paragraph with what is known about it: `id, source, count, cluster, em, nll, text`; or None.
        tokenizer: fingerprint of the tokenizer that the ids belong to, if known (`data.fingerprint`); a model with
            another tokenizer refuses these paragraphs.

    Raises:
        InputError: the tokens are not integers in two dimensions, the prefix leaves no continuation, an id is
            negative, or the table's length differs.
    """

    tokens: TokenIds
    prefix_len: Count = 50
    table: datasets.Dataset | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix_len", check_bounds("prefix_len", self.prefix_len, Count))
        check_bounds("tokenizer", self.tokenizer, str | None)
        tokens = as_token_ids(self.tokens)
        if self.prefix_len >= tokens.shape[1]:
            raise InputError(
                f"got prefix_len {self.prefix_len} for paragraphs of {tokens.shape[1]} tokens; need "
                "1 <= prefix_len < length: give longer paragraphs or a shorter prefix"
            )
        if not isinstance(self.table, datasets.Dataset | None):
            raise InputError(
                f"got {type(self.table).__name__} as table; need a datasets.Dataset, one row for each paragraph: "
                "datasets.Dataset.from_dict(columns)"
            )
        if self.table is not None and len(self.table) != len(tokens):
            raise InputError(
                f"got a table of {len(self.table)} rows for {len(tokens)} paragraphs; need one row for each"
            )
        object.__setattr__(self, "tokens", tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, chosen: Any) -> Paragraphs:
        if isinstance(chosen, int | np.integer) and not isinstance(chosen, bool):
            if not -len(self) <= chosen < len(self):
                raise IndexError(f"got index {chosen} for {len(self)} paragraphs")
            chosen = [int(chosen)]
        return self.select(np.arange(len(self))[chosen] if isinstance(chosen, slice) else chosen)

    def __iter__(self) -> Iterator[Paragraphs]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        columns = "no table" if self.table is None else f"columns {', '.join(self.table.column_names)}"
        return f"Paragraphs({len(self)} x {self.tokens.shape[1]} tokens, prefix {self.prefix_len}; {columns})"

    def _repr_html_(self) -> str:
        return html_table(self)

    @cached_property
    def ids(self) -> np.ndarray:
        """What identifies each paragraph, [paragraph], unique: the column `id`, or else a number made of its tokens.

        Ids are kept by `select`, `with_columns`, `save` and `load`. A paragraph that was perturbed has the id of its
        original, so that results about both are aligned.

        Raises:
            InputError: the column `id` holds a value twice.
        """
        if self.table is not None and "id" in self.table.column_names:
            ids = np.asarray(self.table["id"][:])
            check_unique(ids)
            return ids
        return content_ids(self.tokens.cpu().numpy())

    @property
    def clusters(self) -> np.ndarray:
        """Cluster of near-duplicates of each paragraph, [paragraph]; without a column `cluster` each is its own."""
        return self.column("cluster") if self.has("cluster") else np.arange(len(self))

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

        `chosen` is anything that NumPy makes an array of; ids and table rows are kept.

        Raises:
            InputError: a mask of another length, indices that are not integers or out of range, or a row chosen twice.
        """
        index = as_rows(chosen, len(self))
        table = None if self.table is None else self.table.select(index.tolist())
        part = Paragraphs(self.tokens[torch.from_numpy(index)], self.prefix_len, table, self.tokenizer)
        if not self.has("id"):
            part.__dict__["ids"] = self.ids[index]
        return part

    def replace_tokens(self, tokens: Int[Tensor, "paragraph pos"]) -> Paragraphs:
        """The same paragraphs with other tokens, [paragraph, pos], of any length: ids, table and tokenizer stay."""
        changed = Paragraphs(tokens, self.prefix_len, self.table, self.tokenizer)
        if len(tokens) == len(self):
            changed.__dict__["ids"] = self.ids
        return changed

    @checked
    def split_by_cluster(self, fraction: Proportion = 0.5, *, seed: Seed = 0) -> tuple[Paragraphs, Paragraphs]:
        """Two parts that share no cluster (column `cluster`), so that no near-duplicate of one is in the other.

        Clusters are taken in random order until the first part holds at least `fraction` of the paragraphs.

        Raises:
            InputError: no column `cluster`, or a fraction outside 0..1.
        """
        labels, members = np.unique(self.column("cluster"), return_inverse=True)
        order = np.random.default_rng(seed).permutation(len(labels))
        sizes = np.bincount(members, minlength=len(labels))[order]
        needed = np.cumsum(sizes) - sizes < fraction * len(self)
        first = np.isin(members, order[needed])
        return self.select(first), self.select(~first)

    def has(self, name: str) -> bool:
        """Whether the table has this column."""
        return self.table is not None and name in self.table.column_names

    def column(self, name: str) -> np.ndarray:
        """One column of the table as an array, [paragraph].

        Raises:
            InputError: there is no table or no such column.
        """
        if self.table is None or not self.has(name):
            known = [] if self.table is None else self.table.column_names
            raise InputError(f"these paragraphs have no column '{name}'; the columns known here are {known}")
        values = self.table[name][:]
        array = np.asarray(values)
        # An array of fixed width would lose the NULs at the ends of texts.
        ends = array.dtype.kind == "U" and any(str(value).endswith("\0") for value in values)
        return np.array(values, dtype=object) if ends else array

    def with_columns(self, **columns: Any) -> Paragraphs:
        """The same paragraphs with columns [paragraph] added to the table or replaced in it.

        Raises:
            InputError: a column of another length.
        """
        import pyarrow as pa

        if not columns:
            return self
        table = {} if self.table is None else columns_of(self.table)
        for name, values in columns.items():
            table[name] = made_column(name, values, len(self))
        wider = Paragraphs(self.tokens, self.prefix_len, datasets.Dataset(pa.table(table)), self.tokenizer)
        if "ids" in self.__dict__ and not wider.has("id"):
            wider.__dict__["ids"] = self.ids
        return wider

    def save(self, path: str | Path) -> None:
        """Write a parquet file: column `tokens`, the table's columns; `prefix_len` and tokenizer as metadata.

        Ids that do not follow from the tokens are written as a column `id`.
        """
        import pyarrow.parquet as pq

        table = self.arrow()
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def arrow(self) -> Any:
        """What `save` writes, as an Arrow table."""
        import pyarrow as pa

        columns = {} if self.table is None else columns_of(self.table)
        tokens = self.tokens.cpu().numpy()
        if not self.has("id") and "ids" in self.__dict__ and not np.array_equal(self.ids, content_ids(tokens)):
            columns["id"] = pa.array(self.ids)
        table = pa.table({**columns, "tokens": token_column(tokens)})
        return table.replace_schema_metadata(metadata(self.prefix_len, self.tokenizer))

    @staticmethod
    @checked
    def load(path: str | Path, *, prefix_len: Count | None = None) -> Paragraphs:
        """Read a parquet file that `save` wrote (or any with a `tokens` column), or a `.npy` array of ids.

        Args:
            path: the file; its suffix says which. A folder is read as parquet files, in the order of their names.
            prefix_len: where to split; by default what the file says, or else 50 (the paper's).

        Raises:
            InputError: no such file, another suffix, a missing column, ids that are not integers, rows of unequal
                length, or parts that do not fit together.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path}: no such file; need a .parquet or .npy file of paragraphs")
        if path.is_dir():
            parts = sorted(part for part in path.glob("*.parquet") if not part.name.startswith("."))
            if not parts:
                raise InputError(f"{path}: this folder holds no .parquet file; need parts with a column 'tokens'")
        elif path.suffix == ".npy":
            return Paragraphs(torch.from_numpy(read_array(path)), 50 if prefix_len is None else prefix_len)
        elif path.suffix == ".parquet":
            parts = [path]
        else:
            raise InputError(f"{path}: need .parquet (column 'tokens') or .npy (ids, [paragraph, pos])")
        tokens, prefix_len, table, tokenizer = read_parts(parts, prefix_len)
        return Paragraphs(torch.from_numpy(tokens), prefix_len, table, tokenizer)
