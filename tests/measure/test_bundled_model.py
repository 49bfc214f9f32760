"""What the bundled model is shipped for, on a sample, and its EM against real decoding."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mechmem.data.assets import MODEL_FOLDER, bundled_paragraphs
from mechmem.measure.scores import score
from mechmem.model.load import load_model


@pytest.fixture(scope="module")
def sample():
    """240 paragraphs: 80 never seen, 80 seen 128 times or more, 80 others."""
    paragraphs, rng = bundled_paragraphs(), np.random.default_rng(0)
    count, seen = paragraphs.column("count"), paragraphs.column("seen")
    never, often = seen == "never seen", count >= 128
    groups = [np.flatnonzero(group) for group in (never, often, ~never & ~often)]
    return paragraphs.select(np.concatenate([rng.permutation(group)[:80] for group in groups]))


@pytest.fixture(scope="module")
def em(sample):
    return score(load_model("bundled"), sample).em.values


def test_em_is_that_of_real_greedy_decoding(sample, em):
    reference: Any = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32, local_files_only=True)
    decoded = []
    for prefix in sample.prefix.split(80):
        whole = reference.generate(
            prefix, attention_mask=torch.ones_like(prefix), max_new_tokens=50, do_sample=False, use_cache=True,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        decoded.append(whole[:, sample.prefix_len :])
    match = (torch.cat(decoded) == sample.continuation).numpy()
    truth = np.cumprod(match, axis=1).sum(axis=1)
    assert len(truth) == 240 and truth.tolist() == em.tolist()
    assert {0, 50} < set(truth.tolist())  # failures, successes and partial matches


def test_frequent_text_is_memorized_and_fresh_text_is_not(em):
    never, often = em[:80], em[80:160]
    assert (never <= 10).mean() >= 0.95 and (often == 50).mean() >= 0.9
