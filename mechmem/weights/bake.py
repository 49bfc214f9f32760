"""Turn hooks that scale or replace activations by constants into weights, so that the model exports without hooks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from mechmem.data.bounds import Seed
from mechmem.data.errors import InputError
from mechmem.model.forward import residual_before
from mechmem.model.hooks import Hook, with_hooks
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.vocabulary import vocabulary

# Factor and constant of each coordinate.
Effect = tuple[Tensor, Tensor]
PARAGRAPHS, LENGTH = 3, 64
POINTS = ("attn.hook_v", "attn.hook_z", "mlp.hook_post", "hook_attn_out", "hook_mlp_out")
# Relative to the largest value; hooks and weights round differently.
TOLERANCE = 1e-3


@public("refuse")
def bake(
    model: HookedTransformer, hooks: Mapping[str, Hook] | Sequence[tuple[str, Hook]], *, seed: Seed = 0
) -> HookedTransformer:
    """A copy of the model whose weights do what some hooks would do.

    Possible for a hook that multiplies each coordinate of an activation by a factor and adds a constant, the same for
    every paragraph and position: zeroing or scaling a head, replacing it by its mean, scaling neurons. What the hook
    does is found by calling it with test activations, and the result is compared with the hooked model on random text.

    1. v and z: the factor goes into W_V and b_V, or W_O; what is added goes through W_O into b_O: attention weights of
       a query sum to 1, so a constant in v is the same constant in z.
    2. Neurons: into W_out and b_out. Attention and MLP outputs: into W_O and b_O, W_out and b_out.

    Args:
        model: left as it is; without hooks of its own.
        hooks: hook point name -> fn(activation, hook=hook_point), or pairs of them as `run_with_hooks` takes; several
            of one point act one after the other. Points: attn.hook_v, attn.hook_z, mlp.hook_post, hook_attn_out and
            hook_mlp_out of a layer.
        seed: of the test activations and text.

    Raises:
        InputError: another hook point, or a hook that depends on the position, the paragraph or other coordinates, or
            fails; the sentence names the reason.
    """
    pairs = list(hooks.items()) if isinstance(hooks, Mapping) else list(hooks)
    if not pairs:
        raise InputError("got no hooks; need at least one, {'blocks.1.attn.hook_z': function} for example")
    by_point: dict[str, list[Hook]] = {}
    for name, function in pairs:
        by_point.setdefault(name, []).append(function)
    generator = torch.Generator().manual_seed(seed)
    chained = {name: _chain(functions) for name, functions in by_point.items()}
    effects: dict[int, dict[str, Effect]] = {}
    for name, hook in chained.items():
        layer, point = _split(name)
        effects.setdefault(layer, {})[point] = _effect(model, name, hook, generator)
    baked = copy.deepcopy(model)
    for layer, of_points in effects.items():
        _write(baked.blocks[layer], of_points)
    _compare(model, baked, chained, generator)
    return baked


def _split(name: str) -> tuple[int, str]:
    parts = name.split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdigit() and parts[2] in POINTS:
        return int(parts[1]), parts[2]
    raise InputError(
        f"got a hook on '{name}', which no weights can replace; need hook points of a layer among {', '.join(POINTS)}"
    )


def _chain(functions: Sequence[Hook]) -> Hook:
    def all_of_them(value: Tensor, hook: Any) -> Tensor:
        for function in functions:
            changed = function(value, hook=hook)
            value = value if changed is None else changed
        return value

    return all_of_them


def _effect(model: HookedTransformer, name: str, hook: Hook, generator: torch.Generator) -> Effect:
    """Factor and constant of each coordinate, so that the hook's result is activation * factor + constant."""
    point = _split(name)[1]
    if name not in model.hook_dict:
        raise InputError(f"no hook point '{name}'; need a layer from 0 to {model.cfg.n_layers - 1} that has it")
    cfg = model.cfg
    width = {"attn.hook_v": (cfg.n_heads, cfg.d_head), "attn.hook_z": (cfg.n_heads, cfg.d_head)}.get(
        point, (cfg.d_mlp or 0,) if point == "mlp.hook_post" else (cfg.d_model,)
    )
    shape = (PARAGRAPHS, min(LENGTH, cfg.n_ctx), *width)
    weight = model.W_E

    def call(value: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                found = hook(value.to(weight.device, weight.dtype).clone(), hook=model.hook_dict[name])
        except Exception as error:  # a hook is anybody's code
            raise InputError(
                f"the hook on '{name}' failed on an activation of shape {list(shape)} ({type(error).__name__}: "
                f"{error}); need one that takes any"
            ) from error
        if not isinstance(found, Tensor) or found.shape != shape or not bool(found.isfinite().all()):
            raise InputError(f"the hook on '{name}' gave no finite activation of shape {list(shape)}; need one")
        return found.double()

    constant = call(torch.zeros(shape))
    factor = call(torch.ones(shape)) - constant
    for what, value in (("adds", constant), ("multiplies by", factor)):
        if not _close(value, value[:1, :1].expand_as(value)):
            raise InputError(
                f"the hook on '{name}' {what} something that depends on the paragraph or the position; weights cannot: "
                "keep the hook, or make it the same everywhere"
            )
    for size in (1.0, 30.0):
        probe = size * torch.randn(shape, generator=generator)
        if not _close(call(probe), probe.to(weight.device).double() * factor + constant):
            raise InputError(
                f"the hook on '{name}' does more than to multiply each coordinate by a factor and to add a constant; "
                "weights cannot do that: keep the hook"
            )
    return factor[0, 0], constant[0, 0]


@torch.no_grad()
def _write(block: Any, effects: Mapping[str, Effect]) -> None:
    """Put the effects of one layer's hooks into its weights, in the order in which the activations pass them."""
    attention, mlp = block.attn, getattr(block, "mlp", None)
    added: Tensor | None = None
    if "attn.hook_v" in effects:
        factor, added = effects["attn.hook_v"]
        _scale(attention.W_V, factor[:, None])
        _scale(attention.b_V, factor)
    if "attn.hook_z" in effects:
        factor, constant = effects["attn.hook_z"]
        added = constant if added is None else added * factor + constant
        _add(attention.b_O, einsum(added, attention.W_O.double(), "head d_head, head d_head d_model -> d_model"))
        # Biases of the values reach the output through W_O as well, and are scaled with it.
        _scale(attention.W_O, factor[..., None])
    elif added is not None:
        _add(attention.b_O, einsum(added, attention.W_O.double(), "head d_head, head d_head d_model -> d_model"))
    if "mlp.hook_post" in effects:
        assert mlp is not None
        factor, constant = effects["mlp.hook_post"]
        _add(mlp.b_out, constant @ mlp.W_out.double())
        _scale(mlp.W_out, factor[:, None])
    ends = {"hook_attn_out": (attention, "O"), "hook_mlp_out": (mlp, "out")}
    for point in effects.keys() & ends.keys():
        (part, end), (factor, constant) = ends[point], effects[point]
        _scale(getattr(part, f"W_{end}"), factor)
        _scale(getattr(part, f"b_{end}"), factor)
        _add(getattr(part, f"b_{end}"), constant)


def _scale(weights: Tensor, factor: Tensor) -> None:
    weights.copy_((weights.double() * factor).to(weights.dtype))


def _add(weights: Tensor, constant: Tensor) -> None:
    weights.copy_((weights.double() + constant).to(weights.dtype))


@torch.no_grad()
def _compare(
    model: HookedTransformer, baked: HookedTransformer, hooks: Mapping[str, Hook], generator: torch.Generator
) -> None:
    """Run both on random text: a hook may do with real activations what it does not do with test ones."""
    shape = (PARAGRAPHS, min(LENGTH, model.cfg.n_ctx))
    tokens = torch.randint(0, vocabulary(model), shape, generator=generator).to(model.W_E.device)
    plain = residual_before(model, tokens, model.cfg.n_layers)
    with with_hooks(model, hooks):
        hooked = residual_before(model, tokens, model.cfg.n_layers)
    found = residual_before(baked, tokens, model.cfg.n_layers)
    error, size = float((found - hooked).abs().max()), float((plain - hooked).abs().max())
    if error > TOLERANCE * max(size, float(hooked.abs().max())):
        raise InputError(
            f"on random text, weights and hooks differ by up to {error:.3g} in the residual stream (the hooks change "
            f"it by {size:.3g}); the hooks depend on more than the activation they are given: keep them"
        )


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max())))
