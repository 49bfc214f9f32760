"""Features of running rows: padded prompts, rows that are moved, and what is refused."""

from typing import Any

import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.detect.decoding.lean_steps import LeanSteps
from mechmem.detect.features.chosen_features import feature_choice
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.readout import hooked_readout, lean_readout
from mechmem.detect.features.step_features import StepFeatures
from mechmem.detect.features.step_states import StepStates
from mechmem.model.lean.model import LeanModel

GROUPS: Any = ("heads", "output", "prefix", "neurons", "lens", "residual")
COUNTS = torch.arange(61) ** 2


@pytest.fixture(scope="module")
def lean(tiny_model) -> LeanModel:
    return LeanModel(tiny_model)


@pytest.fixture(scope="module")
def choice(tiny_model) -> FeatureChoice:
    return feature_choice(tiny_model, GROUPS, [1, 4], ["L1H1", "L2H0"], [(1, 3)], COUNTS)


def decode(
    lean: LeanModel, choice: FeatureChoice, prompt: torch.Tensor, said: torch.Tensor, moves: dict[int, torch.Tensor]
) -> torch.Tensor:
    """Features of the last step, where said [step, row] is said and rows are moved after some steps."""
    steps = LeanSteps(lean, choice, len(prompt), 60)
    features = StepFeatures(choice, lean_readout(lean), prompt=prompt)
    states = steps.step(prompt, whole=True)
    assert steps.end is not None
    features.read_prompt_stream(steps.end)
    found = features.step(states, None)
    for step, tokens in enumerate(said):
        if step in moves:
            steps.select(moves[step])
            features.select(moves[step])
        tokens = tokens[: len(found) if step not in moves else len(moves[step])]
        found = features.step(steps.step(tokens[:, None]), tokens)
    assert found.shape[1] == len(features.names)
    return found


def test_moved_rows_are_those_that_had_their_history_from_the_start(lean, choice, tiny_paragraphs):
    prompt = tiny_paragraphs.prefix[:4]
    said = torch.randint(0, 61, (20, 4), generator=torch.Generator().manual_seed(2))
    rows = torch.tensor([2, 2, 0])
    moved = decode(lean, choice, prompt, said, {12: rows})
    history = torch.cat([said[:12, rows], said[12:, :3]])
    torch.testing.assert_close(moved, decode(lean, choice, prompt[rows], history, {}), rtol=1e-4, atol=1e-4)
    # Control: without the move the features are others.
    assert not torch.allclose(moved, decode(lean, choice, prompt, said, {})[:3], rtol=1e-2)


def padded(states: StepStates, padding: int) -> StepStates:
    """The states of a row as a batch shows them whose prompts are longer: its keys come later."""
    pattern = {layer: torch.nn.functional.pad(weights, (padding, 0)) for layer, weights in states.pattern.items()}
    return StepStates(states.logits, states.residual, states.z, pattern, states.mlp_post)


def test_padding_at_the_left_changes_nothing(tiny_model, lean, choice, tiny_paragraphs):
    prompt, said = tiny_paragraphs.prefix[:2], torch.tensor([[5, 0], [9, 60]])
    wide = torch.cat([torch.zeros(2, 6, dtype=torch.long), prompt], 1)
    steps = LeanSteps(lean, choice, 2, 30)
    plain = StepFeatures(choice, lean_readout(lean), prompt=prompt)
    other = StepFeatures(choice, hooked_readout(tiny_model), prompt=wide, padding=torch.tensor([6, 6]))
    for new, before in ((prompt, None), (said[0][:, None], said[0]), (said[1][:, None], said[1])):
        states = steps.step(new, whole=before is None)
        if before is None:
            assert steps.end is not None
            logits = lean.unembed(lean.final_norm(steps.end))
            plain.read_prompt(logits)
            other.read_prompt(torch.nn.functional.pad(logits, (0, 0, 6, 0)))
        torch.testing.assert_close(plain.step(states, before), other.step(padded(states, 6), before))


def test_attention_to_padding_is_not_to_rare_tokens(tiny_model):
    choice = feature_choice(tiny_model, "heads", heads=["L0H0"], counts=COUNTS)
    features = StepFeatures(
        choice, hooked_readout(tiny_model), prompt=torch.tensor([[0, 0, 50]]), padding=torch.tensor([1])
    )
    pattern = torch.tensor([0.0, 0.25, 0.75]).expand(1, 3, 3)
    states = StepStates(torch.zeros(1, 61), z={0: torch.zeros(1, 3, 7)}, pattern={0: pattern})
    found = dict(zip(features.names, features.step(states, None)[0].tolist(), strict=True))
    assert found["L0H0:on_rare"] == 0.25 and found["L0H0:on_prefix"] == 1 and found["L0H0:norm"] == 0


def test_reading_only_some_steps_changes_nothing(lean, choice, tiny_paragraphs):
    prompt, said = tiny_paragraphs.prefix[:3], torch.randint(0, 61, (6, 3))
    steps = LeanSteps(lean, choice, 3, 30)
    features = StepFeatures(choice, lean_readout(lean), prompt=prompt)
    features.advance(steps.step(prompt, whole=True), None)
    assert steps.end is not None
    features.read_prompt_stream(steps.end)
    for tokens in said[:-1]:
        features.advance(steps.step(tokens[:, None], keep=False), tokens)
    found = features.step(steps.step(said[-1][:, None]), said[-1])
    torch.testing.assert_close(found, decode(lean, choice, prompt, said, {}), rtol=1e-4, atol=1e-4)


def test_states_that_are_not_finite_are_refused():
    features = StepFeatures(FeatureChoice(("residual",), depths=(0,)), prompt=torch.zeros(2, 3, dtype=torch.long))
    stream = torch.zeros(2, 4)
    features.step(StepStates(torch.zeros(2, 9), {0: stream}), None)
    stream[1, 2] = torch.nan
    with pytest.raises(InputError, match="activations have NaN or infinite values; need finite ones"):
        features.step(StepStates(torch.zeros(2, 9), {0: stream}), torch.zeros(2, dtype=torch.long))


def test_what_is_missing_is_named():
    prompt = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(InputError, match="got the features text, which are not computed while decoding"):
        StepFeatures(FeatureChoice(("output", "text")), prompt=prompt)
    with pytest.raises(InputError, match="need the model's weights; need a Readout"):
        StepFeatures(FeatureChoice(("heads",), heads=((0, 0),)), prompt=prompt)
    with pytest.raises(InputError, match=r"need read_prompt\(logits\) first"):
        StepFeatures(FeatureChoice(("prefix",)), prompt=prompt).step(StepStates(torch.zeros(1, 5)), None)


def test_memory_stays_flat_but_for_a_truth_value_a_token(lean, choice, tiny_paragraphs):
    features = StepFeatures(choice, lean_readout(lean), prompt=tiny_paragraphs.prefix[:1])
    steps = LeanSteps(lean, choice, 1, 128)
    features.advance(steps.step(tiny_paragraphs.prefix[:1]), None)
    for token in range(60):
        features.advance(StepStates(torch.zeros(1, 61)), torch.tensor([token]))
    heads = features._heads
    assert heads is not None and heads._rare.dtype == torch.bool and heads._rare.numel() <= 2 * (13 + 60)
