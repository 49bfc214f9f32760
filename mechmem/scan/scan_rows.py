"""What a scan scores: the windows of a corpus or the rows of a file, in numbered parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechmem.data.assets import PARAGRAPHS_FILE, bundled_paragraphs
from mechmem.data.corpora import open_corpus
from mechmem.data.distinct import random_numbers
from mechmem.data.errors import InputError
from mechmem.data.hashes import row_hashes
from mechmem.data.inputs import Input, file_input, list_inputs
from mechmem.data.lengths import check_lengths, load_paragraphs
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.shards import Corpus
from mechmem.data.token_tables import holds_table
from mechmem.data.windows import Cuts, WindowIndex, WindowSettings, gathered, index_windows
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.scan.scan_settings import ScanSettings
from mechmem.scan.spans import SpanSettings

# Called with (what is being done, done, total).
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ScanRows:
    """Paragraphs to score, a part at a time.

    Attributes:
        parts: how many parts there are; some may be empty.
        total: paragraphs in all of them.
        account: what was read, skipped and dropped, as JSON.
        size: how many paragraphs part 0 ... parts - 1 has.
        blocks: gives the paragraphs of a part in blocks, at least one, which may be empty: documents are not cut, so a
            part is as large as the largest document, and memory is that of a block.
    """

    parts: int
    total: int
    account: dict[str, Any]
    size: Callable[[int], int]
    blocks: Callable[[int], Iterator[Paragraphs]]

    def first(self, count: int) -> Paragraphs:
        """The first `count` paragraphs, or all if there are fewer: the same whoever asks."""
        return _first((block for number in range(self.parts) for block in self.blocks(number)), count)


@dataclass(frozen=True)
class DocumentRows:
    """Whole documents to read, a part at a time.

    Attributes:
        account: what was read and skipped, as JSON.
        corpus: where they are.
        lengths: of prefix and continuation.
    """

    account: dict[str, Any]
    corpus: Corpus
    lengths: tuple[int, int]

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return len(self.corpus)

    @property
    def total(self) -> int:
        """Tokens in all of them."""
        return self.corpus.tokens

    def size(self, number: int) -> int:
        """Tokens of a part."""
        return len(self.corpus.shard(number).tokens)

    def first(self, count: int) -> Paragraphs:
        """The first `count` windows that do not overlap, or all if there are fewer."""
        prefix_len, continuation_len = self.lengths
        settings = WindowSettings(prefix_len + continuation_len, prefix_len, prefix_len + continuation_len)

        def windows() -> Iterator[Paragraphs]:
            for number in range(self.parts):
                documents = self.corpus.shard(number)
                cuts = Cuts(documents, settings)
                places = cuts.places(np.arange(min(len(cuts), count)))
                tokens = gathered(documents, *places, settings.length).astype(np.int64)
                yield Paragraphs(torch.from_numpy(tokens), prefix_len)

        return _first(windows(), count)


def _first(parts: Iterator[Paragraphs], count: int) -> Paragraphs:
    chosen: list[torch.Tensor] = []
    prefix_len = 1
    for part in parts:
        prefix_len = part.prefix_len
        chosen.append(part.tokens[: count - sum(map(len, chosen))])
        if sum(map(len, chosen)) == count:
            break
    return Paragraphs(torch.cat(chosen), prefix_len)


def source_inputs(settings: ScanSettings) -> list[Input]:
    """The files or parts of a dataset that a scan reads, as they are now.

    Raises:
        InputError: there is no such corpus.
    """
    table = _table(settings)
    if table is None:
        assert settings.corpus is not None
        return list_inputs(settings.corpus, split=settings.split)
    files = sorted(table.glob("*.parquet")) if table.is_dir() else [table]
    return [file_input(file) for file in files]


def open_rows(
    settings: ScanSettings, model: HookedTransformer, folder: Path, report: Report
) -> ScanRows | DocumentRows:
    """Tokenize, cut, filter and count what is not done yet in `folder`; one process at a time.

    Raises:
        InputError: whatever `open_corpus`, `index_windows` and `Paragraphs.load` refuse, and ids or lengths that the
            model cannot read.
    """
    table = _table(settings)
    if table is not None and settings.spans is not None:
        raise InputError(f"{table}: got paragraphs, and document mode reads whole documents; need text, or ids as .npy")
    if table is not None:
        return _table_rows(settings, table, model)
    if settings.spans is not None:
        settings.spans.context_of(model.cfg.n_ctx)
    elif settings.windows.length > model.cfg.n_ctx:
        raise InputError(
            f"got windows of {settings.windows.length} tokens for a model with a context of {model.cfg.n_ctx}; need at "
            "most the context: ask for shorter windows"
        )
    assert settings.corpus is not None
    corpus = open_corpus(
        settings.corpus,
        model.tokenizer,
        folder / "corpus",
        strict=settings.strict,
        column=settings.column,
        split=settings.split,
        shard_tokens=settings.shard_tokens,
        progress=partial(report, "reading the corpus"),
    )
    if corpus.highest_id >= model.cfg.d_vocab:
        raise InputError(
            f"{settings.corpus}: got the token id {corpus.highest_id} for a model with a vocabulary of "
            f"{model.cfg.d_vocab} tokens; need ids below {model.cfg.d_vocab}: encode the text with its tokenizer"
        )
    if settings.spans is not None:
        rows = _document_rows(settings.spans, corpus)
        if not len(rows.first(1)):
            raise InputError(f"{settings.corpus}: no document has {sum(rows.lengths)} tokens; give longer documents")
        return rows
    index = index_windows(
        corpus, settings.windows, folder / "windows", model.tokenizer, partial(report, "choosing and counting windows")
    )
    return _window_rows(index)


def reopen_rows(settings: ScanSettings, model: HookedTransformer, folder: Path) -> ScanRows | DocumentRows:
    """What `open_rows` made, only read: any number of processes at once."""
    table = _table(settings)
    if table is not None:
        return _table_rows(settings, table, model)
    corpus = Corpus.load(folder / "corpus")
    if settings.spans is not None:
        return _document_rows(settings.spans, corpus)
    return _window_rows(index_windows(corpus, settings.windows, folder / "windows", model.tokenizer))


def _table(settings: ScanSettings) -> Path | None:
    """The file or folder of paragraphs to take as they are, if the corpus is one."""
    if settings.corpus is None:
        return PARAGRAPHS_FILE
    path = Path(settings.corpus)
    return path if holds_table(path) else None


def _asked_lengths(windows: WindowSettings) -> dict[str, int | None]:
    """What lengths paragraphs must have: none where the settings have what they have by default."""
    usual = WindowSettings()
    if (windows.prefix_len, windows.length) == (usual.prefix_len, usual.length):
        return {"prefix_len": None, "continuation_len": None}
    return {"prefix_len": windows.prefix_len, "continuation_len": windows.length - windows.prefix_len}


def _window_rows(index: WindowIndex) -> ScanRows:
    account = {"corpus": index.corpus.manifest["total"], "windows": index.manifest}
    return ScanRows(len(index.corpus), index.total, account, index.size, index.blocks)


def _document_rows(settings: SpanSettings, corpus: Corpus) -> DocumentRows:
    return DocumentRows({"corpus": corpus.manifest["total"]}, corpus, (settings.prefix_len, settings.continuation_len))


def _table_rows(settings: ScanSettings, path: Path, model: HookedTransformer) -> ScanRows:
    asked = _asked_lengths(settings.windows)
    if settings.corpus is None:
        paragraphs = bundled_paragraphs()
        check_lengths("the bundled paragraphs", paragraphs, **asked)
    else:
        paragraphs = load_paragraphs(path, **asked)
    rows, limit = len(paragraphs), settings.windows.limit
    if not rows:
        raise InputError(f"{path}: got 0 paragraphs; need at least one row of tokens")
    check_fit(model, paragraphs)
    if settings.run > paragraphs.tokens.shape[1]:
        raise InputError(
            f"got run {settings.run} for paragraphs of {paragraphs.tokens.shape[1]} tokens; need a run no longer than "
            "a paragraph: give a smaller run"
        )
    # Asked for even where the column is there: ids that occur twice are refused before anything is scored.
    ids = paragraphs.ids
    if not paragraphs.has("id"):
        paragraphs = paragraphs.with_columns(id=ids)
    if not paragraphs.has("count"):
        _, inverse, counts = np.unique(row_hashes(paragraphs.tokens.numpy()), return_inverse=True, return_counts=True)
        paragraphs = paragraphs.with_columns(count=counts[inverse])
    if limit is not None and limit < rows:
        lowest = np.argsort(random_numbers(np.arange(rows), settings.windows.seed))[:limit]
        paragraphs = paragraphs.select(np.sort(lowest))
    size = max(1, settings.shard_tokens // paragraphs.tokens.shape[1])
    starts = range(0, len(paragraphs), size)

    def size_of(number: int) -> int:
        return min(size, len(paragraphs) - starts[number])

    def blocks(number: int) -> Iterator[Paragraphs]:
        yield paragraphs.select(starts[number] + np.arange(size_of(number)))

    account = {"rows": rows, "not_sampled": rows - len(paragraphs), "kept": len(paragraphs)}
    return ScanRows(len(starts), len(paragraphs), account, size_of, blocks)
