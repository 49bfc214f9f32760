"""One part of a scan: scored, and written with its account beside it."""

from __future__ import annotations

import json
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from mechmem.data.decoding import decoded
from mechmem.data.files import replacing
from mechmem.data.own_files import read_json
from mechmem.data.paragraph_files import metadata
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.data.shards import Documents
from mechmem.measure.decode import edit_distances, greedy_continuations
from mechmem.measure.exact import ExactScorer
from mechmem.measure.tolerance import CALIBRATION
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer, load_model
from mechmem.scan.scan_rows import DocumentRows, ScanRows, reopen_rows
from mechmem.scan.scan_settings import ScanSettings
from mechmem.scan.spans import find_spans
from mechmem.scan.strides import missed_by_stride


class PartScorer:
    """Scores the parts of a scan into a folder; any number of these may share the work.

    A part is done when its account `NNNNNN.json` is there, which is written after its rows `NNNNNN.parquet`. What
    a part's rows are does not depend on who scores it, nor on which others are done.
    """

    def __init__(
        self, settings: ScanSettings, folder: Path, *, device: str | None = None, model: HookedTransformer | None = None
    ):
        self._settings, self._folder = settings, folder
        self._model = load_model(settings.model, processing="raw", device=device) if model is None else model

    @cached_property
    def _rows(self) -> ScanRows | DocumentRows:
        return reopen_rows(self._settings, self._model, self._folder)

    @cached_property
    def _scorer(self) -> ExactScorer:
        settings = self._settings
        return ExactScorer(
            self._model,
            self._rows.first(CALIBRATION),  # whichever process scores
            method=settings.method,
            precision=settings.precision,
            batch_size=settings.batch_size,
        )

    def score(self, number: int, progress: Progress | None = None) -> dict[str, Any]:
        """Score one part unless it is done; -> its account.

        Args:
            number: of the part.
            progress: called with (done, of the part), in paragraphs or in document mode tokens.

        Raises:
            InputError: ids that the model does not know.
        """
        done = account_path(self._folder, number)
        if done.is_file():
            return read_json(done, {"size": int, "settled": dict, "tolerance": dict})
        before, rows = dict(self._scorer.settled), self._rows
        with replacing(rows_path(self._folder, number)) as temporary, closing(RowsFile(temporary)) as file:
            if isinstance(rows, ScanRows):
                account = self._windows(rows, number, file, progress)
            else:
                account = self._spans(rows.corpus.shard(number), rows.corpus.tokenizer, file, progress)
        account |= {
            "size": rows.size(number),
            "settled": {name: count - before[name] for name, count in self._scorer.settled.items()},
            "tolerance": self._scorer.tolerance,
        }
        with replacing(done) as temporary:
            temporary.write_text(json.dumps(account))
        return account

    def _windows(self, rows: ScanRows, number: int, file: RowsFile, progress: Progress | None) -> dict[str, Any]:
        """Write a part's scored paragraphs, a block at a time; -> how many have each EM."""
        found, done = np.zeros(0, dtype=np.int64), 0
        for block in rows.blocks(number):
            further = None if progress is None else partial(_further, progress, done, rows.size(number))
            table, em = self._scored(block, further)
            file.write(table)
            found, done = em + (found if len(found) else 0), done + len(block)
        return {"em": found.tolist()}

    def _scored(
        self, paragraphs: Paragraphs, progress: Progress | None
    ) -> tuple[pa.Table, Int[np.ndarray, " matches"]]:
        """The rows to write, and how many paragraphs have each EM."""
        scorer = self._scorer
        if len(paragraphs):
            check_fit(self._model, paragraphs)
        scores = scorer.score(paragraphs, progress)
        columns: dict[str, Any] = {"em": scores.em, "nll": scores.nll, "match_fraction": scores.match_fraction}
        keep = scores.em >= self._settings.min_em
        if self._settings.edit_distance:
            distance = np.full(len(paragraphs), np.nan)
            # Where the cascade stopped nothing more is paid for; what is memorized says the true text.
            rows = np.flatnonzero(keep & ~np.isnan(scores.nll))
            chosen = paragraphs.select(rows)
            said = greedy_continuations(
                scorer.lean, chosen.tokens, chosen.prefix_len, scores.em[rows], scores.rival[rows]
            )
            distance[rows] = edit_distances(said, chosen.continuation.numpy())
            columns["edit_distance"] = distance
        written = paragraphs.with_columns(**columns).select(keep)
        table, tokenizer = written.arrow(), self._model.tokenizer
        if tokenizer is not None:
            table = _with_text(table, decoded(tokenizer, written.tokens))
        return table, np.bincount(scores.em, minlength=paragraphs.continuation_len + 1)

    def _spans(
        self, documents: Documents, tokenizer_mark: str | None, file: RowsFile, progress: Progress | None
    ) -> dict[str, Any]:
        """Write the spans of a part's documents; -> what was found, and what windows at a stride miss of it."""
        settings = self._settings.spans
        assert settings is not None
        spans, found = find_spans(self._scorer, documents, settings, progress)
        tokenizer = self._model.tokenizer
        if tokenizer is not None:
            reproduced = [ids[settings.prefix_len :] for ids in spans["tokens"].to_pylist()]
            spans = spans.append_column("text", pa.array(decoded(tokenizer, reproduced), pa.string()))
        length = settings.continuation_len
        # Scans of windows are what document mode is compared with: one after the other, or so that continuations touch.
        strides = sorted({length, settings.prefix_len + length})
        missed = {f"stride {each}": missed_by_stride(spans, each, continuation_len=length) for each in strides}
        file.write(spans.replace_schema_metadata(metadata(settings.prefix_len, tokenizer_mark)))
        return {"found": found, "missed": missed}


class RowsFile:
    """A parquet file that is written table by table; the first one's columns and types hold for all."""

    def __init__(self, path: Path):
        self._path, self._writer = path, None

    def write(self, table: pa.Table) -> None:
        """Append rows, perhaps none."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()


def _further(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    """Report the progress of a block of a part as that of the part."""
    progress(before + done, total)


def _with_text(table: pa.Table, texts: list[str]) -> pa.Table:
    """A table with the column `text`, before `tokens` as `Paragraphs.save` has it; the type holds for no rows, too."""
    column = pa.array(texts, pa.string())
    if "text" in table.column_names:
        return table.set_column(table.column_names.index("text"), "text", column)
    return table.add_column(table.column_names.index("tokens"), "text", column)


def rows_path(folder: Path, number: int) -> Path:
    """Where a part's rows lie."""
    return folder / "parts" / f"{number:06d}.parquet"


def account_path(folder: Path, number: int) -> Path:
    """Where a part's account lies: written last."""
    return folder / "parts" / f"{number:06d}.json"
