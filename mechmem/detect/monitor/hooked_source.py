"""HookedTransformer: hooks that show a monitor its states while it decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.decoding.hooked_steps import stream_point
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.readout import Readout, hooked_readout
from mechmem.detect.identity import Identity, model_identity
from mechmem.detect.monitor.ends import as_ends
from mechmem.detect.monitor.seen import Seen
from mechmem.detect.monitor.steering import Steering
from mechmem.model.hooks import Hook, with_hooks
from mechmem.model.load import HookedTransformer


class HookedSource:
    """A HookedTransformer; hooks that are on it act as usual, before the monitor's. Attributes as `CausalSource`."""

    def __init__(self, model: HookedTransformer) -> None:
        cfg = model.cfg
        if cfg.output_logits_soft_cap > 0:
            raise InputError(
                "got a model with a soft cap on its logits, which would lift what a monitor forbids; need another model"
            )
        self.model = model
        self.n_ctx, self.layers, self.heads, self.neurons = cfg.n_ctx, cfg.n_layers, cfg.n_heads, cfg.d_mlp or 0

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.W_E.device

    @property
    def identity(self) -> Identity:
        """Which model it is."""
        return model_identity(self.model)

    @property
    def readout(self) -> Readout:
        """The final norm, the unembedding and the heads' output matrices."""
        return hooked_readout(self.model)

    @contextmanager
    def hooks(self, choice: FeatureChoice, seen: Seen, steering: Steering | None) -> Iterator[None]:
        """A block in which hooks fill `seen`, and scale what is steered."""
        with ExitStack() as stack:
            for name, hook in self._points(choice, seen, steering):
                stack.enter_context(with_hooks(self.model, {name: hook}))
            blocks: Any = self.model.blocks
            stack.callback(blocks[0].register_forward_pre_hook(seen.keep_mask, with_kwargs=True).remove)
            stack.callback(self.model.unembed.register_forward_hook(seen.keep_logits).remove)
            yield

    def tokenizer(self, fingerprint: str | None) -> Any | None:  # noqa: ARG002 - the model has its own
        """The model's own."""
        return self.model.tokenizer

    def ends(self, tokenizer: Any | None) -> tuple[int, ...]:
        """The tokenizer's end of text."""
        return as_ends(getattr(tokenizer, "eos_token_id", None))

    def _points(self, choice: FeatureChoice, seen: Seen, steering: Steering | None) -> Iterator[tuple[str, Hook]]:
        for depth in choice.stream_depths:
            yield stream_point(self.model, depth), _hook(seen.keeper("residual", depth))
        if "prefix" in choice.groups:
            yield stream_point(self.model, self.layers), _hook(seen.keep_end)
        for layer in sorted({*choice.attention_layers, *(steering.head_layers if steering else ())}):
            keep = seen.keeper("z", layer) if layer in choice.attention_layers else None
            yield f"blocks.{layer}.attn.hook_z", _hook(keep, None if steering is None else steering.z, layer)
        for layer in choice.attention_layers:
            yield f"blocks.{layer}.attn.hook_pattern", _pattern(seen, layer)
        for layer in sorted({*choice.neuron_layers, *(steering.neuron_layers if steering else ())}):
            keep = seen.keeper("mlp_post", layer) if layer in choice.neuron_layers else None
            yield f"blocks.{layer}.mlp.hook_post", _hook(keep, None if steering is None else steering.neurons, layer)


def _hook(
    keep: Callable[[Any], None] | None,
    steer: Callable[[int, Tensor], Tensor | None] | None = None,
    layer: int = 0,
) -> Hook:
    """Steered first, so that what is kept is what the model goes on with."""

    def function(activation: Tensor, hook: object) -> Tensor | None:  # noqa: ARG001 - TransformerLens passes both
        changed = None if steer is None else steer(layer, activation)
        if keep is not None:
            keep(activation if changed is None else changed)
        return changed

    return function


def _pattern(seen: Seen, layer: int) -> Hook:
    def function(pattern: Tensor, hook: object) -> None:  # noqa: ARG001 - TransformerLens passes both
        seen.keep_pattern(layer, pattern)

    return function
