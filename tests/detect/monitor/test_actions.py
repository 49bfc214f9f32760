"""Actions act where they should and nowhere else: rows without an alarm say the very same tokens."""

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.detect.monitor.monitor import Monitor
from mechmem.detect.monitor.ngram_filter import NgramFilter
from tests.detect.monitor.conftest import END, dividing_detector, padded, plain_scores, prompts, random_detector

NEW = 10


def greedy(pair, texts, library="causal", **options):
    """Own tokens of each text, [row, k]."""
    if library == "causal":
        ids = pair.causal.generate(**padded(texts), max_new_tokens=NEW, do_sample=False, **options)
    else:
        ids = pair.hooked.generate(
            padded(texts)["input_ids"], NEW, stop_at_eos=True, eos_token_id=END, do_sample=False, verbose=False
        )
    return ids[:, max(map(len, texts)) :].numpy()


def watched(pair, texts, library, action, detector, **options):
    model = pair.causal if library == "causal" else pair.hooked
    given = {"eos_token_id": END} if library == "causal" else {}
    with Monitor(detector, model, action, false_alarms=0.1, **options) as monitor:
        own = greedy(pair, texts, library, **given)
    return own, monitor.result


@pytest.mark.parametrize("library", ["causal", "hooked"])
@pytest.mark.parametrize("family", ["gpt_neo", "gpt_neox"])
def test_stop_ends_the_rows_with_an_alarm_and_no_other(family, library, twins):
    pair, texts = twins(family), prompts(9, 5, 12, 7, 8, 6, seed=6)
    detector = dividing_detector(pair, texts, NEW)
    plain, flags = watched(pair, texts, library, "flag", detector)
    own, result = watched(pair, texts, library, "stop", detector)
    alarms, cut = result.flagged_at.values, 0
    assert 0 < np.isfinite(alarms).sum() < len(texts)
    np.testing.assert_array_equal(alarms, flags.flagged_at)
    for row, alarm in enumerate(alarms):
        if np.isnan(alarm):
            length = min(own.shape[1], plain.shape[1])
            np.testing.assert_array_equal(own[row, :length], plain[row, :length])
            continue
        at = int(alarm)
        np.testing.assert_array_equal(own[row, :at], plain[row, :at])
        assert own[row, at] == END
        cut += plain[row, at] != END
        assert result.token.values[row, at] == END
        assert (result.token.values[row, at + 1 :] == -1).all()
        assert result.acted.values[row].tolist() == [k == at for k in range(result.sizes["k"])]
    assert cut, "text that would have gone on"


def test_stop_in_beam_search_lets_no_hypothesis_go_on(twins):
    pair, texts = twins("gpt_neo"), prompts(6, 9, 7, 7, seed=1)
    detector = dividing_detector(pair, texts, NEW)
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": NEW, "eos_token_id": END}
    with Monitor(detector, pair.causal, false_alarms=0.1) as flag:
        pair.causal.generate(**padded(texts), **options)
    assert (flag.result.flagged.sum("k") > 1).any(), "without it some go on"
    with Monitor(detector, pair.causal, "stop", false_alarms=0.1) as stop:
        pair.causal.generate(**padded(texts), **options)
    assert (stop.result.flagged & (stop.result.token >= 0)).sum("k").max() <= 1
    assert stop.result.flagged.any()


def test_stop_without_an_end_of_text_ends_one_row_and_refuses_several(twins):
    pair, (text,) = twins("gpt2"), prompts(9, seed=3)
    detector = random_detector(pair.hooked, threshold=-50.0)
    with Monitor(detector, pair.causal, "stop", false_alarms=0.1) as monitor:
        ids = pair.causal.generate(text[None], max_new_tokens=NEW, do_sample=False)
        assert ids.shape[1] == 10
        assert monitor.result.flagged_at.values.tolist() == [0]
        with pytest.raises(InputError, match="'stop' for 2 rows that no token ends"):
            pair.causal.generate(text.expand(2, -1), max_new_tokens=NEW, do_sample=False)
    with Monitor(detector, pair.hooked, "stop", false_alarms=0.1), pytest.raises(InputError, match="no token ends"):
        pair.hooked.generate(text[None], NEW, stop_at_eos=False, verbose=False)


