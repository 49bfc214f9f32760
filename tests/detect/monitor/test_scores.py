"""Every score that a monitor gives is that of a slow loop over whole texts, whichever way the model decodes."""

import numpy as np
import pytest
import torch
import transformers

from mechmem.detect.monitor.monitor import Monitor
from tests.detect.monitor.conftest import (
    CONFIGS,
    END,
    EVERYTHING,
    PLAIN,
    padded,
    plain_scores,
    prompts,
    random_detector,
)

FAMILIES = sorted(CONFIGS)


def assert_plain(result, hooked, detector, texts, own=None):
    """Each row of a result against the slow loop, on the tokens that the row said."""
    for row, text in enumerate(texts):
        said = result.token.values[row]
        length = int((said >= 0).sum())
        assert (said[length:] == -1).all()
        scores, statistics = plain_scores(hooked, detector, text, torch.as_tensor(said[:length]))
        np.testing.assert_allclose(result.score.values[row, :length], scores, atol=2e-4)
        assert np.isnan(result.score.values[row, length:]).all()
        threshold = detector.threshold(0.1)
        clear = np.abs(statistics - threshold) > 1e-3
        flagged = np.maximum.accumulate(statistics > threshold)
        np.testing.assert_array_equal(result.flagged.values[row, :length][clear], flagged[clear])
        if own is not None:
            np.testing.assert_array_equal(said[:length], own[row][:length])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_transformers_own_with_left_padding(family, twins):
    pair, texts = twins(family), prompts(9, 5, 12)
    detector = random_detector(pair.hooked, EVERYTHING)
    with Monitor(detector, pair.causal, false_alarms=0.1) as monitor:
        ids = pair.causal.generate(**padded(texts), max_new_tokens=8, do_sample=False)
    assert_plain(monitor.result, pair.hooked, detector, texts, ids[:, 12:].numpy())
    assert monitor.result.flagged.values.any() and not monitor.result.flagged.values.all()


@pytest.mark.parametrize("family", FAMILIES)
def test_hooked_transformer_gives_the_same_as_transformers(family, twins):
    pair, texts = twins(family), prompts(9, 9, 9)
    detector = random_detector(pair.hooked, EVERYTHING)
    with Monitor(detector, pair.hooked, false_alarms=0.1) as hooked:
        ids = pair.hooked.generate(torch.stack(texts), 8, stop_at_eos=False, do_sample=False, verbose=False)
    with Monitor(detector, pair.causal, false_alarms=0.1) as causal:
        pair.causal.generate(torch.stack(texts), max_new_tokens=8, do_sample=False)
    assert_plain(hooked.result, pair.hooked, detector, texts, ids[:, 9:].numpy())
    np.testing.assert_array_equal(hooked.result.token, causal.result.token)
    np.testing.assert_allclose(hooked.result.score, causal.result.score, atol=2e-4)
    np.testing.assert_allclose(hooked.result.p_value, causal.result.p_value, atol=1e-6)


@pytest.mark.parametrize("cached", [True, False])
def test_without_kept_keys_and_values_the_scores_are_the_same(cached, twins):
    pair, texts = twins("gpt_neo"), prompts(9, 5, seed=2)
    detector = random_detector(pair.hooked)
    with Monitor(detector, pair.causal, false_alarms=0.1) as monitor:
        pair.causal.generate(**padded(texts), max_new_tokens=6, do_sample=False, use_cache=cached)
    assert_plain(monitor.result, pair.hooked, detector, texts)
    with Monitor(detector, pair.hooked, false_alarms=0.1) as monitor:
        pair.hooked.generate(
            texts[0][None], 6, stop_at_eos=False, do_sample=False, use_past_kv_cache=cached, verbose=False
        )
    assert_plain(monitor.result, pair.hooked, detector, texts[:1])


def test_sampling_is_scored_before_temperature_and_changes_nothing(twins):
    pair, texts = twins("gpt2"), prompts(6, 8)
    detector = random_detector(pair.hooked)
    options = {"max_new_tokens": 9, "do_sample": True, "temperature": 0.7, "top_k": 12, "num_return_sequences": 2}
    torch.manual_seed(5)
    plain = pair.causal.generate(**padded(texts), **options)
    torch.manual_seed(5)
    with Monitor(detector, pair.causal, false_alarms=0.1) as monitor:
        watched = pair.causal.generate(**padded(texts), **options)
    assert torch.equal(plain, watched)
    assert_plain(
        monitor.result, pair.hooked, detector, [texts[0], texts[0], texts[1], texts[1]], watched[:, 8:].numpy()
    )
    assert monitor.result.attrs["action"] == "flag"


def test_finished_rows_end_and_the_others_go_on(twins):
    pair, texts = twins("gpt_neox"), prompts(7, 4, 6, 6, seed=4)
    detector = random_detector(pair.hooked)
    options = {"max_new_tokens": 12, "eos_token_id": list(range(8, 20))}
    with Monitor(detector, pair.causal, false_alarms=0.1) as monitor:
        ids = pair.causal.generate(**padded(texts), do_sample=False, **options)
    lengths = (monitor.result.token.values >= 0).sum(1)
    assert len(set(lengths)) > 1, "rows of different lengths"
    assert_plain(monitor.result, pair.hooked, detector, texts, ids[:, 7:].numpy())
    with Monitor(detector, pair.hooked, false_alarms=0.1) as hooked:
        pair.hooked.generate(
            torch.stack(texts[2:]), 12, eos_token_id=list(range(8, 20)), do_sample=False, verbose=False
        )
    shown = hooked.result.token.values
    np.testing.assert_array_equal(shown, monitor.result.token.values[2:, : shown.shape[1]])
    assert_plain(hooked.result, pair.hooked, detector, texts[2:])


