"""What a model writes, against decoding one token after the other with TransformerLens."""

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.measure.greedy_texts import greedy_texts
from mechmem.model.hooks import with_hooks


@torch.no_grad()
def slowly(model, paragraphs):
    """Greedy ids, their NLL and that of the true tokens, [paragraph, continuation]."""
    said, prefix_len = paragraphs.tokens.clone(), paragraphs.prefix_len
    for pos in range(prefix_len, said.shape[1]):
        said[:, pos] = model(said[:, :pos])[:, -1].argmax(-1)
    nll = []
    for tokens in (said, paragraphs.tokens):
        chances = model(tokens).double().log_softmax(-1)[:, prefix_len - 1 : -1]
        nll.append(-chances.gather(-1, tokens[:, prefix_len:, None]).squeeze(-1).numpy())
    return said[:, prefix_len:].numpy(), *nll


def distance(first, second):
    """Levenshtein's, by its definition."""
    rows = np.arange(len(second) + 1)
    for place, token in enumerate(first, 1):
        above, rows = rows, np.r_[place, np.zeros(len(second), int)]
        for column, other in enumerate(second, 1):
            rows[column] = min(above[column] + 1, rows[column - 1] + 1, above[column - 1] + (token != other))
    return rows[-1]


def check(found, paragraphs, truth):
    said, said_nll, true_nll = truth
    np.testing.assert_array_equal(found.said.values, said)
    np.testing.assert_allclose(found.said_nll.values, said_nll, atol=1e-4)
    np.testing.assert_allclose(found.token_nll.values, true_nll, atol=1e-4)
    np.testing.assert_allclose(found.nll.values, true_nll.mean(1), atol=1e-4)
    true = paragraphs.tokens[:, paragraphs.prefix_len :].numpy()
    assert found.edit_distance.values.tolist() == [distance(*pair) for pair in zip(said, true, strict=True)]
    em = [next((place for place, same in enumerate(row) if not same), len(row)) for row in said == true]
    assert found.em.values.tolist() == em


@pytest.fixture(scope="module")
def some(tiny_model, tiny_paragraphs):
    """Random texts, and one of which the model says all and one of which it says a half."""
    tokens = tiny_paragraphs.tokens.clone()
    own, _, _ = slowly(tiny_model, tiny_paragraphs[:2])
    tokens[:2, 13:] = torch.from_numpy(own)
    tokens[1, 18] = (tokens[1, 18] + 1) % 61
    return mm.Paragraphs(tokens, 13)


def test_texts_and_scores_are_those_of_decoding_token_by_token(tiny_model, some, monkeypatch):
    monkeypatch.setattr("mechmem.measure.greedy_texts.ROWS", 4)
    found = greedy_texts(tiny_model, some)
    check(found, some, slowly(tiny_model, some))
    assert found.em.values[:2].tolist() == [10, 5] and found.edit_distance.values[0] == 0
    assert found.paragraph.values.tolist() == some.ids.tolist() and found.pos.values.tolist() == list(range(13, 23))


def test_hooks_on_the_model_act(tiny_model, some):
    def silent(z, hook):  # noqa: ARG001 - TransformerLens passes both
        z[:, :, 1] = 0
        return z

    with with_hooks(tiny_model, {"blocks.0.attn.hook_z": silent}):
        found = greedy_texts(tiny_model, some)
        check(found, some, slowly(tiny_model, some))
    assert (found.said.values != greedy_texts(tiny_model, some).said.values).any()


def test_a_prefix_of_one_token(tiny_model, tiny_paragraphs):
    short = mm.Paragraphs(tiny_paragraphs.tokens[:3, :9], 1)
    check(greedy_texts(tiny_model, short), short, slowly(tiny_model, short))
