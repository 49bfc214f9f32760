import copy

import numpy as np
import pytest
import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.attacks.relearn import relearning_attack
from mechmem.intervene.attacks.relearn_oracle import relearning_steps
from mechmem.measure.scores import score
from mechmem.model.sites import editable_parameters
from mechmem.weights.training import Training


@pytest.fixture(scope="module")
def sets() -> tuple[Paragraphs, Paragraphs]:
    tokens = torch.randint(0, 61, (9, 16), generator=torch.Generator().manual_seed(1))
    paras = Paragraphs(tokens, 8).with_columns(cluster=np.arange(9))
    return paras.select(np.arange(3)), paras.select(np.arange(3, 9))


def test_it_is_adamw_on_all_attention_and_mlp_weights(tiny_model, sets):
    """Slow oracle: torch's AdamW on whole forwards of the model."""
    targets, other = sets
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    seen = []
    found = relearning_attack(
        tiny_model, targets, other, every=2, training=Training(5, 1e-2), progress=lambda *done: seen.append(done)
    )
    slow = copy.deepcopy(tiny_model)
    optimizer = torch.optim.AdamW(editable_parameters(slow).values(), lr=1e-2, weight_decay=0.0)
    rows = {}
    for step in range(6):
        rows[step] = score(slow, targets), float(score(slow, other).nll.mean())
        log_probs = slow(other.tokens)[:, 7:-1].log_softmax(-1)
        optimizer.zero_grad()
        (-log_probs.gather(-1, other.continuation[..., None]).mean()).backward()
        optimizer.step()
    assert found.step.values.tolist() == [0, 2, 4, 5]
    for row, step in enumerate(found.step.values):
        expected, trained = rows[step]
        assert np.allclose(found.nll[row], expected.nll, atol=2e-3)
        assert found.em[row].values.tolist() == expected.em.values.tolist()
        assert float(found.other_nll[row]) == pytest.approx(trained, abs=2e-3)
    assert found.other_nll[-1] < found.other_nll[0] - 0.5
    assert abs(found.nll[-1] - found.nll[0]).max() > 0.05
    assert seen == [(step, 5) for step in range(1, 6)]
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in tiny_model.parameters())


def test_batches_go_through_the_set_in_an_order_that_the_seed_decides(tiny_model, sets):
    def run(seed: int):
        return relearning_attack(tiny_model, *sets, every=1, training=Training(4, 1e-2, batch_size=2), seed=seed)

    assert run(0).identical(run(0)) and not run(0).nll.equals(run(1).nll)
    # Batches of two are three an epoch: after one step the seeds have seen different text.
    assert run(0).nll[0].equals(run(1).nll[0]) and not run(0).nll[1].equals(run(1).nll[1])


def test_steps_until_counts_to_the_share_of_what_was_known(tiny_model, sets):
    targets, other = sets
    text = targets.tokens.clone()
    for pos in range(8, 16):
        text[:, pos] = tiny_model(text[:, :pos])[:, -1].argmax(-1)
    known = Paragraphs(text, 8)
    options = {"every": 2, "training": Training(4, 3e-2)}
    found = relearning_attack(tiny_model, known, other, **options)
    assert found.attrs["steps_until"] == 0 and found.attrs["target_em"] == 4 and found.em[0].mean() == 8
    assert "steps_until" not in relearning_attack(tiny_model, targets, other, **options).attrs
    partly = known.tokens.clone()
    partly[1:, 8:] = (partly[1:, 8:] + 1) % 61
    partial = Paragraphs(partly, 8)
    # Rows are found by id, in any order.
    original = xr.DataArray([4, 4, 4], {"paragraph": partial.ids[::-1]}, ("paragraph",))
    start = relearning_attack(tiny_model, partial, other, **options, original_em=original)
    assert start.em[0].values.tolist() == [8, 0, 0]
    assert start.attrs["target_em"] == 2 and start.attrs["steps_until"] == 0
    # The same start is not enough where all of what was known is asked for.
    strict = relearning_attack(tiny_model, partial, other, **options, original_em=original, target_share=1.0)
    assert strict.attrs["target_em"] == 4 and "steps_until" not in strict.attrs


