"""Record and replace activations; every change to the model ends with its block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor
from transformer_lens import HookedTransformer

from mechmem.data.errors import InputError
from mechmem.model.model_lock import holding

# Called as TransformerLens calls hooks: (activation, hook=HookPoint) -> the replacement, or None to leave it.
Hook = Callable[..., Tensor | None]


@contextmanager
def with_hooks(model: HookedTransformer, hooks: Mapping[str, Hook]) -> Iterator[HookedTransformer]:
    """Run the block with forward hooks added; afterwards the model has the hooks it had before, whatever happens.

    Hooks that were on the model before stay, and run before these. The block holds the model's lock: other threads
    that use the model wait.

    Args:
        model: hooks are added to it, in place.
        hooks: hook point name, `blocks.0.attn.hook_z` for example -> fn(activation, hook=hook_point), which returns the
            replacement, or None to leave the activation as it is.

    Raises:
        InputError: no such hook point, or one that this model's settings never call.
    """
    with holding(model):
        _check_names(model, hooks)
        caching = model.is_caching
        try:
            with model.hooks(fwd_hooks=list(hooks.items())):
                yield model
        finally:
            # TransformerLens resets this flag, which belongs to the caller's caching hooks, whenever a context ends.
            model.is_caching = caching


def hooked_points(model: HookedTransformer) -> list[str]:
    """Names of modules that have forward or backward hooks on them, TransformerLens' own or PyTorch's."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [name or "the model" for name, module in model.named_modules() if any(getattr(module, k) for k in kinds)]


def refuse_hooks(model: HookedTransformer, name: str) -> None:
    """Refuse a model that has hooks on it, on behalf of a function that would not run them.

    Raises:
        InputError: there are forward or backward hooks; the message says what to do.
    """
    points = hooked_points(model)
    if points:
        more = "" if len(points) == 1 else f" and {len(points) - 1} more"
        raise InputError(
            f"the model has hooks on {points[0]}{more}, and {name} would not run them; remove them with "
            "model.reset_hooks(), or change the weights instead (docs/hooks.md shows how)"
        )


@contextmanager
def recording(model: HookedTransformer, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Record activations of every forward in the block.

    Args:
        model: hooks are added to it, in place, until the block ends.
        names: hook point names; name what is needed, all of them take gigabytes.

    Yields:
        name -> activation of the latest forward, not copied and not detached: gradients flow to it, so run under
        `torch.no_grad()` if you need none. Hooks that were on the model before have already acted on it.

    Raises:
        InputError: no such hook point, or one that this model's settings never call.
    """
    recorded: dict[str, Tensor] = {}

    def record(name: str) -> Hook:
        def hook_function(activation: Tensor, hook: object) -> None:  # noqa: ARG001 - TransformerLens passes both
            recorded[name] = activation

        return hook_function

    with with_hooks(model, {name: record(name) for name in names}):
        yield recorded


@contextmanager
def frozen(model: HookedTransformer) -> Iterator[HookedTransformer]:
    """Switch gradients of all parameters off in the block; the block may switch them on again.

    Afterwards every parameter's `requires_grad` and `.grad` and every module's training mode is what it was. The
    values of parameters are not restored. The block holds the model's lock: other threads that use the model wait.
    """
    with holding(model):
        parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
        modes = [(module, module.training) for module in model.modules()]
        # A gradient accumulated in the block would be added in place to the caller's: it is set aside.
        for parameter, _, _ in parameters:
            parameter.grad = None
            parameter.requires_grad_(False)
        try:
            yield model
        finally:
            for parameter, required, gradient in parameters:
                parameter.requires_grad_(required)
                parameter.grad = gradient
            for module, training in modes:
                module.training = training


def _check_names(model: HookedTransformer, names: Iterable[str]) -> None:
    for name in names:
        point = model.hook_dict.get(name)
        if point is None:
            ending = name.rsplit(".", 1)[-1]
            close = [known for known in model.hook_dict if known.endswith(ending)][:3] or list(model.hook_dict)[:3]
            raise InputError(f"no hook point '{name}'; need a name in model.hook_dict, for example {close}")
        try:
            model.check_hooks_to_add(point, name, lambda *_, **__: None)
        except AssertionError as error:
            raise InputError(
                f"hook point '{name}' is never called by this model ({error}); need one that is: compute the value "
                "from hook_z or the residual stream, or switch the setting on yourself"
            ) from error
