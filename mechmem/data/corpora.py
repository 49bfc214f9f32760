"""A source of text or ids -> a corpus of token shards on disk, resumable input by input."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from mechmem.data.bounds import Count, Seed, checked
from mechmem.data.counts import cluster
from mechmem.data.errors import InputError
from mechmem.data.files import remove_partials, replacing
from mechmem.data.fingerprint import fingerprint
from mechmem.data.folder_lock import only_writer
from mechmem.data.inputs import Input, list_inputs
from mechmem.data.lengths import load_paragraphs, text_lengths
from mechmem.data.own_files import read_json
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.data.settings_match import refuse_other_settings
from mechmem.data.shards import Corpus
from mechmem.data.token_tables import holds_table
from mechmem.data.tokenizing import ReportingTally, input_account, refuse_changed, tokenizer_digest
from mechmem.data.windows import WindowSettings, index_windows

RUN = 25
FORMAT = 1


@checked
def open_corpus(
    source: str | Path,
    tokenizer: Any,
    folder: str | Path,
    *,
    strict: bool = False,
    column: str = "text",
    split: str = "train",
    shard_tokens: Count = 1_000_000,
    progress: ProgressLike = None,
) -> Corpus:
    """Tokenize a source into shards in `folder`, or open what is there already.

    1. The inputs, with size and modification time, and the settings are written down first, and compared when the
       folder is used again.
    2. Each input that is not done is tokenized, without special tokens, a batch of documents at a time. A shard is
       closed by the document that brings it to `shard_tokens`; documents are never cut. `.npy` inputs are not copied:
       their shards are ranges of rows, each row a document.
    3. An input's account is written after its last shard. After a kill, inputs that have one are not read again, and
       the others begin anew: the result is the same.

    Args:
        source: see `inputs.list_inputs`.
        tokenizer: the model's (a fast one of transformers); None will do for ids.
        folder: of the corpus; made if it is not there. One process at a time writes it, and others are refused.
        strict: raise at the first record that cannot be read, where otherwise it is accounted for and skipped.
        column: the field that holds the text.
        split: of a dataset.
        shard_tokens: tokens at which a shard is closed.
        progress: called with bytes read and bytes in all (parts of datasets count as 1).

    Raises:
        InputError: the source is missing or of an unknown kind, there is text and no tokenizer, ids are not integers in
            two axes or negative, nothing could be kept, an input or a setting changed since the folder was begun, or
            `strict` and a record that cannot be read.
    """
    folder = Path(folder)
    if Path(source).is_dir() and folder.resolve().is_relative_to(Path(source).resolve()):
        raise InputError(
            f"{folder}: is inside the source {source}, and would be read as a part of it; choose another folder"
        )
    inputs = list_inputs(source, split=split)
    text = next((entry for entry in inputs if not entry.is_ids), None)
    if text is not None and tokenizer is None:
        raise InputError(
            f"{text.name}: got text for a model without a tokenizer; give token ids (.npy), or add tokenizer.json"
        )
    settings = {"format": FORMAT, "column": column, "shard_tokens": shard_tokens, "tokenizer": None}
    if text is not None:
        settings["tokenizer"] = tokenizer_digest(tokenizer)
    with only_writer(folder):
        _agree_on_plan(folder, inputs, settings)
        accounts = []
        total, before, report = sum(entry.size for entry in inputs), 0, as_callback(progress, "reading the corpus")
        for number, entry in enumerate(inputs):
            tally = ReportingTally(strict, report, before, total)
            accounts.append(input_account(folder, number, entry, tokenizer, tally, column, shard_tokens))
            before += entry.size
            tally.report(entry.size)
        mark = None if text is None else fingerprint(tokenizer)
        manifest = {"source": str(source), "settings": settings, "tokenizer": mark, "files": accounts}
        manifest["total"] = _total(accounts)
        if not manifest["total"]["documents"]:
            raise InputError(f"{source}: {_what_was_read(accounts)}; need at least 1 document: give text")
        with replacing(folder / "manifest.json") as temporary:
            temporary.write_text(json.dumps(manifest, indent=1))
    return Corpus.of(folder, manifest)


def _agree_on_plan(folder: Path, inputs: list[Input], settings: dict[str, Any]) -> None:
    """Write down what is to be read, or compare it with what was written down."""
    path = folder / "plan.json"
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    (folder / "accounts").mkdir(exist_ok=True)
    for part in (folder, folder / "shards", folder / "accounts"):
        remove_partials(part)
    now = [entry.identity() for entry in inputs]
    if not path.is_file():
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"settings": settings, "inputs": now}))
        return
    plan = read_json(path, {"settings": dict, "inputs": list})
    refuse_other_settings(folder, plan["settings"], settings, advice="choose another folder, or remove this one")
    if len(plan["inputs"]) != len(now):
        raise InputError(
            f"{folder}: was begun with {len(plan['inputs'])} inputs, now {len(now)}; need the same: choose another "
            "folder, or remove this one"
        )
    for was, entry in zip(plan["inputs"], inputs, strict=True):
        refuse_changed(was, entry, folder)


def _total(accounts: list[dict[str, Any]]) -> dict[str, Any]:
    skipped: Counter[str] = Counter()
    for account in accounts:
        skipped.update(account["skipped"])
    total = {name: sum(account[name] for account in accounts) for name in ("records", "documents", "tokens")}
    assert total["records"] == total["documents"] + sum(skipped.values())
    left_out = {each["path"]: each["examples"][0] for each in accounts if each["skipped"] and not each["documents"]}
    return {**total, "skipped": dict(skipped), "left_out": left_out}


def left_out_sentence(left_out: dict[str, str]) -> str:
    """Files of which nothing could be read, as a corpus' manifest has them: path -> what was skipped first."""
    reasons = "; ".join(left_out.values())
    return f"nothing was read from {len(left_out)} of the files: {reasons}. Mend them, or stop there with strict"


