"""Which features of a decoding step a detector reads, and which activations they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

# By price: what a step's logits say; what those of the prompt say; the residual stream; the stream read by the
# unembedding at several depths; attention heads; chosen MLP neurons.
OnlineGroup = Literal["output", "prefix", "residual", "lens", "heads", "neurons"]
# Not computed while decoding: a classifier's view of the tokens alone, and gradients (one backward a step).
OfflineGroup = Literal["text", "gradient"]
FeatureGroup = Literal["output", "prefix", "residual", "lens", "heads", "neurons", "text", "gradient"]
ONLINE: tuple[str, ...] = get_args(OnlineGroup)
OFFLINE: tuple[str, ...] = get_args(OfflineGroup)


@dataclass(frozen=True)
class FeatureChoice:
    """Which features are read at every step.

    Attributes:
        groups: of features, in the order of their columns.
        depths: residual streams of "residual" and "lens": depth d enters layer d, n_layers is the end of the body.
        heads: of "heads", (layer, head).
        neurons: of "neurons", (layer, neuron).
        rare: token ids that count as rare, for the heads' mass on rare tokens; None: that mass is not read.
    """

    groups: tuple[FeatureGroup, ...] = ("output", "residual")
    depths: tuple[int, ...] = ()
    heads: tuple[tuple[int, int], ...] = ()
    neurons: tuple[tuple[int, int], ...] = ()
    rare: tuple[int, ...] | None = None

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Layers whose patterns and head outputs are needed."""
        return tuple(sorted({layer for layer, _ in self.heads})) if "heads" in self.groups else ()

    @property
    def neuron_layers(self) -> tuple[int, ...]:
        """Layers whose neurons are needed."""
        return tuple(sorted({layer for layer, _ in self.neurons})) if "neurons" in self.groups else ()

    @property
    def stream_depths(self) -> tuple[int, ...]:
        """Depths whose residual streams are needed."""
        return tuple(sorted(set(self.depths))) if {"residual", "lens"} & set(self.groups) else ()
