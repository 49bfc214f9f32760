"""A corpus' windows: cut, filtered, once each, sampled and counted, with an index on disk instead of copies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64, Integer

from mechmem.data.bounds import Count, Proportion, Seed, check_fields
from mechmem.data.distinct import CutWindows, chosen_ids, count_in_corpus
from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.data.filters import distinct_enough, without_keywords
from mechmem.data.own_files import own_file, read_json
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress, ProgressLike, as_callback, part_of
from mechmem.data.settings_match import refuse_other_settings
from mechmem.data.shards import Corpus, Documents
from mechmem.data.tokenizing import tokenizer_digest

# Windows worked on at once.
BLOCK = 2**14


@dataclass(frozen=True)
class WindowSettings:
    """Which windows of a corpus are kept.

    Attributes:
        length: tokens of a window.
        prefix_len: how many of them are given.
        stride: tokens from one window's start to the next one's, from each document's start on.
        min_distinct: drop windows with a smaller share of distinct tokens than this; the paper's is 0.5.
        keywords: drop windows whose text holds one; the paper's are `filters.PAPER_KEYWORDS`.
        deduplicate: of windows with equal tokens keep the first.
        limit: keep a uniform random sample of this many, without replacement, of all that are left.
        seed: chooses the sample.

    Raises:
        InputError: a value out of its range.
    """

    length: Count = 100
    prefix_len: Count = 50
    stride: Count = 100
    min_distinct: Proportion | None = None
    keywords: Sequence[str] = ()
    deduplicate: bool = True
    limit: Count | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.prefix_len < self.length:
            raise InputError(f"got prefix_len {self.prefix_len}, length {self.length}; need 1 <= prefix_len < length")
        if not all(self.keywords):
            raise InputError(f"got keywords {self.keywords!r}; need a tuple of strings that are not empty")
        object.__setattr__(self, "keywords", tuple(self.keywords))


@dataclass(frozen=True)
class WindowIndex:
    """The kept windows of a corpus, in its order; tokens stay in the corpus.

    Attributes:
        corpus: where the tokens are.
        settings: how the windows were chosen.
        manifest: `documents`, `documents_too_short`, `windows` (all that were cut), `dropped` (by filter),
            `duplicates`, `not_sampled`, `kept`; windows = dropped + duplicates + not_sampled + kept.
        ids: each kept window's number among all that were cut, ascending; memory-mapped, [window].
        counts: how often its tokens occur in the corpus, at any offset; memory-mapped, [window].
        windows_before: how many windows were cut before each shard, with their total at the end, [shard + 1].
    """

    corpus: Corpus
    settings: WindowSettings
    manifest: dict[str, Any]
    ids: Int64[np.ndarray, " window"]
    counts: Int64[np.ndarray, " window"]
    windows_before: Int64[np.ndarray, " edge"]

    @property
    def total(self) -> int:
        """How many windows are kept."""
        return self.manifest["kept"]

    def size(self, shard: int) -> int:
        """How many windows of one token shard of the corpus are kept."""
        first, last = self._range(shard)
        return last - first

    def paragraphs(self, shard: int) -> Paragraphs:
        """The kept windows of one token shard of the corpus, perhaps none, in order.

        The table has `id` (number among all windows that were cut), `document` (number in the corpus), `offset` (of
        the first token, in the document), `source` and `count`.
        """
        return self._paragraphs(shard, *self._range(shard))

    def blocks(self, shard: int) -> Iterator[Paragraphs]:
        """The same in blocks of at most `BLOCK` windows, at least one block, which may be empty."""
        first, last = self._range(shard)
        for start in range(first, max(last, first + 1), BLOCK):
            yield self._paragraphs(shard, start, min(start + BLOCK, last))

    def _range(self, shard: int) -> tuple[int, int]:
        first, last = np.searchsorted(self.ids, self.windows_before[shard : shard + 2]).tolist()
        return first, last

    def _paragraphs(self, shard: int, first: int, last: int) -> Paragraphs:
        documents = self.corpus.shard(shard)
        ids = np.array(self.ids[first:last])
        document, offset = Cuts(documents, self.settings).places(ids - self.windows_before[shard])
        tokens = gathered(documents, document, offset, self.settings.length).astype(np.int64)
        table = pa.table(
            {
                "id": ids,
                "document": documents.numbers[document],
                "offset": offset,
                "source": pa.array(documents.sources[document].tolist(), pa.string()),
                "count": np.array(self.counts[first:last]),
            }
        )
        return Paragraphs(
            torch.from_numpy(tokens), self.settings.prefix_len, datasets.Dataset(table), self.corpus.tokenizer
        )


class Cuts:
    """Where the windows of a shard begin."""

    def __init__(self, documents: Documents, settings: WindowSettings) -> None:
        """Cut at the stride from each document's start; what does not fill a window at its end is left."""
        lengths = np.diff(documents.starts)
        self.stride = settings.stride
        self.too_short = int((lengths < settings.length).sum())
        in_document = np.maximum(0, (lengths - settings.length) // settings.stride + 1)
        self.before = np.concatenate([np.zeros(1, np.int64), np.cumsum(in_document)])

    def __len__(self) -> int:
        return int(self.before[-1])

    def places(self, windows: Int64[np.ndarray, " window"]) -> tuple[np.ndarray, np.ndarray]:
        """Of windows by number in the shard: index of the document in the shard, and offset in it, [window] each."""
        document = np.searchsorted(self.before, windows, side="right") - 1
        return document, (windows - self.before[document]) * self.stride


def gathered(
    documents: Documents, document: Int64[np.ndarray, " window"], offset: Int64[np.ndarray, " window"], length: int
) -> Integer[np.ndarray, "window pos"]:
    """The windows' tokens."""
    first = documents.starts[document] + offset
    return documents.tokens[first[:, None] + np.arange(length)]


def index_windows(
    corpus: Corpus,
    settings: WindowSettings,
    folder: str | Path,
    tokenizer: Any = None,
    progress: ProgressLike = None,
) -> WindowIndex:
    """Choose and count a corpus' windows, or open the index that `folder` holds already.

    1. Cut every shard into windows, filter them, and write each one's number and hash to disk.
    2. De-duplicate by hash, a range of hashes at a time; the first occurrence stays. With a limit, sample of what is
       left: the windows whose seeded random numbers are lowest.
    3. Read the corpus again and count, at any offset, the windows that stayed.

    The index is written whole or not at all: a kill loses the work on it, never the corpus. Equal 64-bit hashes are
    taken for equal windows; of n windows some two different ones share a hash with probability n^2 / 2^65.

    Args:
        corpus: the tokens.
        settings: which windows are kept.
        folder: of the index.
        tokenizer: decodes windows for the keywords; without keywords it is not needed.
        progress: called with shards read and shards to read (each is read twice).

    Raises:
        InputError: keywords without a tokenizer, a folder that holds something else or an index of another corpus or
            other settings, or no window is left.
    """
    folder = Path(folder)
    if settings.keywords:
        without_keywords(np.zeros((0, settings.length), dtype=np.int64), settings.keywords, tokenizer)
    described = {"settings": {**asdict(settings), "keywords": list(settings.keywords)}, "corpus": corpus.digest}
    described["tokenizer"] = tokenizer_digest(tokenizer) if settings.keywords else None
    if folder.is_dir() and any(folder.iterdir()):
        _agree(folder, described)
        return _opened(corpus, settings, folder)
    report = as_callback(progress, "choosing windows")
    with replacing(folder) as temporary:
        temporary.mkdir()
        cut, manifest, before = _cut_all(corpus, settings, tokenizer, temporary, part_of(report, 0, 2))
        ids = chosen_ids(cut, settings.deduplicate, settings.limit, settings.seed, temporary)
        manifest |= {"duplicates": ids.duplicates, "not_sampled": ids.not_sampled, "kept": ids.kept}
        spent = sum(manifest["dropped"].values()) + ids.duplicates + ids.not_sampled + ids.kept
        assert spent == manifest["windows"], manifest
        if not ids.kept:
            raise InputError(_nothing_left(manifest, settings))
        count_in_corpus(corpus, ids, settings.length, temporary, part_of(report, 1, 2))
        np.save(temporary / "windows_before.npy", before)
        (temporary / "index.json").write_text(json.dumps({"described": described, "manifest": manifest}, indent=1))
    return _opened(corpus, settings, folder)


def _agree(folder: Path, described: dict[str, Any]) -> None:
    path = folder / "index.json"
    if not path.is_file():
        raise InputError(f"{folder}: holds files of something else; need an empty folder for the index: choose another")
    stored = read_json(path, {"described": dict, "manifest": dict})["described"]
    refuse_other_settings(folder, stored, described, advice="choose another folder, or remove this one")


def _opened(corpus: Corpus, settings: WindowSettings, folder: Path) -> WindowIndex:
    with own_file(folder / "index.json"):
        ids, counts = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "counts"))
        before = np.load(folder / "windows_before.npy")
    return WindowIndex(
        corpus, settings, read_json(folder / "index.json", {"manifest": dict})["manifest"], ids, counts, before
    )