def test_text_that_would_teach_the_targets_is_refused(tiny_model, sets):
    targets, other = sets
    near = other.with_columns(cluster=[0, 1, 9, 10, 11, 12])
    with pytest.raises(InputError, match="2 clusters stand in both the targets and other_memorized"):
        relearning_attack(tiny_model, targets, near)
    other_prompt = targets.tokens[:1].clone()
    other_prompt[0, 0] = (other_prompt[0, 0] + 1) % 61
    for tokens in (targets.tokens[:1], other_prompt):
        with pytest.raises(InputError, match="1 continuations stand in both"):
            relearning_attack(tiny_model, targets, Paragraphs(torch.cat([other.tokens, tokens]), 8))


def test_bad_settings_are_refused(tiny_model, sets):
    with pytest.raises(InputError, match="got 0 as every; need a whole number of at least 1"):
        relearning_attack(tiny_model, *sets, every=0)
    with pytest.raises(InputError, match="'relearning' does not use max_norm"):
        relearning_attack(tiny_model, *sets, training=Training(max_norm=1.0))
    for share in (0.0, 1.1):
        with pytest.raises(InputError, match="as target_share; need a finite number above 0 and at most 1"):
            relearning_attack(tiny_model, *sets, target_share=share)
    for rows, sentence in ((2, "paragraphs are not in this result"), (3, "need the EM of the targets before the edit")):
        original_em = xr.DataArray(np.zeros(rows), {"paragraph": sets[0].ids[:rows]}, ("paragraph",))
        with pytest.raises(InputError, match=sentence):
            relearning_attack(tiny_model, *sets, original_em=original_em)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        relearning_attack(tiny_model, *sets, training=Training(5, 1e30))


def test_steps_beside_an_oracle_are_those_of_two_attacks(tiny_model, sets):
    """The edit that kept most of the training needs fewer steps than the model that has none of it."""
    targets, other = sets
    training = Training(12, 1e-2)
    learned = relearning_steps(tiny_model, shaken(tiny_model, 0), targets, training=training)
    assert learned.model.values.tolist() == ["after", "oracle"] and learned.step.values.tolist() == list(range(13))
    goal = [int(np.argmax(learned.em.sel(model=name).mean("paragraph").values >= 4)) for name in ("after", "oracle")]
    assert learned.steps_until.values.tolist() == goal and goal[0] > 0
    trained = trained_on(tiny_model, targets, 4)
    inside = relearning_steps(trained, tiny_model, targets, training=training)
    assert inside.steps_until.sel(model="after") < inside.steps_until.sel(model="oracle") == learned.steps_until[0]
    seen = []
    apart = relearning_steps(
        trained, tiny_model, targets, other, training=training, every=5, progress=lambda *done: seen.append(done)
    )
    for name, model in (("after", trained), ("oracle", tiny_model)):
        alone = relearning_attack(model, targets, other, training=training, every=5)
        assert apart.sel(model=name, drop=True)[["em", "nll"]].equals(alone[["em", "nll"]])
    assert np.isnan(apart.steps_until.sel(model="oracle")) and seen[-1] == (24, 24)


def shaken(model, seed: int):
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return other


def trained_on(model, paragraphs: Paragraphs, steps: int):
    trained = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(editable_parameters(trained).values(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        log_probs = trained(paragraphs.tokens)[:, 7:-1].log_softmax(-1)
        optimizer.zero_grad()
        (-log_probs.gather(-1, paragraphs.continuation[..., None]).mean()).backward()
        optimizer.step()
    return trained


def test_an_oracle_that_is_none_is_refused(tiny_model, sets, small_model):
    targets, other = sets
    with pytest.raises(InputError, match="got the edited model as oracle; need another model"):
        relearning_steps(tiny_model, tiny_model, targets)
    with pytest.raises(InputError, match="got oracle with n_layers 2.*need the original's n_layers 4"):
        relearning_steps(tiny_model, small_model(d_vocab=61), targets)
    with pytest.raises(InputError, match="stand in both"):
        relearning_steps(tiny_model, copy.deepcopy(tiny_model), targets, targets)
