"""Windows by hash, on disk: which are the first of their kind, which are drawn, and how often each occurs."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer, UInt64

from mechmem.data.hashes import blocks, row_hashes
from mechmem.data.progress import Progress
from mechmem.data.shards import Corpus
from mechmem.data.spill import Spill

# Numbers read from disk at once.
CHUNK = 2**18
# Top bits of a hash that are looked up before the sorted hashes are searched: 16 MiB, whatever the corpus.
PRESENT_BITS = 24


def new_array(path: Path, dtype: type, count: int) -> np.memmap:
    """A new array of zeros in a file, [count]; with the suffix `.npy` in that format.

    The disk gives its room at once: a write through the map to a full disk would end the process without a word.

    Raises:
        OSError: the disk is full.
    """
    head = io.BytesIO()
    if path.suffix == ".npy":
        shape = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(head, shape)
    size = len(head.getvalue()) + count * np.dtype(dtype).itemsize
    with path.open("wb") as file:
        file.write(head.getvalue())
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return np.memmap(path, dtype=dtype, mode="r+", offset=len(head.getvalue()), shape=(count,))


class CutWindows:
    """Every window that passed the filters: its id and its hash, in the order of the corpus, in two flat files."""

    def __init__(self, folder: Path) -> None:
        """Begin empty, with new files in `folder`."""
        folder.mkdir()
        self.folder, self.total = folder, 0

    def add(self, ids: Int64[np.ndarray, " window"], tokens: Integer[np.ndarray, "window pos"]) -> None:
        """Append windows, ids ascending."""
        for name, values in (("ids", ids), ("hashes", row_hashes(tokens))):
            with (self.folder / name).open("ab") as handle:
                values.tofile(handle)
        self.total += len(ids)

    def read(self, name: str, dtype: type, first: int) -> np.ndarray:
        """A chunk of `ids` (int64) or `hashes` (uint64) from window `first` on, [window]."""
        return np.fromfile(self.folder / name, dtype=dtype, count=CHUNK, offset=8 * first)


@dataclass(frozen=True)
class ChosenIds:
    """How many windows stayed; `ids.npy` holds their ids in order, `hashes` their hashes by place in that file."""

    kept: int
    duplicates: int
    not_sampled: int
    hashes: Spill


def chosen_ids(cut: CutWindows, deduplicate: bool, limit: int | None, seed: int, folder: Path) -> ChosenIds:
    """Step 2: the first of equal windows, and of these a sample; writes `ids.npy` to the folder."""
    stays = np.ones(0, dtype=bool)
    if cut.total:
        stays = new_array(folder / "stays", bool, cut.total)
        stays[:] = not deduplicate
    if deduplicate and cut.total:
        _mark_first(cut, stays, folder / "spill")
    distinct = sum(int(np.count_nonzero(stays[first : first + CHUNK])) for first in range(0, cut.total, CHUNK))
    if limit is not None and limit < distinct:
        _sample(cut, stays, limit, seed)
    kept = distinct if limit is None else min(limit, distinct)
    hashes = Spill(folder / "need")
    if kept:
        ids = new_array(folder / "ids.npy", np.int64, kept)
        place = 0
        for first in range(0, cut.total, CHUNK):
            here = np.asarray(stays[first : first + CHUNK])
            found = cut.read("ids", np.int64, first)[here]
            ids[place : place + len(found)] = found
            places = np.arange(place, place + len(found))
            hashes.add(cut.read("hashes", np.uint64, first)[here], places)
            place += len(found)
        ids.flush()
    (folder / "stays").unlink(missing_ok=True)
    shutil.rmtree(cut.folder)
    return ChosenIds(kept, cut.total - distinct, distinct - kept, hashes)


def _mark_first(cut: CutWindows, stays: np.ndarray, folder: Path) -> None:
    spill = Spill(folder)
    for first in range(0, cut.total, CHUNK):
        hashes = cut.read("hashes", np.uint64, first)
        spill.add(hashes, np.arange(first, first + len(hashes)))
    for keys, windows in spill.buckets():
        # Within a bucket, windows are in corpus order, and `unique` returns the first of each key.
        stays[windows[np.unique(keys, return_index=True)[1]]] = True
    shutil.rmtree(folder, ignore_errors=True)


def _sample(cut: CutWindows, stays: np.ndarray, limit: int, seed: int) -> None:
    """Leave the `limit` windows with the lowest random numbers: a uniform sample, in one pass, in memory of `limit`."""
    lowest = np.zeros(0, dtype=np.uint64)
    chosen = np.zeros(0, dtype=np.int64)
    for first in range(0, cut.total, CHUNK):
        windows = first + np.flatnonzero(stays[first : first + CHUNK])
        stays[windows] = False
        numbers = random_numbers(cut.read("ids", np.int64, first)[windows - first], seed)
        lowest, chosen = np.concatenate([lowest, numbers]), np.concatenate([chosen, windows])
        if len(lowest) > limit:
            best = np.argpartition(lowest, limit - 1)[:limit]
            lowest, chosen = lowest[best], chosen[best]
    stays[chosen] = True


def random_numbers(ids: Int64[np.ndarray, " window"], seed: int) -> UInt64[np.ndarray, " window"]:
    """One random 64-bit number for each id, the same for the same seed: SplitMix64, which repeats no number."""
    start = np.random.default_rng(seed).integers(0, 2**64, dtype=np.uint64)
    value = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + start
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def count_in_corpus(corpus: Corpus, chosen: ChosenIds, length: int, folder: Path, progress: Progress) -> None:
    """Step 3: how often each chosen window occurs in the corpus, at any offset; writes `counts.npy` to the folder."""
    present = np.zeros(1 << PRESENT_BITS, dtype=bool)
    distinct = 0
    with (folder / "keys").open("wb") as handle:
        for keys, _ in chosen.hashes.buckets():
            found = np.unique(keys)
            found.tofile(handle)
            present[found >> np.uint64(64 - PRESENT_BITS)] = True
            distinct += len(found)
    # Buckets come lowest keys first, so the file is sorted; it is mapped, and only touched pages take memory.
    need = np.memmap(folder / "keys", dtype=np.uint64, mode="r", shape=(distinct,))
    totals = new_array(folder / "totals", np.int64, distinct)
    for number in range(len(corpus)):
        documents = corpus.shard(number)
        for first, hashes in blocks(documents.tokens, length):
            offsets = np.flatnonzero(present[hashes >> np.uint64(64 - PRESENT_BITS)])
            hashes = hashes[offsets]
            places = np.searchsorted(need, hashes).clip(max=distinct - 1)
            right = need[places] == hashes
            places, starts = places[right], first + offsets[right]
            # A window that crosses from one document to the next is none.
            ends = documents.starts[np.searchsorted(documents.starts, starts, side="right")]
            found, times = np.unique(places[starts + length <= ends], return_counts=True)
            totals[found] += times
        progress(number + 1, len(corpus))
    counts = new_array(folder / "counts.npy", np.int64, chosen.kept)
    for keys, places in chosen.hashes.buckets():
        counts[places] = totals[np.searchsorted(need, keys)]
    counts.flush()
    (folder / "keys").unlink()
    (folder / "totals").unlink()
    shutil.rmtree(folder / "need", ignore_errors=True)
