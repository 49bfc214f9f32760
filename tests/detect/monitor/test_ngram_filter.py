"""The filter misses no n-gram, and takes others for one at most at its stated rate."""

import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.detect.monitor.ngram_filter import BloomFilter, NgramFilter, mixed

RANDOM = torch.Generator().manual_seed(0)


def rows(count, length, vocabulary=300):
    return torch.randint(0, vocabulary, (count, length), generator=RANDOM)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_ngram_of_the_paragraphs_is_found_wherever_it_lies(n):
    paragraphs = Paragraphs(rows(7, 19), prefix_len=11)
    known = NgramFilter.of(paragraphs, n=n)
    grams = paragraphs.tokens.unfold(1, n, 1)
    assert known.contains(grams).all()
    assert known.count == len(torch.unique(grams.flatten(0, 1), dim=0))


@pytest.mark.parametrize("false_rate", [0.2, 0.05, 0.01, 0.001])
def test_other_numbers_are_found_at_most_at_the_stated_rate(false_rate):
    numbers = mixed(torch.arange(5000))
    found = BloomFilter(numbers, false_rate)
    others = mixed(torch.arange(10**6, 10**6 + 400_000))
    measured = float(found.contains(others).double().mean())
    # Three standard errors of a share of 400,000.
    assert measured <= false_rate + 3 * (false_rate / 400_000) ** 0.5
    assert measured > false_rate / 20, "the bits are used"
    assert found.contains(numbers).all()


def test_other_ngrams_are_found_at_most_at_the_stated_rate_even_where_their_context_is_known():
    paragraphs = Paragraphs(rows(200, 40), prefix_len=20)
    known = NgramFilter.of(paragraphs, n=3, false_rate=0.01)
    grams = paragraphs.tokens.unfold(1, 3, 1).flatten(0, 1)
    others = torch.cat(
        [grams[:, :2].repeat(50, 1), torch.randint(300, 10**6, (50 * len(grams), 1), generator=RANDOM)], 1
    )
    measured = float(known.contains(others).double().mean())
    assert 0 < measured <= 0.01 + 3 * (0.01 / len(others)) ** 0.5
    assert float(NgramFilter.of(paragraphs, n=3).contains(others).double().mean()) < 1e-4


def test_order_and_place_of_tokens_count():
    known = NgramFilter(torch.tensor([[3, 4, 5], [9, 9, 8]]), 1e-6)
    assert known.contains(torch.tensor([[3, 4, 5], [9, 9, 8]])).tolist() == [True, True]
    others = torch.tensor([[4, 3, 5], [3, 5, 4], [5, 4, 3], [9, 8, 9], [8, 9, 9], [3, 4, 8], [9, 9, 5], [0, 0, 0]])
    assert not known.contains(others).any()


def test_all_tokens_that_would_complete_an_ngram_are_named_and_no_other():
    vocabulary, n = 40, 3
    paragraphs = Paragraphs(rows(9, 12, vocabulary), prefix_len=4)
    known = NgramFilter.of(paragraphs, n=n)
    grams = {tuple(gram) for gram in paragraphs.tokens.unfold(1, n, 1).flatten(0, 1).tolist()}
    tails = torch.cat([paragraphs.tokens[:, 5:7], rows(20, 2, vocabulary), torch.tensor([[-1, 3]])])
    hits, completing = known.completing(tails, torch.arange(vocabulary))
    expected = {
        row: {token for token in range(vocabulary) if (*tail, token) in grams}
        for row, tail in enumerate(tails.tolist())
    }
    found = {int(row): set(tokens.nonzero()[:, 0].tolist()) for row, tokens in zip(hits, completing, strict=True)}
    assert {row: tokens for row, tokens in found.items() if tokens} == {r: t for r, t in expected.items() if t}
    assert len(hits) < len(tails)


def test_text_shorter_than_an_ngram_completes_none():
    known = NgramFilter.of(Paragraphs(rows(3, 9), prefix_len=4), n=4)
    assert not len(known.completing(torch.full((2, 3), -1), torch.arange(300))[0])


def test_memory_is_that_of_bits():
    paragraphs = Paragraphs(rows(100, 60, 5000), prefix_len=30)
    known = NgramFilter.of(paragraphs, n=10)
    # 29 bits are needed at 1e-6, a power of two is at most twice as many; 10 for the contexts.
    assert known.nbytes * 8 <= known.count * (2 * 29 + 2 * 10)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"n": 0}, "got 0 as n"), ({"n": 10}, "got n-grams of 10 tokens and 3 paragraphs of 9"),
    ({"n": 2, "false_rate": 0.0}, "got 0.0 as false_rate"), ({"n": 2, "false_rate": 1.0}, "got 1.0 as false_rate"),
])  # fmt: skip
def test_what_makes_no_filter_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        NgramFilter.of(Paragraphs(rows(3, 9), prefix_len=4), **options)


def test_on_each_device(device):
    paragraphs = Paragraphs(rows(30, 20), prefix_len=10)
    known = NgramFilter.of(paragraphs, n=4)
    grams = torch.cat([paragraphs.tokens.unfold(1, 4, 1).flatten(0, 1), rows(500, 4)])
    assert torch.equal(known.to(torch.device(device)).contains(grams.to(device)).cpu(), known.contains(grams))
