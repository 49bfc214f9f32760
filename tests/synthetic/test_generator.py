import re
from collections import Counter

import numpy as np
import pytest

from mechmem.synthetic.generator import MOST_OCCURRENCES, generate, power_law
from mechmem.synthetic.kinds import KINDS


@pytest.fixture(scope="module")
def corpus():
    return generate(3, 4_000_000, unseen=60, unseen_variants=40)


def test_a_seed_decides_every_document(corpus):
    again, other = generate(3, 4_000_000, unseen=60, unseen_variants=40), generate(4, 400_000)
    assert again == corpus
    assert other.trained[0].text != corpus.trained[0].text
    assert list(corpus.stream(0)) == list(again.stream(0)) != list(corpus.stream(1))


def test_the_stream_holds_each_document_as_often_as_its_count_says(corpus):
    seen = Counter(corpus.stream(0))
    assert [seen[index] for index in range(len(corpus.trained))] == [d.count for d in corpus.trained]


def test_every_kind_occurs_and_no_slot_is_left_open(corpus):
    assert len(KINDS) >= 8
    assert {d.kind for d in corpus.trained} == {d.kind for d in corpus.unseen} == set(KINDS)
    documents = [*corpus.trained, *corpus.unseen, *corpus.unseen_variants]
    assert not [d for d in documents if "\x02" in d.text or "\x03" in d.text]


def test_unseen_documents_are_of_templates_that_were_never_trained_on(corpus):
    trained = {d.cluster for d in corpus.trained}
    assert not trained & {d.cluster for d in corpus.unseen}
    assert {d.cluster for d in corpus.unseen_variants} <= trained
    assert {d.count for d in (*corpus.unseen, *corpus.unseen_variants)} == {0}


def test_variants_of_a_cluster_share_their_boilerplate_and_clusters_do_not(corpus):
    clusters: dict[int, list[str]] = {}
    for document in corpus.trained:
        clusters.setdefault(document.cluster, []).append(document.text)
    several = [texts for texts in clusters.values() if len(texts) > 2]
    assert len(several) > 10

    def shared(left: str, right: str) -> float:
        a, b = Counter(re.findall(r"\w+", left)), Counter(re.findall(r"\w+", right))
        return sum((a & b).values()) / min(sum(a.values()), sum(b.values()))

    within = [shared(texts[0], texts[1]) for texts in several]
    between = [shared(a[0], b[0]) for a, b in zip(several, several[1:], strict=False)]
    assert np.median(within) > 0.8 > 0.5 > np.median(between)


def test_counts_follow_the_power_law():
    import random

    draws = np.array([power_law(random.Random(seed), 1.8, MOST_OCCURRENCES) for seed in range(20_000)])
    assert draws.min() == 1 and draws.max() <= MOST_OCCURRENCES
    # P(K >= k) is close to k ** -0.8; the slope on log axes is read off where the draws are many.
    points = np.array([1, 2, 4, 8, 16, 32, 64])
    tail = [(draws >= k).mean() for k in points]
    assert abs(np.polyfit(np.log(points), np.log(tail), 1)[0] + 0.8) < 0.08


def test_word_forms_are_many_and_zipf_like():
    words = Counter(re.findall(r"[A-Za-z]+", " ".join(d.text for d in generate(0, 90_000_000).trained)))
    assert len(words) > 20_000
    assert sum(1 for count in words.values() if count <= 2) > 5_000  # rare names
    frequencies = np.array(sorted(words.values(), reverse=True)[10:2000])
    slope = np.polyfit(np.log(np.arange(10, 2000)), np.log(frequencies), 1)[0]
    assert -1.5 < slope < -0.7
