"""A monitor's block leaves nothing behind, and what cannot be watched is refused with one sentence."""

import copy
import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.monitor.hooked_source import HookedSource
from mechmem.detect.monitor.monitor import Monitor
from mechmem.detect.monitor.ngram_filter import NgramFilter
from mechmem.detect.monitor.plans import made_plan
from tests.detect.monitor.conftest import EVERYTHING, padded, prompts, random_detector

KINDS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
TEXT = prompts(8, seed=1)[0]
GREEDY = {"max_new_tokens": 4, "do_sample": False}


def left_behind(model):
    """Hooks of any kind, and what was put on the model itself."""
    hooks = [name for name, module in model.named_modules() for kind in KINDS if getattr(module, kind, None)]
    return hooks + [name for name in ("generate",) if name in vars(model)]


@pytest.fixture(params=["causal", "hooked"])
def library(request):
    return request.param


@pytest.fixture
def pair(twins):
    return twins("gpt_neo")


@pytest.fixture
def model(pair, library):
    return getattr(pair, library)


def generate(model, library, **options):
    if library == "causal":
        return model.generate(TEXT[None], **GREEDY | options)
    return model.generate(TEXT[None], 4, do_sample=False, stop_at_eos=False, verbose=False)


def test_after_the_block_the_model_is_as_before(pair, model, library):
    monitor = Monitor(random_detector(pair.hooked, EVERYTHING), model, "steer", heads=["L1H1"], neurons=[(0, 1)])
    assert not left_behind(model)
    before = generate(model, library)
    for _ in range(2):
        with monitor:
            assert left_behind(model)
            generate(model, library)
        assert not left_behind(model)
    assert torch.equal(before, generate(model, library))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_an_exception_in_generate(error, pair, model, library):
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise error("in the middle")

    handle = (model.lm_head if library == "causal" else model.unembed).register_forward_hook(fail)
    monitor = Monitor(random_detector(pair.hooked, EVERYTHING), model)
    with pytest.raises(error, match="in the middle"), monitor:
        generate(model, library)
    handle.remove()
    assert not left_behind(model)
    with pytest.raises(InputError, match="got no generation yet"):
        _ = monitor.result
    with monitor:
        generate(model, library)
    assert monitor.result.sizes == {"row": 1, "k": 4}


def test_a_generation_that_fails_does_not_spoil_the_next_of_the_same_block(pair, model, library):
    monitor = Monitor(random_detector(pair.hooked), model)
    with monitor:
        expected = generate(model, library)
        score = monitor.result.score.values
        with pytest.raises(InputError, match="need at most the context"):
            model.generate(torch.full((1, 70), 9), max_new_tokens=2)
        assert torch.equal(generate(model, library), expected)
    np.testing.assert_array_equal(monitor.result.score, score)


def test_no_hook_is_left_where_the_block_cannot_begin(pair):
    pair.causal.set_attn_implementation("eager")
    detector = random_detector(pair.hooked, EVERYTHING)
    monitor = Monitor(detector, pair.causal)
    implementation = pair.causal.config._attn_implementation
    pair.causal.config._attn_implementation = "sdpa"
    try:
        with pytest.raises(InputError, match='need eager attention.*set_attn_implementation\\("eager"\\)'), monitor:
            pass
    finally:
        pair.causal.config._attn_implementation = implementation
    assert not left_behind(pair.causal)
    with monitor:
        pass


def test_between_two_tokens_of_a_stream_nothing_is_on_the_model(pair, model):
    monitor = Monitor(random_detector(pair.hooked), model, "steer", heads=["L1H1"])
    stream: Any = monitor.stream(TEXT, 6)
    for token in stream:
        assert not left_behind(model)
        if token.k == 2:
            break
    stream.close()
    assert monitor.result.sizes == {"row": 1, "k": 3}
    assert (monitor.result.token >= 0).all()


def test_monitors_do_not_nest(pair, model):
    detector = random_detector(pair.hooked)
    monitor = Monitor(detector, model)
    with monitor:
        for other in (monitor, Monitor(detector, model)):
            with pytest.raises(InputError, match="watched by a monitor already; need one at a time"), other:
                pass
    assert not left_behind(model)
    with Monitor(detector, model):
        pass


