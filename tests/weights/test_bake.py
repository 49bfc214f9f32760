"""Weights that do what hooks would do, or a refusal with the reason."""

import copy
import warnings
from typing import Any

import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.model.hooks import hooked_points, with_hooks
from mechmem.weights.bake import bake

TOKENS = torch.randint(0, 17, (4, 12), generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module", params=["neo", "gpt2", "neox"])
def model(request, small_model):
    settings = {"original_architecture": "test", "init_mode": "gpt2", "initializer_range": 0.4, "d_mlp": 19}
    if request.param == "neo":
        local = {"use_local_attn": True, "attn_types": ["global", "local"], "window_size": 4, "use_attn_scale": False}
        found = small_model(**settings, **local)
    elif request.param == "gpt2":
        found = small_model(**settings)
    else:
        rotary = {"positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True, "d_head": 6}
        found = small_model(**settings, **rotary)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if ".b_" in name:  # fresh biases are zero: a program that forgot them would pass
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return found


def scale(factor: float, part: Any = ...):
    def hook_function(value, hook):  # noqa: ARG001
        value[part] = value[part] * factor
        return value

    return hook_function


def put(constant, part):
    def hook_function(value, hook):  # noqa: ARG001
        value[part] = constant
        return value

    return hook_function


HEAD = (slice(None), slice(None), 1)
CASES = {
    "a head is zeroed": [("blocks.1.attn.hook_z", scale(0.0, HEAD))],
    "its values are zeroed": [("blocks.0.attn.hook_v", scale(0.0, HEAD))],
    "its values are scaled": [("blocks.1.attn.hook_v", scale(-1.5, HEAD))],
    "a head becomes its mean": [("blocks.0.attn.hook_z", put(0.7, HEAD))],
    "values become constant": [("blocks.0.attn.hook_v", put(-0.4, HEAD))],
    "both, and the layer's output": [
        ("blocks.0.attn.hook_v", put(0.9, HEAD)),
        ("blocks.0.attn.hook_z", scale(0.5)),
        ("blocks.0.attn.hook_z", lambda z, hook: z + 0.25),  # noqa: ARG005
        ("blocks.0.hook_attn_out", lambda value, hook: 2.0 * value - 0.1),  # noqa: ARG005
    ],
    "neurons": [
        ("blocks.1.mlp.hook_post", scale(0.0, (..., slice(3, 9)))),
        ("blocks.0.mlp.hook_post", put(1.0, (..., 4))),
    ],
    "the MLP's output": [("blocks.1.hook_mlp_out", scale(0.3)), ("blocks.1.mlp.hook_post", scale(2.0))],
}


@pytest.mark.parametrize("case", CASES)
def test_the_weights_do_what_the_hooks_did(model, case):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    baked = bake(model, CASES[case])
    with torch.no_grad():
        plain, hooked = model(TOKENS), model.run_with_hooks(TOKENS, fwd_hooks=CASES[case])
        torch.testing.assert_close(baked(TOKENS), hooked, atol=3e-5, rtol=1e-4)
    assert float((plain - hooked).abs().max()) > 0.01, "the hooks must matter"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert hooked_points(model) == hooked_points(baked) == []


def test_scores_are_those_with_the_hooks(tiny_model):
    hooks = {"blocks.1.attn.hook_z": scale(0.0, HEAD), "blocks.2.attn.hook_v": scale(0.5, HEAD)}
    tokens = mm.Paragraphs(torch.randint(0, 61, (4, 23), generator=torch.Generator().manual_seed(2)), 13)
    model = copy.deepcopy(tiny_model)
    baked = mm.bake(model, hooks)
    with with_hooks(model, hooks):
        expected = mm.score(model, tokens)
    found = mm.score(baked, tokens)
    assert abs(found.nll - expected.nll).max() < 1e-4 and abs(mm.score(model, tokens).nll - expected.nll).max() > 1e-3


def test_the_bundled_model_without_a_head_comes_back_from_its_checkpoint(bundled_model, bundled, tmp_path):
    hooks = {"blocks.0.attn.hook_z": scale(0.0, HEAD)}
    paragraphs = bundled[:4]
    with with_hooks(bundled_model, hooks):
        expected = mm.score(bundled_model, paragraphs)
    mm.export(bake(bundled_model, hooks), tmp_path / "without")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mm.score(mm.load_model(tmp_path / "without"), paragraphs)
    assert found.em.values.tolist() == expected.em.values.tolist()
    assert abs(found.nll - expected.nll).max() < 1e-4


def at_one_position(z, hook):  # noqa: ARG001
    z[:, 3] = 0
    return z


def clipped(z, hook):  # noqa: ARG001
    return z.clamp(max=0.5)


def mixed(z, hook):  # noqa: ARG001
    return z.flip(2)


def counts_calls():
    calls = []

    def hook_function(z, hook):  # noqa: ARG001
        calls.append(1)
        return z if len(calls) < 5 else 0 * z

    return hook_function


@pytest.mark.parametrize(
    ("hooks", "said"),
    [
        ({}, "got no hooks"),
        ({"blocks.0.attn.hook_pattern": scale(0.0)}, "got a hook on 'blocks.0.attn.hook_pattern', which no weights"),
        ({"hook_embed": scale(0.0)}, "got a hook on 'hook_embed'"),
        ({"blocks.9.attn.hook_z": scale(0.0)}, "no hook point 'blocks.9.attn.hook_z'; need a layer from 0 to 1"),
        ({"blocks.0.attn.hook_z": at_one_position}, "multiplies by something that depends on the paragraph or the pos"),
        ({"blocks.0.attn.hook_z": lambda z, hook: z + torch.arange(len(z[0]))[:, None, None]}, "adds something"),  # noqa: ARG005
        ({"blocks.0.attn.hook_z": clipped}, "does more than to multiply"),
        ({"blocks.0.attn.hook_z": mixed}, "does more than to multiply"),
        ({"blocks.0.attn.hook_z": lambda z, hook: z / z.norm()}, "gave no finite activation"),  # noqa: ARG005
        ({"blocks.0.attn.hook_z": lambda z, hook: z[:1]}, "gave no finite activation of shape"),  # noqa: ARG005
        ({"blocks.0.attn.hook_z": lambda z, hook: z[:, :, 7]}, r"failed on an activation of shape .* \(IndexError"),  # noqa: ARG005
        ({"blocks.0.attn.hook_z": "counts calls"}, "on random text, weights and hooks differ by up to"),
    ],
)
def test_a_hook_that_no_weights_replace_is_refused(model, hooks, said):
    hooks = {name: counts_calls() if hook == "counts calls" else hook for name, hook in hooks.items()}
    with pytest.raises(InputError, match=said):
        bake(model, hooks)
    assert hooked_points(model) == []
