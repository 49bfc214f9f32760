"""A source becomes token shards: nothing lost, nothing twice, the same after a kill."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets.exceptions import DatasetNotFoundError
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from mechmem.data import tokenizing
from mechmem.data.corpora import open_corpus, read_corpus
from mechmem.data.errors import InputError
from mechmem.data.fingerprint import fingerprint
from mechmem.data.inputs import list_inputs
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.records import Tally
from mechmem.data.shards import Corpus

TEXTS = ["".join(f"{word} {number} of {number * 7 % 31}, " for number in range(120)) for word in ("alpha", "beta")]
SHORT = [f"document {number} of few words, " * (number % 5 + 1) for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, 300, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)


def jsonl(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def contents(corpus: Corpus) -> list[tuple[int, str, list[int]]]:
    """(number, source, ids) of every document."""
    found = []
    for index in range(len(corpus)):
        shard = corpus.shard(index)
        assert shard.starts[0] == 0 and shard.starts[-1] == len(shard.tokens)
        for number, source, start, stop in zip(
            shard.numbers.tolist(), shard.sources.tolist(), shard.starts[:-1], shard.starts[1:], strict=True
        ):
            found.append((number, source, shard.tokens[start:stop].tolist()))
    return found


def adds_up(corpus: Corpus) -> dict[str, Any]:
    for account in (*corpus.manifest["files"], corpus.manifest["total"]):
        assert account["records"] == account["documents"] + sum(account["skipped"].values())
    return corpus.manifest["total"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four inputs in two folders, a file of another kind, and a broken line."""
    source = tmp_path / "source"
    (source / "b").mkdir(parents=True)
    jsonl(source / "a.jsonl", [{"text": text, "source": f"s{len(text) % 3}"} for text in SHORT[:20]])
    (source / "b" / "c.jsonl").write_text(json.dumps({"text": SHORT[20]}) + "\n{broken\n")
    (source / "b" / "d.txt").write_text(SHORT[21])
    np.save(source / "e.npy", np.arange(70, dtype=np.int32).reshape(7, 10))
    (source / "LICENSE").write_text("left out")
    return source


def truth(tokenizer) -> list[tuple[int, str, list[int]]]:
    rows = [(f"s{len(text) % 3}", text) for text in SHORT[:20]] + [("c.jsonl", SHORT[20]), ("d.txt", SHORT[21])]
    documents = [(source, tokenizer(text)["input_ids"]) for source, text in rows]
    documents += [("e.npy", list(range(start, start + 10))) for start in range(0, 70, 10)]
    return [(number, *document) for number, document in enumerate(documents)]


@pytest.mark.parametrize("shard_tokens", [1, 25, 64, 10**6])
def test_shards_hold_every_document_once_in_order(tmp_path, folder, tokenizer, shard_tokens):
    corpus = open_corpus(folder, tokenizer, tmp_path / "c", shard_tokens=shard_tokens)
    assert contents(corpus) == truth(tokenizer)
    total = adds_up(corpus)
    assert total["skipped"] == {"bad JSON": 1} and total["documents"] == 29 and total["records"] == 30
    assert corpus.tokens == total["tokens"] == sum(len(ids) for *_, ids in truth(tokenizer))
    assert (len(corpus) > 10) == (shard_tokens < 100)
    assert json.loads((tmp_path / "c" / "manifest.json").read_text()) == corpus.manifest
    exact = open_corpus(folder, tokenizer, tmp_path / "exact", shard_tokens=len(truth(tokenizer)[0][2]))
    assert len(exact.shard(0)) == 1  # a shard that is just full is closed
    assert "c.jsonl:2: bad JSON" in corpus.manifest["files"][1]["examples"][0]


def test_a_killed_reader_goes_on_and_ends_with_the_same_shards(tmp_path, folder, tokenizer, monkeypatch):
    whole = open_corpus(folder, tokenizer, tmp_path / "whole", shard_tokens=30)
    save, calls = tokenizing.save_shard, []

    def killed(path, *rest):
        calls.append(path)
        if len(calls) == int(len(whole) * 0.7):
            raise KeyboardInterrupt
        save(path, *rest)

    monkeypatch.setattr(tokenizing, "save_shard", killed)
    while True:  # each time some shards further
        before = len(calls)
        try:
            corpus = open_corpus(folder, tokenizer, tmp_path / "c", shard_tokens=30)
            break
        except KeyboardInterrupt:
            assert len(calls) > before
    assert contents(corpus) == contents(whole) and corpus.digest == whole.digest
    written = {file.name: file.read_bytes() for file in (tmp_path / "whole" / "shards").iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "c" / "shards").iterdir()} == written
    # What was done is not done again: now nothing is.
    before = len(calls)
    assert open_corpus(folder, tokenizer, tmp_path / "c", shard_tokens=30).digest == whole.digest
    assert len(calls) == before


