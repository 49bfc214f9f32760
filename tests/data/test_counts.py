from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mechmem.data.counts import cluster, occurrences, unigram_counts, window_hashes
from mechmem.data.errors import InputError
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
    wanted = Paragraphs(torch.tensor(rng.integers(0, 3, (50, 6))), 3)
    counts = occurrences(wanted, documents, repeats)
    assert counts.tolist() == [truth[tuple(row)] for row in wanted.tokens.tolist()]
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
    with pytest.raises(InputError, match="run is 25; wanted 1 to 20"):
        cluster(Paragraphs(torch.arange(40).view(2, 20), 10), run=25)


def test_unigram_counts():
    assert unigram_counts(np.array([2, 0, 2]), 4).tolist() == [1, 0, 2, 0]
