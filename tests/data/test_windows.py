"""Windows are cut, filtered, told apart, drawn and counted as a program that holds everything in memory does."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from mechmem.data import counts, distinct, files, windows
from mechmem.data.corpora import open_corpus
from mechmem.data.distinct import random_numbers
from mechmem.data.errors import InputError
from mechmem.data.shards import Corpus
from mechmem.data.windows import WindowIndex, WindowSettings, index_windows
from tests.data.memory_peak import lowest_peak

Row = tuple[int, int, int, str, int, tuple[int, ...]]


def slow_windows(documents: list[tuple[str, list[int]]], settings: WindowSettings, keyword_of: Any = None) -> list[Row]:
    """(id, document, offset, source, count, tokens) of every window that the settings keep, before sampling."""
    length = settings.length
    everywhere = Counter(
        tuple(ids[start : start + length]) for _, ids in documents for start in range(len(ids) - length + 1)
    )
    rows: list[Row] = []
    seen: set[tuple[int, ...]] = set()
    number = -1
    for document, (source, ids) in enumerate(documents):
        for start in range(0, len(ids) - length + 1, settings.stride):
            number += 1
            window = tuple(ids[start : start + length])
            if settings.min_distinct is not None and len(set(window)) < settings.min_distinct * length:
                continue
            if keyword_of is not None and any(word in keyword_of(window) for word in settings.keywords):
                continue
            if settings.deduplicate and window in seen:
                continue
            seen.add(window)
            rows.append((number, document, start, source, everywhere[window], window))
    return rows


def found(index: WindowIndex) -> list[Row]:
    rows: list[Row] = []
    for shard in range(len(index.corpus)):
        part = index.paragraphs(shard)
        assert part.prefix_len == index.settings.prefix_len
        columns = [part.column(name).tolist() for name in ("id", "document", "offset", "source", "count")]
        rows += zip(*columns, map(tuple, part.tokens.tolist()), strict=True)  # pyright: ignore
    assert len(rows) == index.total == index.manifest["kept"]
    manifest = index.manifest
    spent = sum(manifest["dropped"].values()) + manifest["duplicates"] + manifest["not_sampled"] + manifest["kept"]
    assert spent == manifest["windows"]
    return rows


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that every corpus needs several."""
    monkeypatch.setattr(windows, "BLOCK", 7)
    monkeypatch.setattr(counts, "BLOCK", 11)
    monkeypatch.setattr(distinct, "CHUNK", 13)
    monkeypatch.setattr(distinct, "PRESENT_BITS", 2)


@pytest.fixture
def documents() -> list[tuple[str, list[int]]]:
    """Ids of two kinds only, so that windows repeat at all offsets; lengths from 0 up."""
    rng = np.random.default_rng(0)
    return [(f"s{number % 3}", rng.integers(0, 2, rng.integers(0, 40)).tolist()) for number in range(60)]


