"""The next token: the first choice, or one drawn by the row's own random numbers."""

import numpy as np
import pytest
import torch

from mechmem.detect.decoding.decoding_settings import DecodingSettings
from mechmem.detect.decoding.token_choice import TokenChoice

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -30_000.0])


def drawn(settings: DecodingSettings, rows: int = 4000) -> np.ndarray:
    """Tokens of many rows, each with a prompt of its own and the same logits."""
    prompts = torch.stack([torch.arange(rows), torch.arange(rows) + 5], 1)
    return TokenChoice(settings, prompts)(LOGITS.expand(rows, -1)).numpy()


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3), (1.0, 1)])
def test_tokens_are_drawn_with_the_models_probabilities(temperature, top_k):
    kept = LOGITS[: top_k or 5] / temperature
    p = np.zeros(5)
    p[: len(kept)] = kept.softmax(-1)
    found = np.bincount(drawn(DecodingSettings(temperature=temperature, top_k=top_k)), minlength=5) / 4000
    assert (np.abs(found - p) <= 4 * np.sqrt(p * (1 - p) / 4000)).all()
    assert found[4] == 0


def test_temperature_zero_takes_the_first_choice():
    assert (drawn(DecodingSettings(), rows=3) == 0).all()


def test_seeds_and_prompts_change_the_numbers_and_nothing_else_does():
    settings = DecodingSettings(temperature=1.0, seed=1)
    assert (drawn(settings) == drawn(settings)).all()
    assert (drawn(settings) != drawn(DecodingSettings(temperature=1.0, seed=2))).any()
    # Fewer rows beside a row: the same numbers.
    assert (drawn(settings, rows=50) == drawn(settings)[:50]).all()
    assert len(set(drawn(settings))) == 4


def test_rows_keep_their_random_numbers_when_they_are_moved():
    settings, prompts = DecodingSettings(temperature=3.0), torch.arange(12).reshape(6, 2)
    logits = LOGITS.expand(6, -1)
    plain, moved, rows = TokenChoice(settings, prompts), TokenChoice(settings, prompts), torch.tensor([4, 0, 5])
    plain(logits)
    moved(logits)
    moved.select(rows)
    for _ in range(20):
        assert plain(logits)[rows].tolist() == moved(logits[:3]).tolist()
