from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mechmem.data import counts, hashes
from mechmem.data.corpora import open_corpus
from mechmem.data.counts import (
    Clusters,
    cluster,
    corpus_unigram_counts,
    occurrences,
    unigram_counts,
)
from mechmem.data.errors import InputError
from mechmem.data.hashes import blocks, row_hashes, window_hashes
from mechmem.data.paragraphs import Paragraphs

PILE = Path(__file__).parents[2] / "../shared/data/pile-gpt-neo-125m"


def slow_cluster(rows: list[list[int]], run: int) -> list[int]:
    """Merge labels pair by pair until nothing changes."""
    windows = [{tuple(row[i : i + run]) for i in range(len(row) - run + 1)} for row in rows]
    labels = list(range(len(rows)))
    changed = True
    while changed:
        changed = False
        for a in range(len(rows)):
            for b in range(len(rows)):
                if labels[a] > labels[b] and windows[a] & windows[b]:
                    labels[a], changed = labels[b], True
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [order[label] for label in labels]


def test_equal_windows_have_equal_hashes_wherever_they_stand():
    tokens = np.random.default_rng(0).integers(0, 3, 500)
    hashes = window_hashes(tokens, 7)
    by_content: dict[tuple[int, ...], set[int]] = {}
    for start, value in enumerate(hashes.tolist()):
        by_content.setdefault(tuple(tokens[start : start + 7].tolist()), set()).add(value)
    assert all(len(values) == 1 for values in by_content.values())
    assert len({value for values in by_content.values() for value in values}) == len(by_content) > 100


def test_occurrences_agree_with_counting_every_window():
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 2, length).tolist() for length in (40, 3, 17, 60)]
    repeats = [2, 9, 5, 1]
    truth: Counter[tuple[int, ...]] = Counter()
    for tokens, repeat in zip(documents, repeats, strict=True):
        for start in range(len(tokens) - 5):
            truth[tuple(tokens[start : start + 6])] += repeat
    need = Paragraphs(torch.tensor(rng.integers(0, 3, (50, 6))), 3)
    counts = occurrences(need, documents, repeats)
    assert counts.tolist() == [truth[tuple(row)] for row in need.tokens.tolist()]
    assert 0 in counts and counts.max() > 1


def test_cluster_agrees_with_merging_pair_by_pair():
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 50, (40, 13))
    for row in range(0, 36, 3):  # chains: each row shares a run with the next at another offset
        tokens[row + 2, 4:9] = tokens[row + 1, 1:6]
        tokens[row + 3, 0:5] = tokens[row + 2, 7:12]
    labels = cluster(Paragraphs(torch.tensor(tokens), 6), run=5)
    assert labels.tolist() == slow_cluster(tokens.tolist(), 5)
    assert 1 < labels.max() + 1 < 40


def test_a_run_one_longer_than_what_is_shared_joins_nothing():
    tokens = torch.arange(40).view(2, 20)
    tokens[1, 3:10] = tokens[0, 8:15]
    assert cluster(Paragraphs(tokens, 10), run=7).tolist() == [0, 0]
    assert cluster(Paragraphs(tokens, 10), run=8).tolist() == [0, 1]


@pytest.mark.skipif(not PILE.exists(), reason="the Pile paragraphs of the paper are not on this machine")
def test_the_papers_memorized_paragraphs_are_76_clusters():
    sizes = np.bincount(cluster(Paragraphs.load(PILE / "em50.npy"), run=25))
    assert len(sizes) == 76
    assert np.sort(sizes)[::-1][:5].tolist() == [48, 45, 44, 35, 33]


def test_a_run_longer_than_the_paragraph_is_refused():
    with pytest.raises(InputError, match="got run 25; need 1 to 20"):
        cluster(Paragraphs(torch.arange(40).view(2, 20), 10), run=25)