def test_an_input_that_changed_or_another_setting_is_refused(tmp_path, folder, tokenizer):
    open_corpus(folder, tokenizer, tmp_path / "c")
    with pytest.raises(InputError, match="other settings .shard_tokens was 1000000, now 10.; choose another folder"):
        open_corpus(folder, tokenizer, tmp_path / "c", shard_tokens=10)
    other = ByteLevelBPETokenizer()
    other.train_from_iterator(TEXTS, 290, show_progress=False)
    with pytest.raises(InputError, match="other settings .tokenizer was .* choose another folder"):
        open_corpus(folder, PreTrainedTokenizerFast(tokenizer_object=other._tokenizer), tmp_path / "c")
    with pytest.raises(InputError, match=r"c\.jsonl:2: bad JSON .*; need only records"):
        open_corpus(folder, tokenizer, tmp_path / "c", strict=True)
    with (folder / "a.jsonl").open("a") as handle:
        handle.write('{"text": "more"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl: changed since .*c was begun"):
        open_corpus(folder, tokenizer, tmp_path / "c")
    (folder / "b" / "d.txt").unlink()
    with pytest.raises(InputError, match="was begun with 4 inputs, now 3"):
        open_corpus(folder, tokenizer, tmp_path / "c")


def test_an_input_that_grows_while_it_is_read_is_refused(tmp_path, tokenizer, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", [{"text": SHORT[0]}])
    save = tokenizing.save_shard

    def grow(*arguments):
        path.write_text(path.read_text() * 2)
        save(*arguments)

    monkeypatch.setattr(tokenizing, "save_shard", grow)
    with pytest.raises(InputError, match=r"a\.jsonl: changed since"):
        open_corpus(path, tokenizer, tmp_path / "c")


def test_strict_names_the_line(tmp_path, folder, tokenizer):
    with pytest.raises(InputError, match=r"c\.jsonl:2: bad JSON"):
        open_corpus(folder, tokenizer, tmp_path / "c", strict=True)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32, np.int64])
def test_ids_are_not_copied_and_need_no_tokenizer(tmp_path, dtype):
    ids = np.random.default_rng(0).integers(0, 60_000 if dtype == np.uint16 else 70_000, (23, 11)).astype(dtype)
    np.save(tmp_path / "ids.npy", ids)
    corpus = open_corpus(tmp_path / "ids.npy", None, tmp_path / "c", shard_tokens=50)
    assert [row for *_, row in contents(corpus)] == ids.tolist()
    assert len(corpus) == 6 and not list((tmp_path / "c" / "shards").iterdir())
    base: Any = corpus.shard(1).tokens
    while not isinstance(base, np.memmap):
        base = base.base
    assert base.dtype == dtype


def test_a_large_vocabulary_gets_more_bits(tmp_path, tokenizer):
    class Wide:
        def __call__(self, texts, **_):
            return {"input_ids": [[70_000, len(text)] for text in texts]}

        def get_vocab(self):
            return {"a": 70_000}

    path = jsonl(tmp_path / "a.jsonl", [{"text": "abc"}])
    assert contents(open_corpus(path, Wide(), tmp_path / "c")) == [(0, "a.jsonl", [70_000, 3])]
    assert open_corpus(path, tokenizer, tmp_path / "d").shard(0).tokens.dtype == np.uint16


