"""A user's text or token file -> paragraphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch

from mechmem.data.counts import cluster, occurrences
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs

BUILDERS = {".txt": "text", ".jsonl": "json", ".jsonl.zst": "json", ".parquet": "parquet"}
LENGTH, PREFIX_LEN, STRIDE = 100, 50, 100


def read_corpus(path: str | Path, tokenizer: Any, *, limit: int | None = None) -> Paragraphs:
    """Read paragraphs of 100 tokens, 50 of them prefix, with the columns `id, source, count, cluster, text`.

    Token files (`.npy`, or `.parquet` with a column `tokens`) are taken as they are and keep their own columns. Text
    files (`.txt`, `.jsonl` and `.jsonl.zst` with a field `text`, `.parquet` with a column `text`) are cut into windows
    at stride 100 from the start of each document; documents shorter than 100 tokens give none, and of equal windows
    one stays. There, `count` is the number of times the window stands in the documents that were read, at any offset.
    Rows that share 25 tokens in a run are one `cluster`.

    Args:
        path: the file.
        tokenizer: the model's, or None, which token files do without.
        limit: read no more than this many paragraphs.

    Raises:
        InputError: no such file, an unknown suffix, no tokenizer for text, a missing field, or no paragraph in it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; wanted a corpus as {', '.join(BUILDERS)} or .npy")
    if path.suffix == ".npy" or (path.suffix == ".parquet" and "tokens" in pq.read_schema(path).names):
        paragraphs = Paragraphs.load(path)
        if limit is not None:
            paragraphs = paragraphs.select(np.arange(min(limit, len(paragraphs))))
    else:
        paragraphs = _from_text(path, tokenizer, limit)
    if len(paragraphs) == 0:
        raise InputError(f"{path}: holds no paragraph of {LENGTH} tokens; give longer documents")
    return _complete(paragraphs, tokenizer)


def _complete(paragraphs: Paragraphs, tokenizer: Any) -> Paragraphs:
    """Add the columns that later stages read, where the file did not bring them."""
    known = [] if paragraphs.table is None else paragraphs.table.column_names
    columns: dict[str, Any] = {}
    if "id" not in known:
        columns["id"] = np.arange(len(paragraphs))
    if "cluster" not in known:
        columns["cluster"] = cluster(paragraphs, run=min(25, paragraphs.tokens.shape[1]))
    if "text" not in known:
        columns["text"] = [_text(row, tokenizer) for row in paragraphs.tokens.tolist()]
    return paragraphs.with_columns(**columns) if columns else paragraphs


def _text(ids: list[int], tokenizer: Any) -> str:
    return " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids)


def _from_text(path: Path, tokenizer: Any, limit: int | None) -> Paragraphs:
    if tokenizer is None:
        raise InputError(f"{path}: is text and the model has no tokenizer; give token ids (.npy) or add tokenizer.json")
    rows: dict[tuple[int, ...], str] = {}
    documents: list[list[int]] = []
    for text, source in _texts(path):
        # Read to the end of the document that fills the limit, so that counts speak of whole documents.
        if limit is not None and len(rows) >= limit:
            break
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        documents.append(tokens)
        for start in range(0, len(tokens) - LENGTH + 1, STRIDE):
            rows.setdefault(tuple(tokens[start : start + LENGTH]), source)
    if not rows:
        raise InputError(f"{path}: {len(documents)} documents came and none has {LENGTH} tokens; give longer documents")
    kept = list(rows)[:limit]
    paragraphs = Paragraphs(torch.tensor(kept), PREFIX_LEN)
    return paragraphs.with_columns(
        source=[rows[row] for row in kept], count=occurrences(paragraphs, documents, [1] * len(documents))
    )


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Documents and where they come from: the Pile's `meta.pile_set_name` if there, else the file's name."""
    suffix = next((known for known in sorted(BUILDERS, key=len, reverse=True) if path.name.endswith(known)), None)
    if suffix is None:
        raise InputError(f"{path}: wanted a corpus as {', '.join(BUILDERS)} or .npy; convert the file to one of them")
    options: dict[str, Any] = {"sample_by": "document"} if suffix == ".txt" else {}
    stream = datasets.load_dataset(BUILDERS[suffix], data_files=str(path), split="train", streaming=True, **options)
    for row in stream:
        if not isinstance(row.get("text"), str):
            raise InputError(f"{path}: a record has fields {sorted(row)}; wanted 'text', a string, in each")
        meta = row.get("meta") or {}
        yield row["text"], str(meta.get("pile_set_name") or path.name)
