"""The tolerance is measured once for each model's weights, at a cost in proportion to the call."""

import copy
import gc

import numpy as np
import pytest
import torch

from mechmem.data.paragraphs import Paragraphs
from mechmem.measure import tolerance as module
from mechmem.measure.scores import score
from mechmem.measure.tolerance import calibration_sample, tolerance
from mechmem.model.hooks import with_hooks
from mechmem.model.lean.model import LeanModel


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """How many margins each calibration compared with float64."""
    counts: list[int] = []
    original = module._largest_error

    def counting(lean, sample, fast):
        counts.append(len(sample) * sample.continuation_len)
        return original(lean, sample, fast)

    monkeypatch.setattr(module, "_largest_error", counting)
    return counts


def random_paragraphs(count: int, length: int = 100) -> Paragraphs:
    return Paragraphs(torch.randint(0, 61, (count, length), generator=torch.Generator().manual_seed(2)), length // 2)


@pytest.mark.parametrize(("count", "rows", "length"), [(1, 1, 16), (8, 1, 25), (64, 2, 100), (5000, 16, 100)])
def test_the_sample_is_in_proportion_to_the_call(count, rows, length):
    sample = calibration_sample(random_paragraphs(count))
    assert (len(sample), sample.tokens.shape[1]) == (rows, length)
    if length < 100:
        assert torch.equal(sample.tokens[0], random_paragraphs(count).tokens[0, :length])


def test_weights_are_measured_once_and_other_weights_anew(tiny_model, measured):
    model, paras = copy.deepcopy(tiny_model), random_paragraphs(64)
    score(model, paras)
    score(model, paras)
    score(model, paras.select(np.arange(7)))
    assert measured == [100]
    score(model, random_paragraphs(640))
    assert measured == [100, 800], "a larger call measures on more"
    score(model, random_paragraphs(5000, 20))
    assert len(measured) == 2, "enough is enough"
    with torch.no_grad():
        model.blocks[2].mlp.W_out *= 1.5
    score(model, paras)
    model.load_state_dict(tiny_model.state_dict())
    score(model, paras)
    model.blocks[0].attn.W_V.data.mul_(2.0)
    score(model, paras)
    assert measured[2:] == [100] * 3


def test_nothing_of_a_model_outlives_it(tiny_model):
    gc.collect()  # models that other tests left in reference cycles are not counted
    before = len(module._known)
    model = copy.deepcopy(tiny_model)
    score(model, random_paragraphs(3))
    assert len(module._known) == before + 1
    del model
    gc.collect()
    assert len(module._known) == before


def test_few_margins_are_trusted_less(tiny_model):
    model = copy.deepcopy(tiny_model)
    few = tolerance(model, LeanModel(model), calibration_sample(random_paragraphs(1)))
    many = tolerance(model, LeanModel(model), calibration_sample(random_paragraphs(1000)))
    assert few.measured == 8 and many.measured == 800
    assert few.margin > 16 * many.margin / module.SAFETY[torch.float32] > 0


@pytest.mark.parametrize("count", [1, 9, 200])
def test_em_is_what_float64_says_although_few_tokens_were_measured(tiny_model, count):
    """Twins of every token whose logits differ in the last digits of float32, in a public call of any size."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        noise = 2e-7 * torch.randn(30, generator=torch.Generator().manual_seed(1))
        model.unembed.W_U[:, 31:] = model.unembed.W_U[:, 1:31] * (1 + noise)
        model.unembed.b_U[31:] = model.unembed.b_U[1:31]
    wide = copy.deepcopy(model).to(torch.float64)
    text = random_paragraphs(count, 40).tokens[:, :20]
    with torch.no_grad():
        for _ in range(20):
            text = torch.cat([text, wide(text, padding_side="right")[:, -1:].argmax(-1)], 1)
    paras = Paragraphs(text, 20)
    assert score(model, paras).em.values.tolist() == [20] * count
    if count == 200:
        with with_hooks(model, {"blocks.0.hook_resid_pre": lambda value, hook: None}):  # noqa: ARG005
            assert score(model, paras).em.values.tolist() != [20] * count, "float32 was to fall the other way somewhere"
