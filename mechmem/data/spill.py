"""Pairs of key and value on disk, by the keys' top bits: sorting more than memory holds, a bucket at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt64

from mechmem.data.errors import InputError

PAIR = np.dtype([("key", "<u8"), ("value", "<i8")])


class Spill:
    """Collect (key, value) pairs and give them back by key range; equal keys always come back together.

    Few pairs stay in memory and touch no disk. Within a bucket, pairs keep the order in which they were added.
    """

    def __init__(self, folder: Path, *, buckets: int = 256, buffer: int = 2**18) -> None:
        """Begin empty.

        Args:
            folder: for the files; made when the first is needed. Must hold no earlier spill.
            buckets: a power of two; each bucket must fit in memory when it is read.
            buffer: pairs held in memory before they are written.

        Raises:
            InputError: the buckets are not a power of two.
        """
        if buckets < 1 or buckets & (buckets - 1):
            raise InputError(f"buckets is {buckets}; need a power of two, since a key's top bits choose the bucket")
        self.folder = folder
        self._bits = buckets.bit_length() - 1
        self._buffer = buffer
        self._held: list[np.ndarray] = []
        self._held_pairs = 0
        self._written: set[int] = set()

    def add(self, keys: UInt64[np.ndarray, " pair"], values: Int64[np.ndarray, " pair"]) -> None:
        """Append pairs."""
        pairs = np.empty(len(keys), dtype=PAIR)
        pairs["key"], pairs["value"] = keys, values
        self._held.append(pairs)
        self._held_pairs += len(pairs)
        if self._held_pairs >= self._buffer:
            self._write()

    def buckets(self) -> Iterator[tuple[UInt64[np.ndarray, " pair"], Int64[np.ndarray, " pair"]]]:
        """Yield (keys, values) of each bucket that is not empty, lowest keys first; may be called again."""
        if not self._written:
            self._held = [np.concatenate(self._held)] if self._held else []
            for pairs in self._held:
                yield pairs["key"].copy(), pairs["value"].copy()
            return
        self._write()
        for bucket in sorted(self._written):
            pairs = np.fromfile(self._path(bucket), dtype=PAIR)
            yield pairs["key"].copy(), pairs["value"].copy()

    def _write(self) -> None:
        if not self._held_pairs:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        pairs = np.concatenate(self._held)
        self._held, self._held_pairs = [], 0
        # Shifting by all 64 bits is undefined: a single bucket takes its own way.
        of_pair = pairs["key"] >> np.uint64(64 - self._bits) if self._bits else np.zeros(len(pairs), np.uint64)
        order = np.argsort(of_pair, kind="stable")
        edges = np.searchsorted(of_pair[order], np.arange((1 << self._bits) + 1, dtype=np.uint64))
        pairs = pairs[order]
        for bucket in np.flatnonzero(np.diff(edges)).tolist():
            # Opened for each write: 256 files held open would be most of what a process may have.
            with self._path(bucket).open("ab") as handle:
                pairs[edges[bucket] : edges[bucket + 1]].tofile(handle)
            self._written.add(bucket)

    def _path(self, bucket: int) -> Path:
        return self.folder / f"{bucket:05d}.pairs"
