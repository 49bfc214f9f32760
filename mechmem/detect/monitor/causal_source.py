"""transformers' own causal language models: hooks that show a monitor their states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mechmem.data.errors import InputError
from mechmem.data.fingerprint import tokenizer_of
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.readout import Readout
from mechmem.detect.identity import Identity, identity_of
from mechmem.detect.monitor.causal_parts import Parts, parts_of
from mechmem.detect.monitor.ends import as_ends
from mechmem.detect.monitor.seen import Seen
from mechmem.detect.monitor.steering import Steering


class CausalSource:
    """A model of transformers.

    Attributes:
        model: left as it is but for hooks in a block.
        n_ctx: positions that the model has.
        layers: of the body.
        heads: of a layer.
        neurons: of a layer's MLP.
        parts: the modules that are hooked.
    """

    def __init__(self, model: Any) -> None:
        self.parts: Parts = parts_of(model)
        config = model.config
        self.model = model
        self.n_ctx, self.layers = int(config.max_position_embeddings), int(config.num_hidden_layers)
        self.heads = int(config.num_attention_heads)
        width: Any = self.parts.mlp_out[0].weight
        self.neurons = int(width.shape[1] if isinstance(self.parts.mlp_out[0], nn.Linear) else width.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def identity(self) -> Identity:
        """Which model it is; its tokenizer is not known."""
        embedding = self.model.get_input_embeddings().weight
        return identity_of(embedding, self.layers, embedding.dtype)

    @property
    def readout(self) -> Readout:
        """The final norm, the unembedding and the heads' output matrices."""
        return Readout(self.parts.unembed, self.parts.w_o(self.heads))

    @contextmanager
    def hooks(self, choice: FeatureChoice, seen: Seen, steering: Steering | None) -> Iterator[None]:
        """A block in which hooks fill `seen`, and scale what is steered."""
        if choice.attention_layers and self.model.config._attn_implementation != "eager":
            raise InputError(
                f"got a model with {self.model.config._attn_implementation} attention, which gives no pattern; need "
                'eager attention for the detector\'s heads: model.set_attn_implementation("eager")'
            )
        with ExitStack() as stack:
            for handle in self._added(choice, seen, steering):
                stack.callback(handle.remove)
            yield

    def tokenizer(self, fingerprint: str | None) -> Any | None:
        """A tokenizer of the detector's fingerprint that this process has met: the model has none."""
        return None if fingerprint is None else tokenizer_of(fingerprint)

    def ends(self, tokenizer: Any | None) -> tuple[int, ...]:  # noqa: ARG002 - the model says it itself
        """The end-of-text tokens of its own settings."""
        return as_ends(self.model.generation_config.eos_token_id)

    def _added(self, choice: FeatureChoice, seen: Seen, steering: Steering | None) -> Iterator[Any]:
        parts = self.parts
        for depth in choice.stream_depths:
            module = parts.norm if depth == self.layers else parts.blocks[depth]
            yield _before(module, _told(seen.keeper("residual", depth)))
        # Steered first, so that what is kept is what the model goes on with.
        for layer in sorted({*choice.attention_layers, *(steering.head_layers if steering else ())}):
            keep = seen.keeper("z", layer) if layer in choice.attention_layers else None
            yield _before(parts.out[layer], _heads(layer, self.heads, steering, keep))
        for layer in choice.attention_layers:
            yield parts.attention[layer].register_forward_hook(_pattern(seen, layer))
        for layer in sorted({*choice.neuron_layers, *(steering.neuron_layers if steering else ())}):
            keep = seen.keeper("mlp_post", layer) if layer in choice.neuron_layers else None
            yield _before(parts.mlp_out[layer], _neurons(layer, steering, keep))
        if "prefix" in choice.groups:
            yield _before(parts.norm, _told(seen.keep_end))
        yield parts.unembedding.register_forward_hook(seen.keep_logits)
        yield self.model.register_forward_pre_hook(seen.keep_mask, with_kwargs=True)


def _before(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Any:
    """Show a module's first argument to a function before it runs, and give it what the function returns instead."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Layers are called with their input by position, or by name.
        changed = change(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _told(keep: Callable[[Any], None]) -> Callable[[Tensor], None]:
    return lambda activation: keep(activation)


def _heads(
    layer: int, heads: int, steering: Steering | None, keep: Callable[[Any], None] | None
) -> Callable[[Tensor], Tensor | None]:
    def change(joined: Tensor) -> Tensor | None:
        z = joined.unflatten(-1, (heads, -1))
        changed = None if steering is None else steering.z(layer, z)
        if keep is not None:
            keep(z if changed is None else changed)
        return None if changed is None else changed.flatten(-2)

    return change


def _neurons(
    layer: int, steering: Steering | None, keep: Callable[[Any], None] | None
) -> Callable[[Tensor], Tensor | None]:
    def change(neurons: Tensor) -> Tensor | None:
        changed = None if steering is None else steering.neurons(layer, neurons)
        if keep is not None:
            keep(neurons if changed is None else changed)
        return changed

    return change


def _pattern(seen: Seen, layer: int) -> Callable[..., None]:
    return lambda _, __, output: seen.keep_pattern(layer, output[1])
