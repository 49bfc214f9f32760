"""Decoding steps of the forward without hooks, with kept keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.step_states import StepStates
from mechmem.model.lean.attention import Heads
from mechmem.model.lean.model import KeyValues, LeanModel, fast_float32


class LeanSteps:
    """Rows that decode together: each step runs their new tokens alone and shows the newest.

    Attributes:
        end: the residual stream at the end of the body, of every position of the latest step, [row, pos, d_model];
            of the first step with `whole` only, else of the newest position.
    """

    def __init__(self, lean: LeanModel, choice: FeatureChoice, rows: int, capacity: int):
        """Begin without tokens.

        Args:
            lean: the model.
            choice: which activations are kept of each step.
            rows: texts that are decoded together.
            capacity: positions that they may have in the end.
        """
        self._lean, self._choice = lean, choice
        self._kept = KeyValues(lean, rows, capacity)
        self._depths = frozenset(choice.stream_depths)
        self._attention, self._neurons = frozenset(choice.attention_layers), frozenset(choice.neuron_layers)
        self.end: Tensor | None = None

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, "row new"], *, keep: bool = True, whole: bool = False) -> StepStates:
        """Run new tokens, the prompt or one each, after those that were run.

        Args:
            tokens: ids, on any device.
            keep: whether the chosen activations are kept; the logits always are.
            whole: whether the last layer runs at all positions (see `end`).

        Raises:
            InputError: the model gives NaN or infinite values; the sentence names the layer.
        """
        lean, past = self._lean, self._kept.length
        last = past + tokens.shape[1] - 1
        residual: dict[int, Tensor] = {}
        z: dict[int, Tensor] = {}
        pattern: dict[int, Tensor] = {}
        neurons: dict[int, Tensor] = {}

        def watch_heads(layer: int, heads: Heads, stream: Tensor) -> None:
            if layer in self._depths:
                # Of a prompt, the rest of the stream is let go.
                residual[layer] = stream[:, -1].clone() if stream.shape[1] > 1 else stream[:, -1]
            if layer in self._attention:
                # The pattern first: the output is a product with it.
                pattern[layer] = heads.pattern[:, :, -1]
                z[layer] = heads.output[:, :, -1]

        def watch(layer: int, _: Heads, seen: Mapping[str, Tensor]) -> None:
            if layer in self._neurons:
                neurons[layer] = seen["mlp_post"][:, -1]

        options: dict[str, Any] = (
            {"watch_heads": watch_heads, "in_place": False} if keep and (self._depths or self._attention) else {}
        )
        if keep and self._neurons:
            options["watch"] = watch
        with fast_float32(lean.device):
            entered = lean.embed(tokens, past)
            end = lean.run(entered, start=past, needed=0 if whole else last, extend=self._kept.extend, **options)
            if "watch" in options and not bool(end.isfinite().all()):
                # Without a watch the layer is named.
                lean.run(entered, start=past, extend=self._kept.extend)
            self._kept.length += tokens.shape[1]
            self.end, newest = end, end[:, -1]
            logits = lean.unembed(lean.final_norm(newest))
        if keep and len(lean.layers) in self._depths:
            residual[len(lean.layers)] = newest
        return StepStates(logits, residual, z, pattern, neurons)

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        self._kept = self._kept.select(rows)
