import copy

import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.model.hooks import frozen, recording, with_hooks

Z = "blocks.1.attn.hook_z"


def double(activation: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001
    return 2 * activation


def zero(activation: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001
    return torch.zeros_like(activation)


def handles(model) -> list[tuple]:
    """Every hook there is, as TransformerLens and as torch know it."""
    return [
        (name, [id(h) for h in p.fwd_hooks], [id(h) for h in p.bwd_hooks], list(p._forward_hooks.items()))
        for name, p in model.hook_dict.items()
    ]


@pytest.fixture
def hooked(tiny_model):
    """A model with hooks of its owner: one plain, one permanent, one in an open context of TransformerLens."""
    model = copy.deepcopy(tiny_model)
    model.add_hook(Z, double)
    model.add_perma_hook("blocks.2.hook_resid_pre", double)
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", double)]):
        yield model


def test_owners_hooks_survive_and_act_bit_for_bit(hooked, tiny_model, tiny_paragraphs):
    tokens = tiny_paragraphs.tokens
    with torch.no_grad():
        hooked.is_caching = True
        before, logits = handles(hooked), hooked(tokens)
        assert not torch.allclose(logits, tiny_model(tokens), atol=1e-2)
        with with_hooks(hooked, {Z: zero}), recording(hooked, [Z, "hook_embed"]):
            assert not torch.allclose(hooked(tokens), logits, atol=1e-2)
        assert handles(hooked) == before and torch.equal(hooked(tokens), logits)
        assert hooked.is_caching and hooked.context_level == 1


@pytest.mark.parametrize("context", [with_hooks, recording])
def test_an_exception_leaves_no_hook(hooked, context):
    before = handles(hooked)
    with pytest.raises(ZeroDivisionError), context(hooked, {Z: zero}):
        raise ZeroDivisionError
    assert handles(hooked) == before


def test_replacing_does_what_run_with_hooks_does(tiny_model, tiny_paragraphs):
    tokens = tiny_paragraphs.tokens
    with torch.no_grad():
        with with_hooks(tiny_model, {Z: zero}) as model:
            ours = model(tokens)
        theirs = tiny_model.run_with_hooks(tokens, fwd_hooks=[(Z, zero)])
        assert torch.equal(ours, theirs) and not torch.allclose(ours, tiny_model(tokens), atol=1e-2)


def test_recording_is_what_run_with_cache_holds_and_lets_gradients_flow(tiny_model, tiny_paragraphs):
    tokens, names = tiny_paragraphs.tokens, [Z, "blocks.3.hook_resid_post", "blocks.0.attn.hook_pattern"]
    with recording(tiny_model, names) as recorded:
        logits = tiny_model(tokens)
    _, cache = tiny_model.run_with_cache(tokens, names_filter=names)
    assert set(recorded) == set(names)
    for name in names:
        assert torch.equal(recorded[name], cache[name])
    (gradient,) = torch.autograd.grad(logits.sum(), [recorded[Z]])
    assert gradient.shape == cache[Z].shape


def test_recording_sees_what_owners_hooks_made(hooked, tiny_model, tiny_paragraphs):
    tokens = tiny_paragraphs.tokens[:, :1]
    with torch.no_grad():
        with recording(tiny_model, ["hook_embed"]) as plain:
            tiny_model(tokens)
        hooked.add_hook("hook_embed", double)
        with recording(hooked, ["hook_embed"]) as doubled:
            hooked(tokens)
    assert torch.equal(doubled["hook_embed"], 2 * plain["hook_embed"])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("blocks.9.attn.hook_z", "no hook point 'blocks.9.attn.hook_z'.*for example .'blocks.0.attn.hook_z'"),
        ("blocks.0.attn.hook_result", "hook_result' is never called by this model"),
        ("blocks.0.hook_q_input", "hook_q_input' is never called by this model"),
    ],
)
def test_names_that_would_do_nothing_are_refused(tiny_model, name, sentence):
    with pytest.raises(InputError, match=sentence), recording(tiny_model, [name]):
        pytest.fail("the block ran")


def test_frozen_restores_gradients_switches_and_modes(tiny_model, tiny_paragraphs):
    model = copy.deepcopy(tiny_model)
    model.train()
    model.blocks[1].eval()
    model.blocks[0].attn.W_Q.requires_grad_(False)
    model(tiny_paragraphs.tokens).sum().backward()
    before = [(p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        model.eval()
        model.embed.W_E.requires_grad_()
        model(tiny_paragraphs.tokens).sum().backward()
        raise ZeroDivisionError
    for parameter, (required, gradient, value) in zip(model.parameters(), before, strict=True):
        assert parameter.requires_grad == required and parameter.grad is gradient
        assert gradient is None or value is not None and torch.equal(gradient, value)
    assert [module.training for module in model.modules()] == modes
