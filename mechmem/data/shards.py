"""Tokenized documents on disk, a shard at a time."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer, Shaped

from mechmem.data.files import replacing
from mechmem.data.inputs import open_ids
from mechmem.data.own_files import own_file, read_json


@dataclass(frozen=True)
class Documents:
    """Whole documents, one after the other.

    Attributes:
        tokens: ids of all of them, [pos]; may be memory-mapped, so slice before computing on it.
        starts: where each document begins in `tokens`, with the end of the last added, [document + 1].
        numbers: each document's number in the corpus, counted from 0 over the documents that were kept, [document].
        sources: where each comes from, str [document].
    """

    tokens: Integer[np.ndarray, " pos"]
    starts: Int[np.ndarray, " edge"]
    numbers: Int[np.ndarray, " document"]
    sources: Shaped[np.ndarray, " document"]

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class Corpus:
    """Tokenized documents in the order of their source, read a shard at a time.

    Attributes:
        folder: where the shards are.
        manifest: `tokenizer` (fingerprint of the text's, or None), `files` (a list) and `total`, each with `records`,
            `documents`, `skipped` (by reason), `tokens`; a file also with its `path`, `size`, `version`, `highest_id`
            (of text the tokenizer's highest) and the first `examples` of what was skipped.
    """

    folder: Path
    manifest: dict[str, Any]
    _shards_before: list[int] = field(repr=False)
    _documents_before: list[int] = field(repr=False)

    @staticmethod
    def of(folder: Path, manifest: dict[str, Any]) -> Corpus:
        """A corpus whose shards are all written."""
        files = manifest["files"]
        shards = list(accumulate((len(file["shards"]) for file in files), initial=0))
        return Corpus(folder, manifest, shards, list(accumulate((file["documents"] for file in files), initial=0)))

    @staticmethod
    def load(folder: Path) -> Corpus:
        """A corpus that `open_corpus` finished, as it lies in its folder; only read, by any number of processes."""
        return Corpus.of(folder, read_json(folder / "manifest.json", {"files": list, "total": dict}))

    @property
    def tokenizer(self) -> str | None:
        """Fingerprint of the tokenizer that encoded the text; None for token ids, which do not say."""
        return self.manifest["tokenizer"]

    @property
    def highest_id(self) -> int:
        """No token id is larger."""
        return max(file["highest_id"] for file in self.manifest["files"])

    def __len__(self) -> int:
        return self._shards_before[-1]

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return self.manifest["total"]["tokens"]

    @property
    def digest(self) -> str:
        """Changes whenever the documents do."""
        files = [{**file, "examples": None} for file in self.manifest["files"]]
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    def shard(self, index: int) -> Documents:
        """The documents of shard `index`, 0 ... len - 1.

        Raises:
            IndexError: there is no such shard.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"shard {index} of {len(self)}")
        number = bisect_right(self._shards_before, index) - 1
        part, file = index - self._shards_before[number], self.manifest["files"][number]
        first, last = file["shards"][part]
        numbers = self._documents_before[number] + np.arange(first, last, dtype=np.int64)
        if file["ids"]:
            return _rows(Path(file["path"]), first, last, numbers)
        return load_shard(shard_path(self.folder, number, part), numbers)


def shard_path(folder: Path, number: int, part: int) -> Path:
    """Where part `part` of input `number` lies."""
    return folder / "shards" / f"{number:06d}-{part:06d}.npz"


def save_shard(path: Path, documents: list[np.ndarray], sources: list[str]) -> None:
    """Write documents (ids of one type, each [pos]; at least one), whole or not at all."""
    lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    names = {name: code for code, name in enumerate(dict.fromkeys(sources))}
    codes = np.array([names[source] for source in sources], dtype=np.int32)
    # Names as JSON: an array of strings would be as wide as the longest.
    encoded = np.frombuffer(json.dumps(list(names)).encode(), dtype=np.uint8)
    with replacing(path) as temporary:
        np.savez(temporary, tokens=np.concatenate(documents), starts=starts, codes=codes, names=encoded)


def load_shard(path: Path, numbers: Int[np.ndarray, " document"]) -> Documents:
    """Read what `save_shard` wrote."""
    with own_file(path), np.load(path, allow_pickle=False) as stored:
        names = np.array(json.loads(stored["names"].tobytes()), dtype=object)
        return Documents(stored["tokens"], stored["starts"], numbers, names[stored["codes"]])


def _rows(path: Path, first: int, last: int, numbers: Int[np.ndarray, " document"]) -> Documents:
    rows = open_ids(path)[first:last]
    starts = np.arange(last - first + 1, dtype=np.int64) * rows.shape[1]
    return Documents(rows.reshape(-1), starts, numbers, np.full(last - first, path.name, dtype=object))