def test_a_monitor_watches_no_other_model(pair):
    monitor = Monitor(random_detector(pair.hooked), pair.causal)
    other = copy.deepcopy(pair.causal)
    with monitor, pytest.raises(InputError, match="got tokens that this monitor does not watch; need its own model's"):
        other.generate(TEXT[None], logits_processor=[monitor.logits_processor], **GREEDY)
    with pytest.raises(InputError, match="in its block: with monitor: model.generate"):
        pair.causal.generate(TEXT[None], stopping_criteria=[monitor.stopping_criteria], **GREEDY)


def test_forwards_in_the_block_that_are_no_generation_count_for_nothing(pair, model, library):
    monitor = Monitor(random_detector(pair.hooked), model)
    with monitor:
        generate(model, library)
        score = monitor.result.score.values
        with torch.no_grad():
            model(TEXT[None])
        generate(model, library)
    np.testing.assert_array_equal(monitor.result.score, score)


def test_threads_wait_for_the_block(pair, model):
    detector, order = random_detector(pair.hooked), []

    def second():
        try:
            list(Monitor(detector, model, "steer", heads=["L1H1"]).stream(TEXT, 2))
        finally:
            order.append("stream")

    with Monitor(detector, model):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        order.append("block")
    thread.join(20)
    assert order == ["block", "stream"]


@pytest.mark.parametrize(("option", "value"), [
    ("guidance_scale", 1.5), ("prompt_lookup_num_tokens", 2), ("prefill_chunk_size", 4),
])  # fmt: skip
def test_ways_of_decoding_that_are_not_watched_are_refused(option, value, pair):
    with Monitor(random_detector(pair.hooked), pair.causal), pytest.raises(InputError, match=f"omit {option}"):
        pair.causal.generate(TEXT[None], **GREEDY, **{option: value})
    assert not left_behind(pair.causal)


def test_dropout_and_right_padding_and_embeddings_are_refused(pair):
    causal, detector = pair.causal, random_detector(pair.hooked)
    with Monitor(detector, causal):
        causal.train()
        with pytest.raises(InputError, match="training mode.*need model.eval"):
            causal.generate(TEXT[None], **GREEDY)
        causal.eval()
        right = {"input_ids": TEXT[None], "attention_mask": torch.tensor([[1] * 6 + [0] * 2])}
        with pytest.raises(InputError, match="need it at the left: tokenizer.padding_side"):
            causal.generate(**right, **GREEDY)
        with pytest.raises(InputError, match="got a prompt without token ids"):
            causal.generate(inputs_embeds=causal.get_input_embeddings()(TEXT[None]), **GREEDY)
    with Monitor(detector, pair.hooked), pytest.raises(InputError, match="got a prompt without token ids"):
        pair.hooked.generate(pair.hooked.embed(TEXT[None]), 3, stop_at_eos=False, return_type="tokens", verbose=False)


def test_steering_beams_is_refused(pair):
    monitor = Monitor(random_detector(pair.hooked), pair.causal, "steer", heads=["L1H1"])
    with monitor, pytest.raises(InputError, match="'steer' with beam search"):
        pair.causal.generate(TEXT[None], num_beams=2, **GREEDY)


def test_states_that_are_not_finite_are_refused(pair, model, library):
    broken = copy.deepcopy(model)
    norm = broken.transformer.ln_f if library == "causal" else broken.ln_final
    parameter = norm.weight if library == "causal" else norm.w
    parameter.data[3] = torch.nan
    with Monitor(random_detector(pair.hooked), broken), pytest.raises(InputError, match="need finite"):
        generate(broken, library)
    assert not left_behind(broken)


def test_another_model_precision_or_tokenizer_is_refused(pair, library, twins):
    detector, model = random_detector(pair.hooked), copy.deepcopy(getattr(pair, library))
    Monitor(detector, model)
    with pytest.raises(InputError, match="got a detector of a model in float32 for one in bfloat16"):
        Monitor(detector, copy.deepcopy(model).to(torch.bfloat16))
    embedding = model.get_input_embeddings().weight if library == "causal" else model.W_E
    embedding.data[0, 0] += 1e-3
    with pytest.raises(InputError, match="got a detector of another model of the same shape"):
        Monitor(detector, model)
    identity = dataclasses.replace(detector.identity, d_vocab=54)
    with pytest.raises(InputError, match="54 tokens for one with 3, 24 and 53"):
        Monitor(dataclasses.replace(detector, identity=identity), getattr(pair, library))
    assert isinstance(Monitor(detector, getattr(twins("gpt_neo"), library)), Monitor)


