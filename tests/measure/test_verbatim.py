"""Nearly verbatim text, against definitions written out and a model whose text is known."""

import copy
from difflib import SequenceMatcher

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.verbatim import longest_common_substrings, rouge_l, shortest_prefixes, verbatim
from mechmem.model.hooks import with_hooks


def subsequence(one: list[int], other: list[int]) -> int:
    """Longest common subsequence, as its definition says."""
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + subsequence(one[1:], other[1:])
    return max(subsequence(one[1:], other), subsequence(one, other[1:]))


def test_overlaps_are_their_definitions():
    rng = np.random.default_rng(0)
    said, true = rng.integers(0, 3, (40, 9)), rng.integers(0, 3, (40, 9))
    said[0], said[1] = true[0], true[1] + 3
    for row, (one, other) in enumerate(zip(said.tolist(), true.tolist(), strict=True)):
        match = SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
        assert longest_common_substrings(said, true)[row] == match.size
        assert rouge_l(said, true)[row] == pytest.approx(subsequence(one, other) / 9)
    assert longest_common_substrings(said, true)[:2].tolist() == [9, 0]


def greedy(model, tokens: list[int], length: int) -> list[int]:
    with torch.no_grad():
        while len(tokens) < length:
            tokens = [*tokens, int(model(torch.tensor([tokens]))[0, -1].argmax())]
    return tokens


@pytest.fixture(scope="module")
def paragraphs(tiny_model):
    """Texts that the model says by itself from 8 tokens on, from 12 on, and never."""
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (6, 17), generator=torch.Generator().manual_seed(3))
    for row, start in enumerate((8, 8, 12, 12)):
        tokens[row] = torch.tensor(greedy(tiny_model, tokens[row, :start].tolist(), 17))
    return Paragraphs(tokens, 8)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_shortest_prefix_is_the_one_that_decoding_finds(tiny_model, paragraphs, batch_size):
    found = verbatim(tiny_model, paragraphs, batch_size=batch_size)
    for row, text in enumerate(paragraphs.tokens.tolist()):
        said, one = np.array([greedy(tiny_model, text[:8], 17)[8:]]), found.isel(paragraph=row)
        shortest = int(one.shortest_prefix)
        # From where decoding gives the rest it does so from every later place as well.
        assert greedy(tiny_model, text[:shortest], 17) == text
        assert shortest == 1 or greedy(tiny_model, text[: shortest - 1], 17) != text
        assert one.extraction_strength.item() == pytest.approx(1 - shortest / 17)
        assert one.longest_common_substring == longest_common_substrings(said, np.array([text[8:]]))[0]
        assert one.verbatim_memorization.item() == pytest.approx(rouge_l(said, np.array([text[8:]]))[0])
    assert (found.shortest_prefix[:2] <= 8).all() and (found.edit_similarity[:2] == 1).all()
    assert (found.extraction_strength[:4] > found.extraction_strength[4:].max()).all()


def test_one_wrong_token_ends_the_match_and_not_these_measures(tiny_model, paragraphs):
    """EM sees nothing behind the first mismatch."""
    tokens = paragraphs.tokens[:1].clone()
    said = greedy(tiny_model, tokens[0, :8].tolist(), 17)
    tokens[0, 8] = (said[8] + 1) % tiny_model.cfg.d_vocab
    found = verbatim(tiny_model, Paragraphs(tokens, 8))
    assert found.edit_similarity.item() == pytest.approx(8 / 9) and found.longest_common_substring == 8
    assert shortest_prefixes(np.array([[False, True, True], [True, True, True], [True, True, False]])).tolist() == [
        2,
        1,
        4,
    ]


def test_hooks_are_run(tiny_model, paragraphs):
    moved = copy.deepcopy(tiny_model)
    with with_hooks(moved, {"blocks.1.hook_mlp_out": lambda x, hook: x * 0 + 1}):  # noqa: ARG005
        found = verbatim(moved, paragraphs)
    with torch.no_grad():
        moved.blocks[1].mlp.get_parameter("W_out").zero_()
        moved.blocks[1].mlp.get_parameter("b_out").fill_(1.0)
    need = verbatim(moved, paragraphs)
    assert found.equals(need) and not found.equals(verbatim(tiny_model, paragraphs))


def test_bad_input_is_refused(tiny_model, paragraphs):
    with pytest.raises(InputError, match="got 0 paragraphs"):
        verbatim(tiny_model, paragraphs[:0])
    with pytest.raises(InputError, match="got the token id 61"):
        verbatim(tiny_model, Paragraphs(torch.full((2, 17), 61), 8))
