"""The bundled model, in both libraries, on text that it memorized."""

import numpy as np
import pytest
import torch
import transformers

from mechmem.data.assets import MODEL_FOLDER
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.monitor.monitor import Monitor
from mechmem.measure.scores import score
from tests.detect.monitor.conftest import random_detector

NEW, N = 16, 8


@pytest.fixture(scope="module")
def causal():
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def recited(bundled_model, bundled):
    few = bundled[:60]
    return few[score(bundled_model, few).em.values == few.continuation_len][:4]


def test_both_libraries_and_the_stream_score_memorized_text_alike(bundled_model, causal, recited):
    detector = random_detector(bundled_model, FeatureChoice(("output", "prefix", "residual"), depths=(3,)))
    with Monitor(detector, causal, false_alarms=0.1) as monitor:
        causal.generate(recited.prefix, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(torch.from_numpy(monitor.result.token.values), recited.continuation[:, :NEW])
    with Monitor(detector, bundled_model, false_alarms=0.1) as hooked:
        bundled_model.generate(recited.prefix, NEW, do_sample=False, verbose=False)
    np.testing.assert_allclose(hooked.result.score, monitor.result.score, atol=1e-3)
    stream = list(hooked.stream(recited.prefix[0], NEW))
    assert [token.id for token in stream] == recited.continuation[0, :NEW].tolist()
    assert "".join(token.text for token in stream) == bundled_model.tokenizer.decode(recited.continuation[0, :NEW])
    np.testing.assert_allclose([token.score for token in stream], monitor.result.score.values[0], atol=1e-3)


def test_block_keeps_memorized_text_from_being_said(bundled_model, causal, recited, bundled):
    detector = random_detector(bundled_model, FeatureChoice(("output",)), threshold=1e9)
    with Monitor(detector, causal, "block", memorized=bundled, n=N) as monitor:
        ids = causal.generate(recited.prefix, max_new_tokens=NEW, do_sample=False)
    own = ids[:, recited.prefix_len :]
    assert not torch.equal(own, recited.continuation[:, :NEW])
    known = {tuple(gram) for gram in bundled.tokens.unfold(1, N, 1).flatten(0, 1).tolist()}
    tails = ids[:, recited.prefix_len - N + 1 :].unfold(1, N, 1)
    assert not any(tuple(gram) in known for gram in tails.flatten(0, 1).tolist())
    assert monitor.result.acted.any("k").all()