def test_datasets_are_read_from_disk_and_streamed_from_the_hub_part_by_part(tmp_path, tokenizer, monkeypatch):
    rows = datasets.Dataset.from_dict({"body": SHORT[:12], "source": ["h"] * 12})
    documents = [(number, "h", tokenizer(text)["input_ids"]) for number, text in enumerate(SHORT[:12])]
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "dict")
    assert contents(open_corpus(tmp_path / "one", tokenizer, tmp_path / "c", column="body")) == documents
    from_dict = open_corpus(tmp_path / "dict", tokenizer, tmp_path / "d", column="body", split="test")
    assert contents(from_dict) == documents
    with pytest.raises(InputError, match=r"got split 'train'; need one of test"):
        open_corpus(tmp_path / "dict", tokenizer, tmp_path / "e", column="body")

    def load(name, *, split, streaming):
        if (name, split, streaming) != ("owner/name", "train", True):
            raise DatasetNotFoundError(name)
        return rows.to_iterable_dataset(num_shards=5)

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = open_corpus("owner/name", tokenizer, tmp_path / "f", column="body")
    assert contents(hub) == documents and len(hub.manifest["files"]) == 5
    with pytest.raises(InputError, match="owner/other: no such path, and no dataset of this name could be opened"):
        open_corpus("owner/other", tokenizer, tmp_path / "g")


def test_progress_ends_with_all_bytes(tmp_path, folder, tokenizer):
    seen: list[tuple[int, int]] = []
    open_corpus(folder, tokenizer, tmp_path / "c", progress=lambda done, total: seen.append((done, total)))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) - len("left out")
    assert seen == sorted(seen) and seen[-1] == (size, size)


def test_sources_that_are_no_corpus_are_refused(tmp_path, tokenizer):
    def refused(sentence: str, source: object, tokens: Any = tokenizer, **options: Any) -> None:
        with pytest.raises(InputError, match=sentence):
            open_corpus(str(source), tokens, tmp_path / "c" / str(len(list(tmp_path.glob("c/*")))), **options)

    refused("none.txt: no such file or folder; need a corpus as .jsonl", tmp_path / "none.txt")
    (tmp_path / "x.doc").write_text("text")
    refused("x.doc: need a corpus as .jsonl, .* convert the file", tmp_path / "x.doc")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x.doc").write_text("text")
    refused("x: no file of 1 in this folder is one of", tmp_path / "x")
    path = jsonl(tmp_path / "x" / "a.jsonl", [{"text": "a"}])
    refused("a.jsonl: got text for a model without a tokenizer; give token ids", path, None)
    refused("got 0 as shard_tokens; need a whole number of at least 1", path, shard_tokens=0)
    with pytest.raises(InputError, match="is inside the source"):
        open_corpus(tmp_path / "x", tokenizer, tmp_path / "x" / "c")
    refused("got 1 records, skipped 1, the first .*a.jsonl:1: no text.*; need at least 1 document", path, column="body")
    path.write_text("")
    refused("got 0 records, skipped 0; need at least 1 document", path)


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        (np.zeros((2, 3)), r"got float64 of shape \[2, 3\]; need ids \[sequence, pos\] as uint16"),
        (np.zeros(5, dtype=np.int32), r"got int32 of shape \[5\]; need ids"),
        (np.array([[1], [1, 2]], dtype=object), "rows of unequal length .*; need ids"),
        (np.array([[1, 2], [3, -1]]), "got the token id -1 in rows 0 to 1; ids start at 0"),
        (np.zeros((0, 5), dtype=np.int32), "got 0 records"),
    ],
)
def test_arrays_that_are_no_ids_are_refused(tmp_path, ids, sentence):
    np.save(tmp_path / "a.npy", ids, allow_pickle=True)
    with pytest.raises(InputError, match=sentence):
        open_corpus(tmp_path / "a.npy", None, tmp_path / "c")


def test_a_cut_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((9, 9), dtype=np.int32))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-5])
    with pytest.raises(InputError, match=r"a\.npy: not an array of numbers"):
        open_corpus(tmp_path / "a.npy", None, tmp_path / "c")