def test_unigram_counts():
    assert unigram_counts(np.array([2, 0, 2]), 4).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_a_hash_is_the_sum_of_values_times_powers_however_it_is_reached(dtype, monkeypatch):
    """Oracle: whole numbers of any size, reduced at the end."""
    tokens = np.random.default_rng(0).integers(0, 60_000, 200).astype(dtype)
    values = np.random.default_rng(0x6D6D).integers(0, 2**64, size=2**16, dtype=np.uint64)
    truth = [
        sum(int(values[int(token)]) * hashes._BASE**power for power, token in enumerate(tokens[start : start + 9]))
        % 2**64
        for start in range(192)
    ]
    assert window_hashes(tokens, 9).tolist() == truth
    assert row_hashes(np.lib.stride_tricks.sliding_window_view(tokens, 9)).tolist() == truth
    monkeypatch.setattr(hashes, "BLOCK", 25)
    joined = [(first + place, value) for first, part in blocks(tokens, 9) for place, value in enumerate(part.tolist())]
    assert joined == list(enumerate(truth))


def test_hashes_of_small_ids_do_not_depend_on_large_ones_beside_them():
    tokens = np.array([5, 6, 7, 8, 70_000])
    assert window_hashes(tokens, 3)[0] == window_hashes(tokens[:3], 3)[0]


def test_an_id_that_no_vocabulary_holds_is_refused():
    with pytest.raises(InputError, match="got the token id 1099511627776; need ids below 16777216"):
        window_hashes(np.array([1, 2**40]), 1)


@pytest.mark.parametrize("buffer", [1, 50, 10**6])
def test_clusters_of_rows_added_part_by_part_agree_with_merging_pair_by_pair(tmp_path, buffer, monkeypatch):
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 50, (60, 13))
    for row in range(0, 54, 3):
        tokens[row + 2, 4:9] = tokens[row + 1, 1:6]
        tokens[row + 3, 0:5] = tokens[row + 2, 7:12]
    tokens[59, 2:7] = tokens[0, 8:13]  # joins what is far apart
    monkeypatch.setattr(counts, "BLOCK", 3)
    monkeypatch.setattr(counts, "_ROWS", 7)
    clusters = Clusters(5, tmp_path / "runs", buckets=8)
    clusters._spill._buffer = buffer
    for part in np.split(tokens, [1, 1, 20, 33]):
        clusters.add(part)
    assert clusters.labels().tolist() == slow_cluster(tokens.tolist(), 5)


def test_edges_are_followed_before_they_outgrow_the_rows(tmp_path, monkeypatch):
    tokens = np.random.default_rng(4).integers(0, 3, (40, 12))
    monkeypatch.setattr(counts, "BLOCK", 1)
    sizes: list[int] = []
    joined = counts._joined
    monkeypatch.setattr(counts, "_joined", lambda labels, edges: sizes.append(len(edges)) or joined(labels, edges))
    clusters = Clusters(3, tmp_path / "runs", buckets=64)
    clusters._spill._buffer = 10
    clusters.add(tokens)
    assert clusters.labels().tolist() == slow_cluster(tokens.tolist(), 3) and len(sizes) > 3


def test_no_rows_have_no_labels(tmp_path):
    assert Clusters(5, tmp_path / "runs").labels().shape == (0,)
    assert cluster(Paragraphs(torch.zeros((0, 30), dtype=torch.long), 10)).shape == (0,)


def test_unigram_counts_of_a_corpus(tmp_path, monkeypatch):
    ids = np.random.default_rng(0).integers(0, 50, (90, 7)).astype(np.uint16)
    np.save(tmp_path / "a.npy", ids)
    corpus = open_corpus(tmp_path / "a.npy", None, tmp_path / "c", shard_tokens=100)
    monkeypatch.setattr(counts, "BLOCK", 11)
    truth = Counter(ids.reshape(-1).tolist())
    assert corpus_unigram_counts(corpus, 60).tolist() == [truth[token] for token in range(60)]
    with pytest.raises(InputError, match="got the token id 4[0-9]; need ids below 40"):
        corpus_unigram_counts(corpus, 40)
