"""Decoding steps of a HookedTransformer's own forward: of models with hooks on them, and of any architecture."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.step_states import StepStates
from mechmem.model.hooks import recording
from mechmem.model.kept_forward import KeptForward
from mechmem.model.load import HookedTransformer


class HookedSteps:
    """As `LeanSteps`, by the model itself: slower, and hooks on it act on the prompt and then on each new token."""

    def __init__(self, model: HookedTransformer, choice: FeatureChoice, rows: int):
        """Begin without tokens; see `LeanSteps` for the arguments."""
        self._model, self._choice = model, choice
        self._kept = KeptForward(model, rows)
        self._depths = {depth: stream_point(model, depth) for depth in choice.stream_depths}
        self.end: Tensor | None = None

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, "row new"], *, keep: bool = True, whole: bool = False) -> StepStates:  # noqa: ARG002
        """As `LeanSteps.step`.

        Raises:
            InputError: the model gives NaN or infinite values.
        """
        choice = self._choice
        attention = [f"blocks.{layer}.attn." for layer in choice.attention_layers]
        names = [*self._depths.values(), *(f"{each}hook_{site}" for each in attention for site in ("z", "pattern"))]
        names += [f"blocks.{layer}.mlp.hook_post" for layer in choice.neuron_layers]
        with recording(self._model, names if keep else []) as seen:
            self.end = self._kept.forward(tokens)
        logits = self._kept.unembed(self.end[:, -1])
        if not keep:
            return StepStates(logits)
        return StepStates(
            logits,
            residual={depth: seen[name][:, -1] for depth, name in self._depths.items()},
            z={layer: seen[f"blocks.{layer}.attn.hook_z"][:, -1] for layer in choice.attention_layers},
            pattern={layer: seen[f"blocks.{layer}.attn.hook_pattern"][:, :, -1] for layer in choice.attention_layers},
            mlp_post={layer: seen[f"blocks.{layer}.mlp.hook_post"][:, -1] for layer in choice.neuron_layers},
        )

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        self._kept.select(rows)


def stream_point(model: HookedTransformer, depth: int) -> str:
    """The hook point of the residual stream at a depth."""
    last = model.cfg.n_layers
    return f"blocks.{last - 1}.hook_resid_post" if depth == last else f"blocks.{depth}.hook_resid_pre"