@pytest.mark.parametrize("ends", [None, END])
@pytest.mark.parametrize("returned", [1, 3])
def test_beams_are_followed_to_the_hypotheses_that_are_returned(returned, ends, twins):
    pair, texts = twins("gpt_neo"), prompts(6, 6, 9, seed=1)
    detector = random_detector(pair.hooked, EVERYTHING)
    options = {"num_beams": 3, "num_return_sequences": returned, "max_new_tokens": 10, "do_sample": False}
    plain = pair.causal.generate(**padded(texts), **options, eos_token_id=ends)
    with Monitor(detector, pair.causal, false_alarms=0.1) as monitor:
        watched = pair.causal.generate(**padded(texts), **options, eos_token_id=ends)
    assert torch.equal(plain, watched)
    rows = [text for text in texts for _ in range(returned)]
    assert_plain(monitor.result, pair.hooked, detector, rows, watched[:, 9:].numpy())
    assert monitor.result.sizes["row"] == len(rows)


def test_beams_change_places_so_that_the_test_above_can_fail(twins):
    pair, texts = twins("gpt_neo"), prompts(6, 6, 9, seed=1)
    detector = random_detector(pair.hooked)
    with Monitor(detector, pair.causal) as monitor:
        original = monitor._causal_run
        seen = []
        monitor._causal_run = lambda: seen.append(original()) or seen[-1]
        pair.causal.generate(**padded(texts), num_beams=3, max_new_tokens=10, do_sample=False)
    assert any(step.parents is not None for step in seen[0]._generation.history.steps[2:])


def test_a_streamer_gets_its_tokens(twins):
    class Heard(transformers.generation.streamers.BaseStreamer):
        tokens: list[int] = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            pass

    pair, texts = twins("gpt2"), prompts(6)
    detector, heard = random_detector(pair.hooked), Heard()
    with Monitor(detector, pair.causal, false_alarms=0.1) as monitor:
        ids = pair.causal.generate(texts[0][None], streamer=heard, max_new_tokens=5, do_sample=False)
    assert heard.tokens == ids[0].tolist()
    assert_plain(monitor.result, pair.hooked, detector, texts, ids[:, 6:].numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_is_the_same_by_every_forward(family, twins):
    pair, (text,) = twins(family), prompts(7)
    detector = random_detector(pair.hooked, EVERYTHING)
    lean, causal = Monitor(detector, pair.hooked, false_alarms=0.1), Monitor(detector, pair.causal, false_alarms=0.1)
    said = list(lean.stream(text, 9))
    assert_plain(lean.result, pair.hooked, detector, [text])
    assert [token.id for token in said] == lean.result.token.values[0].tolist()
    assert [token.k for token in said] == list(range(9))
    np.testing.assert_allclose([token.score for token in said], lean.result.score.values[0], rtol=1e-6)
    np.testing.assert_allclose([token.p_value for token in said], lean.result.p_value.values[0], rtol=1e-6)
    assert [token.flagged for token in said] == lean.result.flagged.values[0].tolist()
    with pair.hooked.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda activation, hook: activation)]):  # noqa: ARG005
        hooked = list(lean.stream(text, 9))
    for other in (hooked, list(causal.stream(text.tolist(), 9))):
        assert [token.id for token in other] == [token.id for token in said]
        np.testing.assert_allclose([token.score for token in other], [token.score for token in said], atol=2e-4)


def test_a_sampled_stream_repeats_with_its_seed(twins):
    pair, (text,) = twins("gpt_neo"), prompts(7)
    detector = random_detector(pair.hooked)
    monitor = Monitor(detector, pair.hooked, false_alarms=0.1)

    def said(seed):
        return [token.id for token in monitor.stream(text, 12, temperature=1.5, top_k=20, seed=seed)]

    assert said(1) == said(1) != said(2)
    assert_plain(monitor.result, pair.hooked, detector, [text])


def test_hooks_of_the_owner_count(twins):
    pair, texts = twins("gpt_neo"), prompts(9, 9)
    detector = random_detector(pair.hooked)
    head = ("blocks.1.attn.hook_z", lambda z, hook: z * 0)  # noqa: ARG005
    without = Monitor(detector, pair.hooked, false_alarms=0.1)
    without_scores = [token.score for token in without.stream(texts[0], 6)]
    with pair.hooked.hooks(fwd_hooks=[head]):
        with Monitor(detector, pair.hooked, false_alarms=0.1) as monitor:
            pair.hooked.generate(torch.stack(texts), 6, stop_at_eos=False, do_sample=False, verbose=False)
        assert_plain(monitor.result, pair.hooked, detector, texts)
        hooked = [token.score for token in monitor.stream(texts[0], 6)]
        np.testing.assert_allclose(hooked, monitor.result.score.values[0], atol=2e-4)
    assert not np.allclose(hooked, without_scores, atol=1e-3)


def test_plain_features_need_no_eager_attention(twins):
    pair, texts = twins("gpt2"), prompts(9, 5)
    detector = random_detector(pair.hooked, PLAIN)
    pair.causal.set_attn_implementation("sdpa")
    try:
        with Monitor(detector, pair.causal, false_alarms=0.1) as monitor:
            pair.causal.generate(**padded(texts), max_new_tokens=5, do_sample=False)
        assert_plain(monitor.result, pair.hooked, detector, texts)
    finally:
        pair.causal.set_attn_implementation("eager")