def test_read_jsonl_gives_windows_of_every_document_with_counts_and_sources(tmp_path, tokenizer):
    records = [{"text": text, "meta": {"pile_set_name": "Books"}} for text in (*TEXTS, TEXTS[0])]
    paragraphs = read_corpus(jsonl(tmp_path / "c.jsonl", records), tokenizer)
    expected = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        expected += [ids[start : start + 100] for start in range(0, len(ids) - 99, 100)]
    assert paragraphs.tokens.tolist() == expected
    assert paragraphs.table is not None
    assert paragraphs.table.column_names == ["id", "source", "count", "cluster", "text"]
    assert set(paragraphs.column("source")) == {"Books"}
    half = sum(ids in expected for ids in expected[: len(expected) // 2])
    assert paragraphs.column("count").tolist()[:half] == [2] * half
    assert paragraphs.column("text")[0] == tokenizer.decode(expected[0])
    assert paragraphs.tokenizer == fingerprint(tokenizer)


def test_a_limit_draws_from_the_whole_text_and_counts_speak_of_all_of_it(tmp_path, tokenizer):
    path = jsonl(tmp_path / "c.jsonl", [{"text": text} for text in (*TEXTS, TEXTS[0])])
    whole = read_corpus(path, tokenizer)
    count = dict(zip(whole.column("id").tolist(), whole.column("count").tolist(), strict=True))
    drawn = set()
    for seed in range(12):
        part = read_corpus(path, tokenizer, limit=3, seed=seed)
        ids = part.column("id").tolist()
        assert len(ids) == 3 and ids == sorted(ids) and [count[i] for i in ids] == part.column("count").tolist()
        assert torch.equal(part.tokens, whole.select(np.isin(whole.column("id"), ids)).tokens)
        drawn |= set(ids)
    assert len(drawn) > 6


def test_the_same_text_as_txt_and_parquet_gives_the_same_paragraphs(tmp_path, tokenizer):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "c.txt").write_text(TEXTS[0])
    pq.write_table(pa.table({"text": [TEXTS[0]]}), tmp_path / "c.parquet")
    rows = [read_corpus(tmp_path / name, tokenizer).tokens for name in ("c.txt", "c.parquet")]
    assert torch.equal(*rows)


def test_token_files_keep_their_columns_and_gain_the_missing_ones(tmp_path, tokenizer):
    rows = torch.randint(0, 200, (3, 100), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "c.npy", rows.numpy())
    Paragraphs(rows, 50).with_columns(id=[7, 8, 9], cluster=[0, 0, 1]).save(tmp_path / "c.parquet")
    from_npy = read_corpus(tmp_path / "c.npy", None)
    assert from_npy.tokenizer is None
    assert from_npy.column("id").tolist() == Paragraphs(rows, 50).ids.tolist() and from_npy.column(
        "cluster"
    ).tolist() == [0, 1, 2]
    from_parquet = read_corpus(tmp_path / "c.parquet", tokenizer, limit=2)
    assert from_parquet.column("id").tolist() == [7, 8] and from_parquet.column("cluster").tolist() == [0, 0]


def test_read_refuses_bad_corpora(tmp_path, tokenizer):
    with pytest.raises(InputError, match="none.jsonl: no such file"):
        read_corpus(tmp_path / "none.jsonl", tokenizer)
    with pytest.raises(InputError, match="got 1 documents, none of 100 tokens"):
        read_corpus(jsonl(tmp_path / "short.jsonl", [{"text": "short"}]), tokenizer)
    with pytest.raises(InputError, match="a model without a tokenizer; give token ids"):
        read_corpus(jsonl(tmp_path / "text.jsonl", [{"text": "x"}]), None)
    np.save(tmp_path / "empty.npy", np.zeros((0, 100), dtype=np.int32))
    with pytest.raises(InputError, match="got 0 paragraphs of 100 tokens"):
        read_corpus(tmp_path / "empty.npy", None)


@pytest.mark.parametrize(
    "damage", [{"tokens": "x"}, {"records": 7}, {"skipped": {"no text": "x"}}, {"shards": [[0, "1"]]}]
)
def test_a_damaged_account_is_refused_with_what_to_do(tokenizer, tmp_path, damage):
    source, folder = tmp_path / "a.txt", tmp_path / "corpus"
    source.write_text("the boat left the harbour " * 20)
    open_corpus(source, tokenizer, folder)
    account = folder / "accounts" / "000000.json"
    account.write_text(json.dumps(json.loads(account.read_text()) | damage))
    with pytest.raises(InputError, match=r"000000\.json.*remove .* and run the same command again"):
        open_corpus(source, tokenizer, folder)


def test_a_saved_dataset_whose_offsets_lead_outside_is_not_followed(tmp_path):
    datasets.Dataset.from_dict({"text": ["the boat left", "the harbour"]}).save_to_disk(tmp_path / "saved")
    file = next((tmp_path / "saved").glob("*.arrow"))
    offsets = np.array([0, 13, 24], dtype=np.int32).tobytes()
    assert file.read_bytes().count(offsets) == 1
    file.write_bytes(file.read_bytes().replace(offsets, np.array([0, 13, 2**30], dtype=np.int32).tobytes()))
    tally = Tally()
    (found,) = list_inputs(tmp_path / "saved")
    assert list(found.records(tally, "text")) == [] and tally.skipped == {"broken file": 1}
