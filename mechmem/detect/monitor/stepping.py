"""One decoding step of one prompt at a time, with kept keys and values, by the fastest forward that a model has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.detect.decoding.lean_steps import LeanSteps
from mechmem.detect.features.step_states import StepStates
from mechmem.detect.monitor.generation import Plan
from mechmem.detect.monitor.hooked_source import HookedSource
from mechmem.detect.monitor.seen import Seen
from mechmem.model.kept_forward import KeptForward
from mechmem.model.lean.model import LeanModel, runs_lean
from mechmem.model.load import HookedTransformer
from mechmem.model.model_lock import holding

# New tokens -> what the step shows, and the end of the body at all of them where features of the prompt need it.
Step = Callable[[Int[Tensor, "1 new"]], tuple[StepStates, Tensor | None]]


def stepper(plan: Plan, capacity: int) -> Step:
    """A function that runs the prompt, then one token a call.

    Args:
        plan: of a monitor. A model with hooks on it, and one that is steered, runs as it is.
        capacity: positions that the text may have.
    """
    source, choice = plan.source, plan.detector.choice
    if isinstance(source, HookedSource) and plan.steering is None and runs_lean(source.model):
        lean = LeanSteps(LeanModel(source.model), choice, 1, capacity)
        whole = "prefix" in choice.groups

        def lean_step(tokens: Tensor) -> tuple[StepStates, Tensor | None]:
            states = lean.step(tokens, whole=whole and tokens.shape[1] > 1)
            return states, lean.end

        return lean_step
    seen = Seen()
    forward = _hooked_forward(source.model) if isinstance(source, HookedSource) else _causal_forward(source.model)

    @torch.no_grad()
    def step(tokens: Tensor) -> tuple[StepStates, Tensor | None]:
        # Hooks are added for each step, so that between two tokens nothing is on the model.
        with holding(source.model), source.hooks(choice, seen, plan.steering):
            seen.watching = True
            forward(tokens)
        states, end = seen.take(), seen.end
        seen.clear()
        return states, end

    return step


def _hooked_forward(model: HookedTransformer) -> Callable[[Tensor], None]:
    kept = KeptForward(model, 1)

    def forward(tokens: Tensor) -> None:
        kept.unembed(kept.forward(tokens)[:, -1])

    return forward


def _causal_forward(model: Any) -> Callable[[Tensor], None]:
    """The forward of transformers' own model, going on from the keys and values that it kept."""
    kept: Any = None

    def forward(tokens: Tensor) -> None:
        nonlocal kept
        kept = model(input_ids=tokens, past_key_values=kept, use_cache=True, logits_to_keep=1).past_key_values

    return forward