def test_the_criterion_alone_ends_rows_too(twins):
    pair, (text,) = twins("gpt2"), prompts(9, seed=3)
    detector = random_detector(pair.hooked, threshold=-50.0)
    with Monitor(detector, pair.causal, false_alarms=0.1) as monitor:
        ids = pair.causal.generate(
            text[None], max_new_tokens=NEW, do_sample=False, logits_processor=[monitor.logits_processor],
            stopping_criteria=[monitor.stopping_criteria],
        )  # fmt: skip
    assert ids.shape[1] == 10


def test_a_stopped_stream_ends_with_a_mark(twins):
    pair, texts = twins("gpt_neo"), prompts(9, 5, 12, 7, 8, 6, seed=6)
    detector = dividing_detector(pair, texts, NEW)
    marks = []
    for text in texts:
        flagged = list(Monitor(detector, pair.hooked, false_alarms=0.1).stream(text, NEW))
        stopped = list(Monitor(detector, pair.hooked, "stop", false_alarms=0.1).stream(text, NEW))
        marks.append(stopped[-1].id is None)
        if marks[-1]:
            assert stopped[-1].flagged and stopped[-1].text == ""
            assert not any(token.flagged for token in stopped[:-1])
            assert [token.id for token in stopped[:-1]] == [token.id for token in flagged[: len(stopped) - 1]]
        else:
            assert stopped == flagged
    assert 0 < sum(marks) < len(marks)


def ngrams(ids, n):
    return {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}


def recited(texts, own, n):
    """Texts with what the model says by itself, as paragraphs, and the n-grams in them."""
    whole = [torch.cat([text, torch.as_tensor(row)]) for text, row in zip(texts, own, strict=True)]
    length = min(map(len, whole))
    memorized = Paragraphs(torch.stack([ids[-length:] for ids in whole]), prefix_len=length - NEW)
    return memorized, set().union(*(ngrams(row.tolist(), n) for row in memorized.tokens))


def completed(text, own, n, known):
    """n-grams of the set that end in an own token."""
    ids = [*text.tolist(), *own.tolist()]
    return sum(tuple(ids[stop - n : stop]) in known for stop in range(max(n, len(text) + 1), len(ids) + 1))


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("decoding", [
    {"do_sample": False}, {"do_sample": True, "top_k": 8}, {"num_beams": 3, "do_sample": False},
])  # fmt: skip
def test_block_completes_no_ngram_however_the_text_is_decoded(decoding, n, twins):
    pair, texts = twins("gpt_neo"), prompts(9, 5, 12, seed=2)
    options = {"max_new_tokens": NEW, **decoding}
    torch.manual_seed(0)
    plain = pair.causal.generate(**padded(texts), **options)[:, 12:]
    memorized, known = recited(texts[:2], plain[:2], n)
    assert sum(completed(text, own, n, known) for text, own in zip(texts, plain, strict=True)) > 0
    torch.manual_seed(0)
    detector = random_detector(pair.hooked, threshold=1e9)
    with Monitor(detector, pair.causal, "block", memorized=memorized, n=n) as monitor:
        blocked = pair.causal.generate(**padded(texts), **options)[:, 12:]
    assert sum(completed(text, own, n, known) for text, own in zip(texts, blocked, strict=True)) == 0
    assert monitor.result.acted.any() and not monitor.result.flagged.any()


@pytest.mark.parametrize("library", ["causal", "hooked", "stream"])
def test_block_leaves_other_rows_as_they_are(library, twins):
    pair, texts = twins("gpt_neo"), prompts(9, 5, 12, seed=2)
    memorized, known = recited(texts[:1], greedy(pair, texts[:1]), 4)
    detector = random_detector(pair.hooked, threshold=1e9)
    plain = greedy(pair, texts, library, **({"eos_token_id": END} if library == "causal" else {}))
    if library == "stream":
        monitor = Monitor(detector, pair.hooked, "block", memorized=NgramFilter.of(memorized, n=4))
        plain = greedy(pair, texts)
        own = [np.array([token.id for token in monitor.stream(text, NEW)]) for text in texts]
    else:
        own, _ = watched(pair, texts, library, "block", detector, memorized=memorized, n=4)
    assert completed(texts[0], plain[0], 4, known) > 0
    for row, text in enumerate(texts):
        assert completed(text, own[row], 4, known) == 0
        if not completed(text, plain[row], 4, known):
            length = min(len(own[row]), len(plain[row]))
            np.testing.assert_array_equal(own[row][:length], plain[row][:length])


