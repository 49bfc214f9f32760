"""Features of decoding against one full forward of the hooked model at every step."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.detect.decoding.lean_steps import LeanSteps
from mechmem.detect.features.chosen_features import feature_choice, rare_tokens
from mechmem.detect.features.feature_arrays import columns_of
from mechmem.detect.features.step_features import feature_names
from mechmem.model.lean.model import LeanModel

ALL: Any = ("output", "prefix", "residual", "lens", "heads", "neurons")
KS = (0, 1, 3, 9, 10)
NEURONS, HEADS, DEPTHS = [(2, 40), (0, 7)], ["L1H2", "L0H0", "L3H1"], [4, 0, 2]
COUNTS = np.arange(61) ** 2
ASKED: dict[str, Any] = {
    "features": ALL,
    "depths": DEPTHS,
    "heads": HEADS,
    "neurons": NEURONS,
    "counts": COUNTS,
    "decoding": mm.DecodingSettings(ks=KS),
}


@pytest.fixture(scope="module")
def found(tiny_model, tiny_paragraphs) -> xr.Dataset:
    return mm.detection_features(tiny_model, tiny_paragraphs, **ASKED)


@torch.no_grad()
def full_forward(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Logits of all positions and every activation, from one run over all tokens."""
    return model.run_with_cache(tokens, padding_side="right")


def text(found: xr.Dataset, paragraphs: mm.Paragraphs, row: int, k: int) -> torch.Tensor:
    """The prefix and the first k tokens said, [1, pos]."""
    return torch.cat([paragraphs.prefix[row], torch.from_numpy(found.said.values[row, :k])])[None]


def test_every_word_is_the_first_choice_of_a_full_forward(found, tiny_model, tiny_paragraphs):
    for row in range(len(tiny_paragraphs)):
        for k in range(10):
            logits, _ = full_forward(tiny_model, text(found, tiny_paragraphs, row, k))
            assert int(logits[0, -1].argmax()) == found.said.values[row, k]


def test_activations_are_those_of_a_full_forward_at_the_newest_token(found, tiny_model, tiny_paragraphs):
    model = tiny_model
    for row in (0, 7):
        for index, k in enumerate(KS):
            logits, cache = full_forward(model, text(found, tiny_paragraphs, row, k))
            here = found.isel(paragraph=row, k=index)
            streams = [
                *(cache[f"blocks.{layer}.hook_resid_pre"] for layer in range(4)),
                cache["blocks.3.hook_resid_post"],
            ]
            for depth in DEPTHS:
                stream = streams[depth][0, -1]
                np.testing.assert_allclose(here.residual.sel(depth=depth), stream, rtol=1e-4, atol=1e-4)
                lens = model.unembed(model.ln_final(stream[None, None]))[0, 0].detach().log_softmax(-1)
                best = int(logits[0, -1].argmax())
                rank = 1 + int((lens > lens[best]).sum())
                wanted = [rank == 1, lens[best], math.log(rank), -(lens.exp() * lens).sum()]
                np.testing.assert_allclose(here.lens.sel(depth=depth), wanted, rtol=1e-4, atol=1e-4)
            for name, (layer, neuron) in zip(("2.40", "0.7"), NEURONS, strict=True):
                active = cache[f"blocks.{layer}.mlp.hook_post"][0, -1, neuron]
                np.testing.assert_allclose(here.neurons.sel(neuron=name), active, rtol=1e-4, atol=1e-4)


def test_heads_are_those_of_a_full_forward(found, tiny_model, tiny_paragraphs):
    rare = set(rare_tokens(COUNTS))
    assert 0 < len(rare) < 61 and sorted(rare) == found.rare.values.tolist()
    for row in (1, 6):
        for index, k in enumerate(KS):
            tokens = text(found, tiny_paragraphs, row, k)
            _, cache = full_forward(tiny_model, tokens)
            for name in HEADS:
                layer, head = int(name[1]), int(name[3])
                pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head, -1]
                written = cache[f"blocks.{layer}.attn.hook_z"][0, -1, head] @ tiny_model.blocks[layer].attn.W_O[head]
                entropy = -sum(float(p) * math.log(p) for p in pattern if p > 0)
                on_rare = sum(float(p) for p, token in zip(pattern, tokens[0], strict=True) if int(token) in rare)
                wanted = [written.detach().norm(), entropy, pattern[:13].sum(), on_rare]
                statistics = found.heads.isel(paragraph=row, k=index).sel(head_name=name)
                np.testing.assert_allclose(statistics, wanted, rtol=1e-4, atol=1e-4)
    # Local layers see 19 tokens: the control that the window counts.
    assert float(found.heads.sel(k=10, head_name="L1H2", head_statistic="on_prefix").max()) < 0.999