def _cut_all(
    corpus: Corpus, settings: WindowSettings, tokenizer: Any, folder: Path, progress: Progress
) -> tuple[CutWindows, dict[str, Any], Int64[np.ndarray, " edge"]]:
    """Step 1: the windows that pass the filters, the account so far, and the windows before each shard."""
    before = np.zeros(len(corpus) + 1, dtype=np.int64)
    dropped = {"min_distinct": 0, "keywords": 0}
    too_short = count = 0
    cut = CutWindows(folder / "cut")
    for number in range(len(corpus)):
        documents = corpus.shard(number)
        cuts = Cuts(documents, settings)
        too_short, count = too_short + cuts.too_short, count + len(documents)
        before[number + 1] = before[number] + len(cuts)
        for first in range(0, len(cuts), BLOCK):
            windows = np.arange(first, min(first + BLOCK, len(cuts)))
            tokens = gathered(documents, *cuts.places(windows), settings.length)
            keep = np.ones(len(windows), dtype=bool)
            if settings.min_distinct is not None:
                keep = distinct_enough(tokens, settings.min_distinct)
                dropped["min_distinct"] += int((~keep).sum())
            if settings.keywords:
                # Decoding is slow: only what the filter before has left.
                clean = without_keywords(tokens[keep], settings.keywords, tokenizer)
                dropped["keywords"] += int((~clean).sum())
                keep[keep] = clean
            cut.add(before[number] + windows[keep], tokens[keep])
        progress(number + 1, len(corpus))
    manifest = {"documents": count, "documents_too_short": too_short, "windows": int(before[-1]), "dropped": dropped}
    return cut, manifest, before


def _nothing_left(manifest: dict[str, Any], settings: WindowSettings) -> str:
    if not manifest["windows"]:
        return (
            f"got {manifest['documents']} documents, none of {settings.length} tokens; need at least 1: give longer "
            "documents, or ask for shorter windows"
        )
    return f"got {manifest['windows']} windows, all dropped by filters ({manifest['dropped']}); loosen the filters"