def test_what_is_no_detector_is_refused(pair):
    for wrong in ("folder", None):
        with pytest.raises(InputError, match="as detector; need a Detector: mechmem.Detector.load"):
            made_plan(wrong, HookedSource(pair.hooked), "flag", 0.1, {})


def test_what_is_no_model_is_refused(pair):
    detector = random_detector(pair.hooked)
    for wrong in (None, torch.nn.Linear(2, 2), pair.causal.transformer):
        with pytest.raises(InputError, match="need a HookedTransformer, or one of transformers' own"):
            Monitor(detector, wrong)


def test_options_are_checked_when_the_monitor_is_made(pair):
    detector, model = random_detector(pair.hooked), pair.hooked
    paragraphs = Paragraphs(torch.randint(0, 53, (3, 20)), prefix_len=10)

    def refused(sentence, *args, **options):
        with pytest.raises(InputError, match=sentence):
            Monitor(detector, model, *args, **options)

    refused("got action 'halt'; need one of flag, stop, block, steer", "halt")
    refused("action 'flag' does not use memorized, n; omit them", memorized=paragraphs, n=3)
    refused("action 'stop' does not use heads; omit it", "stop", heads=["L0H0"])
    refused("action 'block' does not use factor", "block", memorized=paragraphs, factor=0.0)
    refused("need the Paragraphs whose n-grams are blocked", "block")
    refused("got n-grams of 21 tokens and 3 paragraphs of 20", "block", memorized=paragraphs, n=21)
    refused("got n=4 and a filter of 5-grams; omit n", "block", memorized=NgramFilter.of(paragraphs, n=5), n=4)
    refused("'steer' without heads or neurons", "steer")
    refused("need \\(layer, head\\) pairs, layer below 3 and head below 3", "steer", heads=["L0H3"])
    refused("need \\(layer, neuron\\) pairs.*neuron below 40", "steer", neurons=[(0, 40)])
    refused("got 0.0 as false_alarms", false_alarms=0.0)
    choice = FeatureChoice(("output", "gradient"))
    offline = dataclasses.replace(detector, choice=choice)
    with pytest.raises(InputError, match="reads gradient, which is not computed while decoding"):
        Monitor(offline, model)


def test_prompts_of_a_stream_are_checked(pair, model):
    monitor = Monitor(random_detector(pair.hooked), model)
    for prompt, new, sentence in [
        ([], 3, "got list as prompt; need text, or the ids of one prompt"),
        (torch.rand(3), 3, "got Tensor of shape \\[3\\] as prompt"),
        (torch.ones(2, 3).long(), 3, "got Tensor of shape \\[2, 3\\] as prompt"),
        (Paragraphs(torch.ones(1, 4).long(), 2), 3, "got Paragraphs as prompt; .* paragraphs.prefix\\[0\\]"),
        ([-1, 2], 3, "got the token id -1; need ids from 0 to 52"),
        ("", 3, "got a prompt without text"),
        (TEXT, 57, "8 tokens and 57 to say for a model with a context of 64"),
        (torch.tensor([3, 53]), 3, "token id 53"),
    ]:
        with pytest.raises(InputError, match=sentence):
            monitor.stream(prompt, new)
    # transformers' model has no tokenizer: that of the detector's fingerprint is known from loading the other one.
    texts = [token.text for token in monitor.stream("t09 t12 t40", 3)]
    assert texts == [f"t{token.id:02}" for token in monitor.stream([9, 12, 40], 3)]
    identity = dataclasses.replace(monitor.detector.identity, tokenizer=None)
    unknown = Monitor(dataclasses.replace(monitor.detector, identity=identity), pair.causal)
    with pytest.raises(InputError, match="got text for a model without a tokenizer"):
        unknown.stream("t09", 3)


def test_a_null_of_few_texts_never_raises_an_alarm(pair):
    detector = random_detector(pair.hooked, null=np.full(98, -50.0))
    Monitor(detector, pair.causal, false_alarms=0.02)
    with pytest.warns(UserWarning, match="98 clusters; need 99 for a rate of false alarms of 0.01: it never"):
        monitor = Monitor(detector, pair.causal)
    assert monitor.threshold == np.inf
    with monitor:
        pair.causal.generate(**padded(prompts(8, 9)), **GREEDY)
    assert not monitor.result.flagged.any()
    assert monitor.result.flagged_at.isnull().all()