def _what_was_read(accounts: list[dict[str, Any]]) -> str:
    total = _total(accounts)
    examples = [example for account in accounts for example in account["examples"]][:1]
    first = f", the first {examples[0]}" if examples else ""
    return f"got {total['records']} records, skipped {sum(total['skipped'].values())}{first}"


@checked
def read_corpus(
    source: str | Path,
    tokenizer: Any,
    *,
    prefix_len: Count | None = None,
    continuation_len: Count | None = None,
    limit: Count | None = None,
    seed: Seed = 0,
) -> Paragraphs:
    """Read paragraphs, such as 50 tokens of prefix and 50 to continue, into memory: `id, source, count, cluster, text`.

    Token files (`.npy`, or `.parquet` with a column `tokens`, also a folder of such parts) are taken as they are and
    keep their own columns. Text is cut into windows, one after the other from the start of each document; shorter
    documents give none, and of equal windows one stays. There, `count` is the number of times the window occurs
    in the whole source, at any offset, and `id` its number among all that were cut. Rows that share 25 tokens in a run
    are one `cluster`. `open_corpus` and `index_windows` are the same for what memory does not hold.

    Args:
        source: a file, folder or dataset; see `inputs.list_inputs`.
        tokenizer: the model's, or None, which token files do without.
        prefix_len: tokens that are given; None: what a parquet of paragraphs says, or else 50.
        continuation_len: tokens to continue; None: the rest of a token file's rows, or 50 of text.
        limit: no more paragraphs than this: the first of a token file, a random sample of a text's.
        seed: chooses the sample.

    Raises:
        InputError: whatever `open_corpus` and `index_windows` refuse, paragraphs of other lengths than is asked for, or
            no paragraph in it.
    """
    path = Path(source)
    if holds_table(path) or (path.suffix == ".npy" and path.is_file()):
        paragraphs = load_paragraphs(path, prefix_len=prefix_len, continuation_len=continuation_len)
        if limit is not None:
            paragraphs = paragraphs.select(np.arange(min(limit, len(paragraphs))))
    else:
        given, continued = text_lengths(prefix_len, continuation_len)
        length = given + continued
        settings = WindowSettings(length=length, prefix_len=given, stride=length, limit=limit, seed=seed)
        paragraphs = _from_text(source, tokenizer, settings)
    if len(paragraphs) == 0:
        length = paragraphs.tokens.shape[1]
        raise InputError(f"{path}: got 0 paragraphs of {length} tokens; need at least 1: give longer documents")
    return _complete(paragraphs, tokenizer)


def _from_text(source: str | Path, tokenizer: Any, settings: WindowSettings) -> Paragraphs:
    with tempfile.TemporaryDirectory(prefix="mechmem-") as folder:
        corpus = open_corpus(source, tokenizer, Path(folder) / "corpus")
        if left_out := corpus.manifest["total"]["left_out"]:
            warnings.warn(left_out_sentence(left_out), stacklevel=3)
        index = index_windows(corpus, settings, Path(folder) / "index")
        parts = [index.paragraphs(number) for number in range(len(corpus))]
    tables = [part.table for part in parts if part.table is not None and len(part)]
    columns = datasets.concatenate_datasets(tables).select_columns(["id", "source", "count"])
    return Paragraphs(torch.cat([part.tokens for part in parts]), settings.prefix_len, columns, corpus.tokenizer)


def _complete(paragraphs: Paragraphs, tokenizer: Any) -> Paragraphs:
    """Add the columns that later stages read, where the file did not bring them."""
    columns: dict[str, Any] = {}
    if not paragraphs.has("id"):
        columns["id"] = paragraphs.ids
    if not paragraphs.has("cluster"):
        columns["cluster"] = cluster(paragraphs, run=min(RUN, paragraphs.tokens.shape[1]))
    if not paragraphs.has("text"):
        columns["text"] = [_text(row, tokenizer) for row in paragraphs.tokens.tolist()]
    return paragraphs.with_columns(**columns) if columns else paragraphs


def _text(ids: list[int], tokenizer: Any) -> str:
    return " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids)
