"""Decoding a batch of prompts and keeping what its steps show."""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mechmem.detect.decoding.hooked_steps import HookedSteps
from mechmem.detect.decoding.lean_steps import LeanSteps
from mechmem.detect.decoding.token_choice import TokenChoice
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.readout import Readout, hooked_readout, lean_readout
from mechmem.detect.features.step_features import StepFeatures, check_finite
from mechmem.model.lean.model import LeanModel, runs_lean
from mechmem.model.load import HookedTransformer


def step_maker(
    model: HookedTransformer, choice: FeatureChoice
) -> tuple[Callable[[int, int], LeanSteps | HookedSteps], Readout]:
    """How a model decodes best: a function of (rows, positions in the end), and the weights that read its activations.

    A model with hooks, or of an architecture that the forward without hooks does not know, runs as it is.
    """
    if not runs_lean(model):
        return lambda rows, _: HookedSteps(model, choice, rows), hooked_readout(model)
    lean = LeanModel(model)
    return lambda rows, capacity: LeanSteps(lean, choice, rows, capacity), lean_readout(lean)


def decode_into(
    into: xr.Dataset,
    steps: LeanSteps | HookedSteps,
    features: StepFeatures,
    choose: TokenChoice,
    prompt: Int[Tensor, "row pos"],
) -> None:
    """Decode a batch of prompts, and write its features into the arrays of the answer's rows, in place."""
    length, place = into.sizes["pos"], {k: index for index, k in enumerate(into.k.values.tolist())}
    last = max(*place, length - 1)
    new, said = prompt, None
    for k in range(last + 1):
        prefix = k == 0 and "prefix" in features.choice.groups
        states = steps.step(new, keep=k in place, whole=prefix)
        if prefix:
            assert steps.end is not None
            features.read_prompt_stream(steps.end)
        features.advance(states, said)
        if k in place:
            for group, values in features.read(states).items():
                target = into[group].values if group == "prefix" else into[group].values[:, place[k]]
                target[:] = check_finite(values).reshape(target.shape).cpu().numpy()
        if k > 0 and k <= length:
            _keep_said(into, k - 1, features)
        said = choose(states.logits)
        if k < length:
            into.said.values[:, k] = said.cpu().numpy()
        new = said[:, None]
    if last < length:
        assert said is not None
        features.output.hear(said)
        _keep_said(into, last, features)


def _keep_said(into: xr.Dataset, column: int, features: StepFeatures) -> None:
    """Write what the token said last was worth."""
    into.said_nll.values[:, column] = features.output.said_nll
    into.said_z.values[:, column] = features.output.said_z
