"""One input of a corpus -> its shards and its account."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.data.inputs import Input, file_input, open_ids
from mechmem.data.long_texts import encoded, is_long
from mechmem.data.own_files import own_file, read_json
from mechmem.data.progress import Progress
from mechmem.data.records import Record, Tally
from mechmem.data.shards import save_shard, shard_path
from mechmem.data.stored_json import check_types

BATCH_CHARACTERS = 2**20
BATCH_DOCUMENTS = 1000
ACCOUNT: dict[str, type | tuple[type, ...]] = {"path": str, "skipped": dict, "examples": list, "shards": list}
ACCOUNT |= {"ids": bool, "records": int, "documents": int, "tokens": int}


def tokenizer_digest(tokenizer: Any) -> str:
    """Changes whenever the tokenizer's vocabulary or rules do."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class ReportingTally(Tally):
    """A tally that tells the progress callback when its position moves."""

    def __init__(self, strict: bool, progress: Progress | None, before: int, total: int) -> None:
        """Begin an input that has `before` bytes of `total` ahead of it."""
        super().__init__(strict)
        self._progress, self._before, self._total = progress, before, total

    def report(self, position: int) -> None:
        """Say that `position` bytes of this input are done."""
        if self._progress is not None:
            self._progress(self._before + position, self._total)


def input_account(
    folder: Path, number: int, entry: Input, tokenizer: Any, tally: ReportingTally, column: str, shard_tokens: int
) -> dict[str, Any]:
    """One input's account as JSON, after doing the work if it is not done.

    Raises:
        InputError: the input cannot be used or changes while it is read, or the tally is strict and a record was
            skipped, now or when the account was written.
    """
    path = folder / "accounts" / f"{number:06d}.json"
    if path.is_file():
        account = _stored_account(path)
        if tally.strict and account["skipped"]:
            raise InputError(f"{account['examples'][0]}; need only records that can be read: mend it, or drop strict")
        return account
    if entry.is_ids:
        shards, tokens, highest = _id_shards(Path(entry.name), shard_tokens)
        tally.records = shards[-1][1] if shards else 0
    else:
        highest = max(tokenizer.get_vocab().values(), default=0)
        shards, tokens = _tokenize(folder, number, entry.records(tally, column), tokenizer, tally, shard_tokens)
    if entry.rows is None:
        refuse_changed(entry.identity(), file_input(Path(entry.name)), folder)
    documents = shards[-1][1] if shards else 0
    assert tally.records == documents + sum(tally.skipped.values())
    account = {**entry.identity(), "ids": entry.is_ids, "records": tally.records, "documents": documents}
    account |= {"skipped": tally.skipped, "examples": tally.examples, "tokens": tokens}
    account["highest_id"] = highest
    account["shards"] = [list(shard) for shard in shards]  # as JSON will give them back
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(account))
    return account


def _stored_account(path: Path) -> dict[str, Any]:
    with own_file(path):
        account = read_json(path)
        check_types(account, ACCOUNT, path, advice=f"remove {path.parent} and run the same command again")
        if account["records"] != account["documents"] + sum(account["skipped"].values()):
            raise ValueError("its counts do not add up")
        ends = [0, *(int(last) for _, last in account["shards"])]
        if [[first, last] for first, last in zip(ends, ends[1:], strict=False)] != account["shards"]:
            raise ValueError("its shards do not follow each other")
    return account


def _tokenize(
    folder: Path, number: int, records: Iterator[Record], tokenizer: Any, tally: ReportingTally, shard_tokens: int
) -> tuple[list[tuple[int, int]], int]:
    """Write an input's shards; return each one's first document and the next one's, and how many tokens there are."""
    dtype = np.uint16 if max(tokenizer.get_vocab().values(), default=0) < 2**16 else np.uint32
    shards: list[tuple[int, int]] = []
    documents: list[np.ndarray] = []
    sources: list[str] = []
    held = total = 0

    def close() -> None:
        first = shards[-1][1] if shards else 0
        save_shard(shard_path(folder, number, len(shards)), documents, sources)
        shards.append((first, first + len(documents)))

    for batch in _batches(records):
        for source, ids in zip([record.source for record in batch], _encoded(tokenizer, batch, dtype), strict=True):
            documents.append(ids)
            sources.append(source)
            held += len(ids)
            if held >= shard_tokens:
                close()
                total += held
                documents, sources, held = [], [], 0
        tally.report(tally.position)
    if documents:
        close()
    return shards, total + held


def _encoded(tokenizer: Any, batch: list[Record], dtype: type) -> list[np.ndarray]:
    if len(batch) == 1 and is_long(batch[0].text):
        return [encoded(tokenizer, batch[0].text, dtype)]
    texts = [record.text for record in batch]
    rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.asarray(ids, dtype=dtype) for ids in rows]


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Records that are encoded together; a long one is alone."""
    batch: list[Record] = []
    characters = 0
    for record in records:
        if is_long(record.text):
            if batch:
                yield batch
            yield [record]
            batch, characters = [], 0
            continue
        batch.append(record)
        characters += len(record.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _id_shards(path: Path, shard_tokens: int) -> tuple[list[tuple[int, int]], int, int]:
    """Cut an array of ids into ranges of rows and check every id once; the last number is the highest id."""
    ids = open_ids(path)
    step = max(1, shard_tokens // max(1, ids.shape[1]))
    shards = [(first, min(first + step, len(ids))) for first in range(0, len(ids), step)]
    highest = 0
    for first, last in shards:
        highest = max(highest, int(ids[first:last].max(initial=0)))
        lowest = int(ids[first:last].min(initial=0))
        if lowest < 0:
            raise InputError(
                f"{path}: got the token id {lowest} in rows {first} to {last - 1}; ids start at 0: remove padding first"
            )
    return shards, ids.size, highest


def refuse_changed(was: dict[str, Any], entry: Input, folder: Path) -> None:
    """Raise InputError if an input is not what it was when the folder was begun."""
    if was != entry.identity():
        raise InputError(
            f"{entry.name}: changed since {folder} was begun (was {was}, is {entry.identity()}); need the same "
            "input: choose another folder, or remove this one"
        )
