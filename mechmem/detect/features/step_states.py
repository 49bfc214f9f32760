"""What one decoding step shows of a batch of rows, whichever model class and loop it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class StepStates:
    """Activations at the newest token of every row, and the model's own logits for the next one.

    Attributes:
        logits: before any temperature, penalty or ban, [row, d_vocab].
        residual: depth -> the stream, before the final norm, [row, d_model]; depth d enters layer d, n_layers is the
            end of the body.
        z: layer -> heads' outputs before the output matrix, [row, head, d_head].
        pattern: layer -> attention of the newest query, [row, head, key_pos]; zero on padding.
        mlp_post: layer -> neurons after their activation function, [row, neuron].
    """

    logits: Float[Tensor, "row d_vocab"]
    residual: Mapping[int, Float[Tensor, "row d_model"]] = field(default_factory=dict)
    z: Mapping[int, Float[Tensor, "row head d_head"]] = field(default_factory=dict)
    pattern: Mapping[int, Float[Tensor, "row head key_pos"]] = field(default_factory=dict)
    mlp_post: Mapping[int, Float[Tensor, "row neuron"]] = field(default_factory=dict)