def test_the_prefix_and_what_was_said_are_scored_under_the_models_own_distribution(found, tiny_model, tiny_paragraphs):
    for row in (0, 5):
        tokens = text(found, tiny_paragraphs, row, 10)
        logs = full_forward(tiny_model, tokens)[0][0].double().log_softmax(-1)
        nll, z = [], []
        for column, token in enumerate(tokens[0, 1:].tolist()):
            p = logs[column].exp()
            mean = float((p * logs[column]).sum())
            spread = float((p * (logs[column] - mean) ** 2).sum()) ** 0.5
            nll.append(-float(logs[column, token]))
            z.append((float(logs[column, token]) - mean) / spread)
        np.testing.assert_allclose(found.said_nll[row], nll[12:], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.said_z[row], z[12:], rtol=1e-3, atol=1e-4)
        lowest = [np.mean(sorted(values)[:2]) for values in ([-x for x in nll[:12]], z[:12])]
        wanted = [np.mean(nll[:12]), np.mean(nll[:12][-16:]), *lowest]
        np.testing.assert_allclose(found.prefix[row], wanted, rtol=1e-4, atol=1e-4)
        mean = found.output.sel(statistic="mean_nll").values[row]
        np.testing.assert_allclose(mean[1:], [np.mean(nll[12 : 12 + k]) for k in KS[1:]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampled", [False, True])
def test_batches_and_the_choice_of_paragraphs_change_nothing(tiny_model, tiny_paragraphs, sampled):
    decoding = mm.DecodingSettings(ks=KS, temperature=0.8 if sampled else 0.0, top_k=9 if sampled else None, seed=3)
    asked: dict[str, Any] = ASKED | {"decoding": decoding}
    together = mm.detection_features(tiny_model, tiny_paragraphs, **asked)
    by_threes = mm.detection_features(tiny_model, tiny_paragraphs, **asked, batch_size=3)
    xr.testing.assert_allclose(together, by_threes, rtol=1e-4, atol=1e-4)
    some = mm.detection_features(tiny_model, tiny_paragraphs[[8, 2]], **asked)
    xr.testing.assert_allclose(together.isel(paragraph=[8, 2]), some, rtol=1e-4, atol=1e-4)
    assert together.paragraph.values.tolist() == tiny_paragraphs.ids.tolist()


def test_em_and_text_are_those_of_scoring(bundled_model, bundled):
    rows = bundled[::200]
    found = mm.detection_features(bundled_model, rows, features="output", decoding=mm.DecodingSettings(ks=(0,)))
    em = mm.score(bundled_model, rows).em
    assert 50 in em and 0 in em
    np.testing.assert_array_equal(found.em, em)
    np.testing.assert_array_equal(found.said.values[em == 50], rows.continuation.numpy()[em == 50])


def with_a_hook(model: Any) -> Any:
    """A copy whose hook changes nothing, so that it runs as it is."""
    copied = copy.deepcopy(model)
    copied.add_hook("blocks.0.hook_resid_pre", lambda stream, hook: stream)  # noqa: ARG005
    return copied


def test_a_model_with_hooks_decodes_as_without_where_they_change_nothing(found, tiny_model, tiny_paragraphs):
    hooked = mm.detection_features(with_a_hook(tiny_model), tiny_paragraphs, **ASKED)
    xr.testing.assert_allclose(found, hooked, rtol=1e-4, atol=1e-4)


def test_ends_of_text_in_the_prefix_are_text_for_models_with_hooks_too(tiny_model, tiny_paragraphs, monkeypatch):
    words = {"<|endoftext|>": 60} | {f"w{number}": number for number in range(60)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    monkeypatch.setattr(tiny_model, "tokenizer", tokenizer)
    tokens = tiny_paragraphs.tokens.clone()
    tokens[:, :3] = tokens[:, 10:13] = 60
    for side in ("left", "right"):
        tokenizer.padding_side = side
        with_ends = mm.Paragraphs(tokens, prefix_len=13)
        plain = mm.detection_features(tiny_model, with_ends)
        hooked = mm.detection_features(with_a_hook(tiny_model), with_ends)
        xr.testing.assert_allclose(plain, hooked, rtol=1e-4, atol=1e-4)


def test_hooks_act_on_every_step(found, tiny_model, tiny_paragraphs):
    hooked = copy.deepcopy(tiny_model)

    def silence(z: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001
        z[:, :, 1] = 0.0
        return z

    hooked.add_hook("blocks.3.attn.hook_z", silence)
    result = mm.detection_features(hooked, tiny_paragraphs, **ASKED)
    assert (result.heads.sel(head_name="L3H1", head_statistic="norm") == 0).all()
    assert (found.heads.sel(head_name="L3H1", head_statistic="norm") > 0).all()
    for row in (2, 9):
        logits, _ = full_forward(hooked, text(result, tiny_paragraphs, row, 9))
        assert int(logits[0, -1].argmax()) == result.said.values[row, 9]


ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}
OTHERS: dict[str, dict[str, Any]] = {
    "rotary, parallel": {"positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True},
    "RMS, gated": {
        "normalization_type": "RMS",
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
    },
    "alibi": {"positional_embedding_type": "alibi"},
    "shortformer": {"positional_embedding_type": "shortformer"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(name, small_model):
    model = small_model(d_head=6, d_model=12, n_ctx=32, init_weights=True, initializer_range=0.5, **OTHERS[name])
    random = torch.Generator().manual_seed(7)
    paragraphs = mm.Paragraphs(torch.randint(0, 17, (5, 20), generator=random), prefix_len=9)
    result = mm.detection_features(model, paragraphs, decoding=mm.DecodingSettings(ks=(0, 5)))
    for row in range(5):
        logits, cache = full_forward(model, text(result, paragraphs, row, 5))
        assert int(logits[0, -1].argmax()) == result.said.values[row, 5]
        stream = cache["blocks.1.hook_resid_pre"][0, -1]
        np.testing.assert_allclose(result.residual.sel(k=5, depth=1)[row], stream, rtol=1e-4, atol=1e-4)


def test_columns_are_in_the_order_that_a_running_detector_gives(found, tiny_model):
    choice = feature_choice(tiny_model, ALL, DEPTHS, HEADS, NEURONS, COUNTS)
    matrix, names = columns_of(found, choice)
    assert matrix.shape == (11, len(KS), len(names)) and matrix.dtype == np.float32
    assert names == feature_names(choice, 21)
    for name, value in zip(names, matrix[4, 2], strict=True):
        here = found.isel(paragraph=4, k=2)
        group, label = name.split(":") if ":" in name else ("neuron", name.removeprefix("neuron"))
        wanted = {
            "o": lambda label=label, here=here: here.output.sel(statistic=label),
            "p": lambda label=label, here=here: here.prefix.sel(prefix_statistic=label),
            "r": lambda g=group, label=label, here=here: here.residual.sel(depth=int(g[8:]), d_model=int(label)),
            "l": lambda g=group, label=label, here=here: here.lens.sel(depth=int(g[4:]), lens_statistic=label),
            "L": lambda g=group, label=label, here=here: here.heads.sel(head_name=g, head_statistic=label),
            "n": lambda label=label, here=here: here.neurons.sel(neuron=label),
        }[name[0]]()
        assert float(wanted) == float(value), name


def test_columns_of_a_part(found, tiny_model):
    choice = feature_choice(tiny_model, ("lens", "heads"), [2, 4], ["L3H1"])
    matrix, names = columns_of(found, choice)
    assert names[:5] == ("lens2:agrees", "lens2:logprob", "lens2:log_rank", "lens2:entropy", "lens4:agrees")
    assert names[8:] == ("L3H1:norm", "L3H1:entropy", "L3H1:on_prefix")
    np.testing.assert_array_equal(matrix[..., 6], found.lens.sel(depth=4, lens_statistic="log_rank"))
    np.testing.assert_array_equal(matrix[..., 10], found.heads.sel(head_name="L3H1", head_statistic="on_prefix"))
    with pytest.raises(InputError, match=r"got depth \[1\]; these features have 4, 0, 2"):
        columns_of(found, feature_choice(tiny_model, "residual", [1]))
    with pytest.raises(InputError, match="got features without lens"):
        columns_of(found.drop_vars("lens"), choice)


def test_a_step_after_the_last_token_said(tiny_model, tiny_paragraphs):
    decoding = mm.DecodingSettings(ks=(2, 4), max_new_tokens=4)
    result = mm.detection_features(tiny_model, tiny_paragraphs, decoding=decoding)
    longer = mm.detection_features(
        tiny_model, tiny_paragraphs, decoding=mm.DecodingSettings(ks=(2, 4), max_new_tokens=7)
    )
    xr.testing.assert_allclose(result[["output", "residual"]], longer[["output", "residual"]])
    xr.testing.assert_allclose(result[["said", "said_nll"]], longer[["said", "said_nll"]].isel(pos=slice(4)))
    # The last token is scored where no step follows it, too.
    shorter = mm.detection_features(
        tiny_model, tiny_paragraphs, decoding=mm.DecodingSettings(ks=(2,), max_new_tokens=4)
    )
    xr.testing.assert_allclose(shorter[["said_nll", "said_z"]], longer[["said_nll", "said_z"]].isel(pos=slice(4)))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "group": ({"features": "sparkle"}, "got features 'sparkle'; need one of output, prefix, residual"),
    "twice": ({"features": ("output", "output")}, "need at least one, each once"),
    "depth": ({"depths": [5]}, r"got depths \[5\]; need numbers from 0 to 4, each once"),
    "unused": ({"features": "output", "depths": [1]}, "got depths, which the features output do not use; leave it out"),
    "head": ({"features": "heads", "heads": ["L9H0"]}, r"got heads \['L9H0'\]; need \(layer, head\) pairs"),
    "neuron": ({"features": "neurons"}, r'the features "neurons" need \(layer, neuron\) pairs, layer below 4'),
    "context": (
        {"decoding": mm.DecodingSettings(max_new_tokens=116)},
        "got prefixes of 13 tokens and 116 tokens to say for a model with a context of 128; need at most the context",
    ),
    "ks": ({"decoding": mm.DecodingSettings(ks=(0, 11))}, "got ks up to 11 where 10 tokens are said; need at most 10"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused(name, tiny_model, tiny_paragraphs):
    arguments, sentence = REFUSED[name]
    with pytest.raises(InputError, match=sentence):
        mm.detection_features(tiny_model, tiny_paragraphs, **arguments)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match="got top_k=5 with temperature 0"):
        mm.DecodingSettings(top_k=5)
    with pytest.raises(InputError, match=r"got ks=\(3, 1\); need numbers of tokens in rising order"):
        mm.DecodingSettings(ks=(3, 1))


def test_an_answer_larger_than_memory_is_refused_before_anything_runs(tiny_model, tiny_paragraphs, monkeypatch):
    monkeypatch.setattr("mechmem.localize.capture_room.SHARE", 1e-9)
    monkeypatch.setattr(LeanSteps, "step", None)
    with pytest.raises(InputError, match="the answer takes .* of memory is free"):
        mm.detection_features(tiny_model, tiny_paragraphs)


@pytest.mark.parametrize("features", [("output",), ("neurons",)])
def test_states_that_are_not_finite_are_refused(tiny_model, tiny_paragraphs, features):
    broken = copy.deepcopy(tiny_model)
    with torch.no_grad():
        broken.blocks[2].mlp.W_out[3, 4] = torch.nan
    neurons = [(0, 1)] if features == ("neurons",) else None
    for model in (broken, with_a_hook(broken)):
        with pytest.raises(InputError, match="NaN or infinite values"):
            mm.detection_features(model, tiny_paragraphs, features=features, neurons=neurons)


def test_the_model_is_left_as_it_is(tiny_model, tiny_paragraphs):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    mm.detection_features(tiny_model, tiny_paragraphs, **ASKED)
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert LeanModel(tiny_model)  # no hook is left: it would be refused