def test_when_every_token_is_blocked_it_says_so(twins):
    pair, (text,) = twins("gpt_neo"), prompts(9)
    memorized = Paragraphs(torch.arange(53)[None], prefix_len=1)
    monitor = Monitor(random_detector(pair.hooked), pair.hooked, "block", memorized=memorized, n=1)
    with pytest.raises(InputError, match="every token would complete one of the 53 n-grams of 1 tokens"):
        next(monitor.stream(text, 3))


def steered_scores(hooked, detector, text, own, alarm, heads, neurons, factor):
    """The slow loop, with hooks that scale every position from the alarm on."""

    def scaling(units):
        def scale(activation, hook):  # noqa: ARG001
            activation[:, len(text) + int(alarm) :, units] *= factor
            return activation

        return scale

    hooks = [(f"blocks.{layer}.attn.hook_z", scaling(head)) for layer, head in heads]
    hooks += [(f"blocks.{layer}.mlp.hook_post", scaling(neuron)) for layer, neuron in neurons]
    with hooked.hooks(fwd_hooks=hooks):
        return plain_scores(hooked, detector, text, torch.as_tensor(own))[0]


@pytest.mark.parametrize(("family", "library", "factor"), [
    ("gpt2", "causal", None), ("gpt_neo", "causal", -2.0), ("gpt_neox", "causal", None), ("gpt_neo", "hooked", None),
    ("gpt_neox", "hooked", -2.0), ("gpt_neo", "uncached", None),
])  # fmt: skip
def test_steer_scales_the_rows_with_an_alarm_from_their_next_token_on(family, library, factor, twins):
    pair, texts = twins(family), prompts(8, 8, 8, 8, 8, seed=5)
    detector = dividing_detector(pair, texts, NEW)
    heads, neurons = ["L0H1", (1, 2)], [(1, 3), (2, 39), (2, 5)]
    model = pair.hooked if library == "hooked" else pair.causal
    options = {"use_cache": False} if library == "uncached" else {}
    base = "hooked" if library == "hooked" else "causal"
    plain = greedy(pair, texts, base, **options)
    with Monitor(detector, model, "steer", false_alarms=0.1, heads=heads, neurons=neurons, factor=factor) as monitor:
        own = greedy(pair, texts, base, **options)
    result = monitor.result
    alarms, changed = result.flagged_at.values, 0
    assert 0 < np.isfinite(alarms).sum() < len(texts)
    for row, alarm in enumerate(alarms):
        said = result.token.values[row]
        said = said[said >= 0]
        if np.isnan(alarm):
            np.testing.assert_array_equal(own[row], plain[row])
            continue
        expected = steered_scores(
            pair.hooked, detector, texts[row], said, alarm, [(0, 1), (1, 2)], neurons, factor or 0.0
        )
        np.testing.assert_allclose(result.score.values[row, : len(said)], expected, atol=2e-4)
        changed += not np.array_equal(own[row], plain[row])
        assert result.acted.values[row, : len(said)].tolist() == [bool(k >= alarm) for k in range(len(said))]
    assert changed


def test_a_steered_stream_is_a_steered_batch(twins):
    pair, texts = twins("gpt_neo"), prompts(8, 8, 8, 8, 8, seed=5)
    detector = dividing_detector(pair, texts, NEW)
    with Monitor(detector, pair.causal, "steer", false_alarms=0.1, heads=["L0H1", "L2H2"]) as batch:
        own = greedy(pair, texts)
    row = int(np.flatnonzero(np.isfinite(batch.result.flagged_at.values))[0])
    for model in (pair.hooked, pair.causal):
        monitor = Monitor(detector, model, "steer", false_alarms=0.1, heads=["L0H1", "L2H2"])
        for _ in range(2):
            said = list(monitor.stream(texts[row], NEW))
            assert [token.id for token in said] == own[row, : len(said)].tolist()
            scores = batch.result.score.values[row, : len(said)]
            np.testing.assert_allclose([token.score for token in said], scores, atol=2e-4)


@pytest.mark.parametrize("library", ["causal", "hooked"])
def test_flag_changes_nothing(library, twins):
    pair, texts = twins("gpt_neo"), prompts(8, 8, 8, seed=5)
    plain = greedy(pair, texts, library)
    own, result = watched(pair, texts, library, "flag", random_detector(pair.hooked, threshold=-50.0))
    length = min(own.shape[1], plain.shape[1])
    np.testing.assert_array_equal(own[:, :length], plain[:, :length])
    assert result.flagged.all() and not result.acted.any()
