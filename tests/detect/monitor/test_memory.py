"""What a monitor holds does not grow with the length of the generation, but for the result's numbers."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from mechmem.data.paragraphs import Paragraphs
from mechmem.detect.features.step_states import StepStates
from mechmem.detect.monitor.generation import Generation, Prompt
from mechmem.detect.monitor.monitor import Monitor
from tests.detect.monitor.conftest import EVERYTHING, LAYERS, PLAIN, VOCABULARY, WIDTH, prompts, random_detector

ROWS = 4


def held(thing, seen=None):
    """Bytes of all tensors and arrays that an object reaches, through its own objects and containers."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        return thing.untyped_storage().nbytes()
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, dict):
        return sum(held(each, seen) for each in thing.values())
    if isinstance(thing, (list, tuple, set)):
        return sum(held(each, seen) for each in thing)
    if type(thing).__module__.startswith("mechmem"):
        return sum(held(each, seen) for each in vars(thing).values()) if hasattr(thing, "__dict__") else 0
    return 0


def states(random):
    def draw(*shape):
        return torch.randn(ROWS, *shape, generator=random)

    return StepStates(
        draw(VOCABULARY),
        {depth: draw(WIDTH) for depth in range(LAYERS + 1)},
        {layer: draw(3, 8) for layer in range(LAYERS)},
        {layer: draw(3, 12).softmax(-1) for layer in range(LAYERS)},
        {layer: draw(40) for layer in range(LAYERS)},
    )


@pytest.mark.parametrize(("action", "choice"), [("flag", PLAIN), ("flag", EVERYTHING), ("block", PLAIN)])
def test_states_are_as_large_after_400_tokens_as_after_20(action, choice, twins):
    pair = twins("gpt_neo")
    options: dict[str, Any] = {"memorized": Paragraphs(torch.randint(0, 53, (3, 20)), 10)} if action == "block" else {}
    monitor = Monitor(random_detector(pair.hooked, choice), pair.causal, action, **options)
    prompt = torch.stack(prompts(12, 12, 12, 12))
    generation = Generation(monitor._plan, Prompt(prompt))
    random, sizes = torch.Generator().manual_seed(0), {}
    generation.features.read_prompt(torch.randn(ROWS, 12, VOCABULARY, generator=random))
    for k in range(401):
        step = states(random)
        # Patterns grow with the text; here the text's positions are not what is measured.
        pattern = {layer: torch.rand(ROWS, 3, 12 + k).softmax(-1) for layer in step.pattern}
        step = dataclasses.replace(step, pattern=pattern)
        generation.step(step, None if k == 0 else torch.randint(0, VOCABULARY, (ROWS,), generator=random))
        if k in (20, 400):
            sizes[k] = held({name: value for name, value in vars(generation).items() if name != "history"})
            sizes[f"history {k}"] = held(generation.history)
    # Which tokens were rare, of which attention is summed: a byte each, with room for twice as many.
    rare = 2 * 400 * ROWS if "heads" in choice.groups else 0
    assert sizes[20] <= sizes[400] <= sizes[20] + rare
    # The result's own numbers: a score, a statistic, a token and three marks a row and step.
    assert sizes["history 400"] <= 401 * ROWS * (4 + 4 + 8 + 3) + 100
