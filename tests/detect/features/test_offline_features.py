"""The groups that no detector runs with: the text alone, and gradients."""

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.hashes import window_hashes
from mechmem.data.paragraphs import Paragraphs
from mechmem.detect.features.chosen_features import feature_choice
from mechmem.detect.features.feature_arrays import columns_of
from mechmem.detect.features.text_features import BUCKETS, hashed_counts
from mechmem.model.sites import editable_parameters

KS = (0, 1, 4, 9)


def test_hashed_counts_are_those_of_a_loop_over_the_grams():
    tokens = np.random.default_rng(0).integers(0, 9, (5, 20))
    found = hashed_counts(tokens, 7, KS)
    assert found.shape == (5, len(KS), BUCKETS)
    for row, ids in enumerate(tokens):
        for index, k in enumerate(KS):
            text, wanted = ids[: 7 + k], np.zeros(BUCKETS)
            for n in (1, 2):
                for at in range(len(text) - n + 1):
                    value = int(window_hashes(text[at : at + n], n)[0])
                    wanted[(value >> 33) % BUCKETS] += 1 if value >> 63 else -1
            np.testing.assert_allclose(found[row, index], wanted / np.linalg.norm(wanted), atol=1e-6)


def test_other_tokens_are_seen_and_later_ones_are_not():
    tokens = np.random.default_rng(1).integers(0, 4000, (2, 20))
    tokens[1] = tokens[0]
    tokens[1, 12] = (tokens[0, 12] + 1) % 4000
    found = hashed_counts(tokens, 7, (5, 6))
    np.testing.assert_array_equal(found[0, 0], found[1, 0])
    assert (found[0, 1] != found[1, 1]).any()
    # Counting grams, not tokens alone: the same bag in another order has other bigrams.
    assert (hashed_counts(tokens[:1, ::-1].copy(), 20, (0,)) != hashed_counts(tokens[:1], 20, (0,))).any()


def plain_norms(model, tokens: torch.Tensor, k: int) -> list[float]:
    """By layer, of the gradient of the mean NLL of the last k tokens of one text."""
    logs = model(tokens[None], padding_side="right")[0].log_softmax(-1)
    own = tokens[-k:]
    loss = -logs[len(tokens) - k - 1 : -1].gather(1, own[:, None]).mean()
    parameters = editable_parameters(model)
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    return [
        sum(float(g.square().sum()) for name, g in gradients.items() if name.startswith(f"blocks.{layer}.")) ** 0.5
        for layer in range(model.cfg.n_layers)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_gradients_are_those_of_each_text_alone(tiny_model, tiny_paragraphs, temperature):
    decoding = mm.DecodingSettings(ks=KS, temperature=temperature)
    reports: list[tuple[int, int]] = []
    found = mm.detection_features(
        tiny_model,
        tiny_paragraphs[:5],
        features=("gradient", "text"),
        decoding=decoding,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert found.gradient.dims == ("paragraph", "k", "layer") and found.gradient.attrs["units"].startswith("nats")
    assert [done for done, _ in reports] == sorted(done for done, _ in reports) and reports[-1] == (25, 25)
    for row in (0, 3):
        prefix, said = tiny_paragraphs.prefix[row], torch.from_numpy(found.said.values[row])
        choice = tiny_model(prefix[None], padding_side="right")[0, -1].argmax()
        for k in KS:
            own = said[:k] if k else choice[None]
            wanted = plain_norms(tiny_model, torch.cat([prefix, own]), max(k, 1))
            np.testing.assert_allclose(found.gradient.sel(k=k)[row], wanted, rtol=1e-3)
    choice = feature_choice(tiny_model, ("gradient", "text"))
    matrix, names = columns_of(found, choice)
    assert names[:5] == ("gradient:0", "gradient:1", "gradient:2", "gradient:3", "text:0")
    np.testing.assert_array_equal(matrix[..., 4:], found.text.values)


def test_the_text_is_of_prefix_and_own_tokens(tiny_model, tiny_paragraphs):
    decoding = mm.DecodingSettings(ks=(0, 3))
    found = mm.detection_features(tiny_model, tiny_paragraphs, features=("text", "output"), decoding=decoding)
    whole = np.concatenate([tiny_paragraphs.prefix.numpy(), found.said.values[:, :3]], 1)
    np.testing.assert_array_equal(found.text.sel(k=3), hashed_counts(whole, 13, (3,))[:, 0])
    other = Paragraphs(tiny_paragraphs.tokens.flip(0), 13)
    again = mm.detection_features(tiny_model, other, features="text", decoding=decoding)
    np.testing.assert_array_equal(again.text.values, found.text.values[::-1])