class Given:
    """A tokenizer that reads ids out of the text."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    def get_vocab(self) -> dict[str, int]:
        return {"any": 60_000}

    def batch_decode(self, rows: list[list[int]], **_: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def corpus_of(documents: list[tuple[str, list[int]]], tmp_path: Path, *, shard_tokens: int = 90) -> Corpus:
    import json

    rows = [json.dumps({"text": " ".join(map(str, ids)) or " ", "source": source}) for source, ids in documents]
    (tmp_path / "d.jsonl").write_text("\n".join(rows))
    return open_corpus(tmp_path / "d.jsonl", Given(), tmp_path / "corpus", shard_tokens=shard_tokens)


@pytest.mark.parametrize("stride", [1, 3, 5, 8])
@pytest.mark.parametrize("deduplicate", [True, False])
@pytest.mark.usefixtures("small_blocks")
def test_windows_agree_with_a_dictionary(tmp_path, documents, stride, deduplicate):
    settings = WindowSettings(length=5, prefix_len=2, stride=stride, min_distinct=0.4, deduplicate=deduplicate)
    settings_text = WindowSettings(
        length=5, prefix_len=2, stride=stride, min_distinct=0.4, deduplicate=deduplicate, keywords=("1 0 0 1",)
    )
    corpus = corpus_of(documents, tmp_path)
    assert len(corpus) > 5
    index = index_windows(corpus, settings, tmp_path / "i")
    truth = slow_windows(documents, settings)
    assert found(index) == truth and max(row[4] for row in truth) > 3
    assert index.manifest["documents"] == 60
    assert index.manifest["documents_too_short"] == sum(len(ids) < 5 for _, ids in documents) > 0
    assert index.manifest["windows"] == len(slow_windows(documents, WindowSettings(5, 2, stride, deduplicate=False)))
    filtered = index_windows(corpus, settings_text, tmp_path / "j", Given())
    decode = lambda window: " ".join(map(str, window))  # noqa: E731
    assert found(filtered) == slow_windows(documents, settings_text, decode)
    assert filtered.manifest["dropped"]["keywords"] > 0 < filtered.manifest["dropped"]["min_distinct"]


def test_a_spill_to_disk_and_a_spill_in_memory_agree(tmp_path, documents, monkeypatch):
    settings = WindowSettings(length=5, prefix_len=2, stride=1)
    corpus = corpus_of(documents, tmp_path)
    in_memory = found(index_windows(corpus, settings, tmp_path / "i"))
    spill = distinct.Spill
    monkeypatch.setattr(distinct, "Spill", lambda folder: spill(folder, buckets=16, buffer=10))
    assert found(index_windows(corpus, settings, tmp_path / "j")) == in_memory


def test_a_window_does_not_cross_from_one_document_to_the_next(tmp_path):
    corpus = corpus_of(
        [("a", [1, 2, 3, 4]), ("a", [3, 4]), ("a", [1, 2]), ("a", [9, 1, 2, 3, 4, 1, 2, 3, 4])], tmp_path
    )
    index = index_windows(corpus, WindowSettings(length=4, prefix_len=2, stride=4), tmp_path / "i")
    assert [(row[5], row[4]) for row in found(index)] == [((1, 2, 3, 4), 3), ((9, 1, 2, 3), 1), ((4, 1, 2, 3), 1)]


@pytest.mark.usefixtures("small_blocks")
def test_one_document_longer_than_a_block_is_read_block_by_block(tmp_path):
    ids = np.random.default_rng(3).integers(0, 3, (1, 2000))
    np.save(tmp_path / "a.npy", ids)
    settings = WindowSettings(length=6, prefix_len=3, stride=4)
    index = index_windows(open_corpus(tmp_path / "a.npy", None, tmp_path / "c"), settings, tmp_path / "i")
    assert found(index) == slow_windows([("a.npy", ids[0].tolist())], settings)


@pytest.mark.usefixtures("small_blocks")
def test_a_sample_is_part_of_what_is_distinct_with_the_same_columns_in_the_same_order(tmp_path, documents):
    corpus = corpus_of(documents, tmp_path)
    truth = slow_windows(documents, WindowSettings(length=8, prefix_len=2, stride=2))
    assert len(truth) > 60
    for limit in (1, 20, len(truth) - 1, len(truth), 10**6):
        settings = WindowSettings(length=8, prefix_len=2, stride=2, limit=limit, seed=3)
        index = index_windows(corpus, settings, tmp_path / f"i{limit}")
        rows = found(index)
        assert len(rows) == min(limit, len(truth)) and rows == [row for row in truth if row in set(rows)]
        assert index.manifest["not_sampled"] == len(truth) - len(rows)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("deduplicate", [True, False])
def test_every_window_is_drawn_equally_often(tmp_path, deduplicate):
    """Over seeds: each of 40 windows (20 distinct ones, twice each) as often, and each pair."""
    documents = [("s", [number, 50]) for number in (*range(20), *range(20))]
    corpus = corpus_of(documents, tmp_path)
    population, limit, seeds = (20 if deduplicate else 40), 5, 400
    drawn = np.zeros((seeds, population))
    for seed in range(seeds):
        settings = WindowSettings(2, 1, 2, deduplicate=deduplicate, limit=limit, seed=seed)
        ids = distinct_ids(corpus, settings, tmp_path / str(seed))
        drawn[seed, ids] = 1
    assert (drawn.sum(axis=1) == limit).all()
    expected = seeds * limit / population
    spread = np.sqrt(expected * (1 - limit / population))
    assert np.abs(drawn.sum(axis=0) - expected).max() < 4 * spread
    pairs = (drawn.T @ drawn)[np.triu_indices(population, 1)]
    expected_pairs = seeds * limit * (limit - 1) / (population * (population - 1))
    assert np.abs(pairs - expected_pairs).max() < 6 * np.sqrt(expected_pairs)


def distinct_ids(corpus: Corpus, settings: WindowSettings, folder: Path) -> np.ndarray:
    """Only the choice, without counting: the test above makes hundreds."""
    folder.mkdir()
    cut, _, _ = windows._cut_all(corpus, settings, None, folder, lambda *_: None)
    distinct.chosen_ids(cut, settings.deduplicate, settings.limit, settings.seed, folder)
    return np.load(folder / "ids.npy")


def test_random_numbers_differ_by_id_and_by_seed():
    numbers = np.concatenate([random_numbers(np.arange(10_000), seed) for seed in range(3)])
    assert len(np.unique(numbers)) == 30_000
    bits = (numbers[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(30_000)


def test_ids_do_not_depend_on_filters_and_shards_without_windows_give_no_rows(tmp_path):
    documents = [("s", [7] * 10), ("s", list(range(10))), ("s", [1]), ("s", list(range(20, 30)))]
    corpus = corpus_of(documents, tmp_path, shard_tokens=1)
    index = index_windows(corpus, WindowSettings(5, 2, 5, min_distinct=0.5), tmp_path / "i")
    assert [row[0] for row in found(index)] == [2, 3, 4, 5]
    empty = index.paragraphs(0)
    assert empty.tokens.shape == (0, 5) and empty.table is not None
    assert empty.table.column_names == ["id", "document", "offset", "source", "count"]


def test_an_index_is_used_again_and_another_is_refused(tmp_path, documents, monkeypatch):
    corpus = corpus_of(documents, tmp_path)
    settings = WindowSettings(5, 2, 2)
    rows = found(index_windows(corpus, settings, tmp_path / "i"))
    with pytest.raises(InputError, match="was begun with other settings"):
        index_windows(corpus, WindowSettings(5, 2, 3), tmp_path / "i")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(InputError, match="holds files of something else; need an empty folder for the index"):
        index_windows(corpus, settings, tmp_path / "other")
    assert (tmp_path / "other" / "file").read_text() == "mine"
    monkeypatch.setattr(windows, "_cut_all", None)
    assert found(index_windows(corpus, settings, tmp_path / "i")) == rows


def test_a_kill_leaves_no_half_index(tmp_path, documents, monkeypatch):
    corpus = corpus_of(documents, tmp_path)
    settings = WindowSettings(5, 2, 2)
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # as if there was no time to clean up
    with monkeypatch.context() as patch:
        patch.setattr(windows, "count_in_corpus", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            index_windows(corpus, settings, tmp_path / "i")
    assert not (tmp_path / "i").exists() and list(tmp_path.glob(".mechmem-*.partial"))
    monkeypatch.undo()
    assert found(index_windows(corpus, settings, tmp_path / "i")) == slow_windows(documents, settings)
    files.remove_partials(tmp_path)  # as a scan does when it goes on
    assert not list(tmp_path.glob(".mechmem-*"))


@pytest.mark.parametrize("limit", [None, 500])
def test_memory_does_not_grow_with_the_corpus(tmp_path, limit, monkeypatch):
    monkeypatch.setattr(distinct, "PRESENT_BITS", 10)
    monkeypatch.setattr(distinct, "CHUNK", 500)
    spill = distinct.Spill
    monkeypatch.setattr(distinct, "Spill", lambda folder: spill(folder, buckets=64, buffer=1000))
    rng = np.random.default_rng(0)
    peaks = []
    for rows in (10_000, 100_000):
        np.save(tmp_path / f"{rows}.npy", rng.integers(0, 9999, (rows, 10), dtype=np.uint16))
        corpus = open_corpus(tmp_path / f"{rows}.npy", None, tmp_path / f"c{rows}", shard_tokens=10_000)
        settings = WindowSettings(10, 5, 10, limit=limit)
        index_windows(corpus, settings, tmp_path / "warm", None) if not peaks else None
        found = []

        def whole(corpus=corpus, settings=settings, found=found, rows=rows):
            found.append(index_windows(corpus, settings, tmp_path / f"i{rows}-{len(found)}"))
            found[-1].paragraphs(len(corpus) - 1)

        peaks.append(lowest_peak(whole))
        assert {index.total for index in found} == {limit or rows}
    # Ten times the corpus: 90,000 windows more, in 900 shards more, may cost a byte and a half each.
    assert peaks[1] < 1.05 * peaks[0] + 1.5 * 90_000


def test_keywords_use_the_tokenizers_text(tmp_path):
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["see the license for all of this and more of that"], 280, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)
    (tmp_path / "a.txt").write_text("see the license for all of this and more of that " * 3)
    corpus = open_corpus(tmp_path / "a.txt", tokenizer, tmp_path / "c")
    settings = WindowSettings(6, 3, 2, keywords=("license",))
    index = index_windows(corpus, settings, tmp_path / "i", tokenizer)
    texts = tokenizer.batch_decode([list(row[5]) for row in found(index)])
    assert index.manifest["dropped"]["keywords"] > 0 and not [text for text in texts if "license" in text]
    with pytest.raises(InputError, match="got keywords .* and no tokenizer"):
        index_windows(corpus, settings, tmp_path / "j")


def test_nothing_left_says_where_it_went(tmp_path):
    corpus = corpus_of([("s", [1] * 9), ("s", [2])], tmp_path)
    with pytest.raises(InputError, match="got 2 documents, none of 10 tokens; need at least 1: give longer documents"):
        index_windows(corpus, WindowSettings(10, 5), tmp_path / "i")
    with pytest.raises(InputError, match="got 3 windows, all dropped by filters .*'min_distinct': 3.*; loosen"):
        index_windows(corpus, WindowSettings(3, 1, 3, min_distinct=1.0), tmp_path / "i")
    assert not list(tmp_path.glob("*i*.partial")) and not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prefix_len": 100}, "got prefix_len 100, length 100; need 1 <= prefix_len < length"),
        ({"prefix_len": 0}, "got 0 as prefix_len"),
        ({"stride": 0}, "got 0 as stride; need a whole number of at least 1"),
        ({"min_distinct": 1.5}, "got 1.5 as min_distinct; need a finite number of at least 0 and at most 1"),
        ({"keywords": "href"}, "got 'href' as keywords; need several values"),
        ({"keywords": ("",)}, "need a tuple of strings that are not empty"),
        ({"limit": 0}, "got 0 as limit; need a whole number"),
        ({"seed": -1}, "got -1 as seed; need a whole number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        WindowSettings(**options)
