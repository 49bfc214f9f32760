import copy
import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.descent_methods import OBJECTIVES
from mechmem.intervene.dropping.methods import DROPPING
from mechmem.intervene.loop import Stop
from mechmem.intervene.method_names import Method
from mechmem.intervene.objectives import hold_kl, lower_nll
from mechmem.intervene.unlearn import unlearn
from mechmem.localize.gradients import weight_gradients
from mechmem.measure.scores import kl, score
from mechmem.model.hooks import with_hooks
from mechmem.model.sites import editable_parameters
from mechmem.weights.masks import Mask
from mechmem.weights.support import SupportError, changed_weights, verify_support
from mechmem.weights.training import Training

ALL_STEPS = Stop()


def contrastive(model, memorized, keep, stop: Any = ALL_STEPS, **options: Any):
    """Unlearn by the paper's objective, for all steps unless a rule is given."""
    return unlearn(model, memorized, keep, method="contrastive", stop=stop, **options)


@pytest.fixture(scope="module")
def sets(tiny_model):
    """Five paragraphs that the model says by itself after their prefix, so EM is all, and nine random ones."""
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (14, 16), generator=torch.Generator().manual_seed(1))
    for pos in range(8, 16):
        with torch.no_grad():
            tokens[:5, pos] = tiny_model(tokens[:5, :pos])[:, -1].argmax(-1)
    return Paragraphs(tokens[:5], 8), Paragraphs(tokens[5:], 8)


@pytest.fixture(scope="module")
def mask(tiny_model, sets):
    return Mask.top(weight_gradients(tiny_model, sets[0]), fraction=0.02)


@pytest.mark.parametrize("weight_decay", [0.0, 1.0])
def test_a_sparse_update_leaves_every_other_weight_bit_identical(tiny_model, sets, mask, weight_decay):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    edited, _ = contrastive(
        tiny_model, *sets, mask=mask, training=Training(steps=4, learning_rate=1e-2, weight_decay=weight_decay)
    )
    after = edited.state_dict()
    for name, value in before.items():
        assert torch.equal(tiny_model.state_dict()[name], value), f"the caller's {name} moved"
        moved = (after[name].view(-1) != value.view(-1)).nonzero().flatten()
        assert set(moved.tolist()) <= set(mask.indices.get(name, torch.zeros(0)).tolist())
    assert 0.9 * mask.count < changed_weights(tiny_model, edited) <= mask.count


def test_nll_of_the_targets_rises_and_history_speaks_of_the_values_before_each_step(tiny_model, sets, mask):
    memorized, keep = sets
    edited, history = contrastive(
        tiny_model, memorized, keep, mask=mask, training=Training(steps=6, learning_rate=1e-2)
    )
    assert float(score(edited, memorized).nll.mean()) > float(score(tiny_model, memorized).nll.mean()) + 0.1
    assert history.memorized_nll[0] == pytest.approx(float(score(tiny_model, memorized).nll.mean()), abs=1e-5)
    assert history.keep_kl[0] == pytest.approx(0.0, abs=1e-6)
    assert history.sizes["step"] == 6 and bool((history.memorized_nll.diff("step") > 0).all())


def test_the_keep_term_holds_the_keep_set(tiny_model, sets):
    memorized, keep = sets
    drift = [
        float(
            kl(
                tiny_model,
                contrastive(tiny_model, memorized, keep, training=Training(steps=8, learning_rate=3e-3, keep_weight=w))[
                    0
                ],
                keep,
            ).mean()
        )
        for w in (0.0, 30.0)
    ]
    assert drift[1] < 0.5 * drift[0]


@pytest.mark.parametrize("logits_bytes", [1, 2**30])
def test_the_update_is_adamw_on_the_masked_weights(tiny_model, sets, mask, logits_bytes, monkeypatch):
    """Slow oracle: AdamW over whole tensors, with masked gradients and no decay, takes the same steps.

    However few paragraphs' logits are made at once.
    """
    monkeypatch.setattr("mechmem.model.lean.trainable.LOGITS_BYTES", logits_bytes)
    memorized, keep = sets
    edited, _ = contrastive(
        tiny_model, memorized, keep, mask=mask, training=Training(steps=3, learning_rate=1e-2, keep_weight=0.7)
    )
    slow = copy.deepcopy(tiny_model)
    optimizer = torch.optim.AdamW(slow.parameters(), lr=1e-2, weight_decay=0.0)
    columns = slice(memorized.prefix_len - 1, -1)
    with torch.no_grad():
        reference = tiny_model(keep.tokens)[:, columns].log_softmax(-1)
    for _ in range(3):
        log_probs = slow(memorized.tokens)[:, columns].log_softmax(-1)
        nll = -log_probs.gather(-1, memorized.continuation[..., None]).mean()
        held = slow(keep.tokens)[:, columns].log_softmax(-1)
        loss = 0.7 * (reference.exp() * (reference - held)).sum(-1).mean() - nll
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in slow.named_parameters():
            allowed = torch.zeros(parameter.numel())
            allowed[mask.indices.get(name, torch.zeros(0, dtype=torch.long))] = 1
            if parameter.grad is not None:
                parameter.grad *= allowed.view(parameter.shape)
        optimizer.step()
    for name, value in slow.named_parameters():
        assert torch.allclose(value, edited.state_dict()[name], atol=1e-5), name


def test_stop_ends_the_run_and_a_seed_decides_it(tiny_model, sets, mask):
    rows: list[dict[str, float]] = []

    def stop(row: dict[str, float]) -> bool:
        rows.append(row)
        return len(rows) == 3

    edited, history = contrastive(
        tiny_model, *sets, mask=mask, training=Training(steps=50, batch_size=2, learning_rate=1e-3), stop=stop
    )
    assert history.sizes["step"] == 3 and history.ended == "stop rule"
    again, _ = contrastive(tiny_model, *sets, mask=mask, training=Training(steps=2, batch_size=2, learning_rate=1e-3))
    assert changed_weights(edited, again) == 0
    other, _ = contrastive(
        tiny_model, *sets, mask=mask, training=Training(steps=2, batch_size=2, learning_rate=1e-3), seed=1
    )
    assert changed_weights(edited, other) > 0


def test_the_rule_speaks_of_the_whole_set_and_the_weights_returned_meet_it(tiny_model, sets, mask):
    training = Training(steps=60, batch_size=2, learning_rate=1e-2)
    edited, history = contrastive(tiny_model, *sets, mask=mask, training=training, stop=Stop(target_em=3.0))
    assert history.ended == "stop rule" and history.memorized_em.values[-1] <= 3.0 < history.memorized_em.values[-2]
    assert history.final_memorized_em == history.memorized_em.values[-1]
    # Values of earlier batches are a step or two old, from weights that were less far.
    assert float(score(edited, sets[0]).em.mean()) <= 3.0
    whole, history = contrastive(
        tiny_model, *sets, mask=mask, training=replace(training, batch_size=16), stop=Stop(target_nll=3.0)
    )
    assert history.final_memorized_nll == pytest.approx(float(score(whole, sets[0]).nll.mean()), abs=1e-5)
    assert history.final_memorized_nll >= 3.0


def test_a_budget_is_kept_by_going_back(tiny_model, sets, mask):
    settings = {"mask": mask, "training": Training(steps=40, learning_rate=1e-2)}
    free, history = contrastive(tiny_model, *sets, **settings)
    spent = float(kl(tiny_model, free, sets[1]).mean())
    assert history.ended == "steps" and history.final_keep_kl == pytest.approx(spent, rel=1e-3)
    held, history = contrastive(tiny_model, *sets, stop=Stop(keep_kl=spent / 4), **settings)
    assert history.ended == "budget"
    assert 0 < float(kl(tiny_model, held, sets[1]).mean()) <= spent / 4
    assert float(score(held, sets[0]).nll.mean()) == pytest.approx(history.final_memorized_nll, abs=1e-5)


@pytest.mark.parametrize("rate", [1e30, 3.0])
def test_a_rate_that_diverges_gives_the_best_weights_and_says_so(tiny_model, sets, mask, rate):
    with pytest.warns(RuntimeWarning, match="diverged at step .* lower the learning rate"):
        edited, history = contrastive(
            tiny_model, *sets, mask=mask, training=Training(steps=20, learning_rate=rate, keep_weight=5.0)
        )
    assert history.ended == "diverged"
    assert history.final_objective == history.objective.min()
    assert all(bool(value.isfinite().all()) for value in editable_parameters(edited).values())


@pytest.mark.parametrize(
    "make",
    [
        lambda values: torch.optim.SGD(values, lr=0.1, momentum=0.9, weight_decay=0.5),
        lambda values: torch.optim.Adam(values, lr=1e-2, weight_decay=1.0),
    ],
)
def test_no_optimizer_reaches_another_weight(tiny_model, sets, mask, make):
    edited, _ = contrastive(tiny_model, *sets, mask=mask, training=Training(steps=3, optimizer=make, max_norm=0.5))
    verify_support(tiny_model, edited, mask)
    assert changed_weights(tiny_model, edited) > 0.9 * mask.count


def test_clipping_is_over_the_chosen_weights_together(tiny_model, sets, mask):
    edited, _ = contrastive(
        tiny_model,
        *sets,
        mask=mask,
        training=Training(steps=1, max_norm=0.01, optimizer=lambda values: torch.optim.SGD(values, lr=1.0)),
    )
    before, after = editable_parameters(tiny_model), editable_parameters(edited)
    moved = [after[name] - before[name] for name in before]
    assert torch.cat([part.flatten() for part in moved]).norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("method", list(OBJECTIVES))
def test_each_objective_makes_the_targets_less_likely(tiny_model, sets, mask, method):
    before = float(score(tiny_model, sets[0]).nll.mean())
    # The tiny model's tokens have small probabilities, of which the fifth power is nothing.
    options: Any = {"beta": 1.0} if method == "satimp" else {}
    training = Training(steps=8, learning_rate=1e-2)
    edited, history = unlearn(tiny_model, *sets, stop=Stop(), method=method, mask=mask, training=training, **options)
    assert float(score(edited, sets[0]).nll.mean()) > before + 0.1
    assert history.objective.values[-1] < history.objective.values[0]


def test_objectives_are_what_their_papers_write():
    """Slow oracle: one paragraph and one token at a time, in Python's floats."""
    original = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    now = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    true = torch.tensor([[1, 4, 6], [0, 0, 3]])
    for row in range(2):
        log_p = sum(now[row, i, true[row, i]].item() for i in range(3))
        log_p0 = sum(original[row, i, true[row, i]].item() for i in range(3))
        divergence = sum(
            math.exp(original[row, i, v]) * (original[row, i, v] - now[row, i, v]).item()
            for i in range(3)
            for v in range(7)
        )
        flat = sum((math.log(1 / 7) - now[row, i, v].item()) / 7 for i in range(3) for v in range(7))
        need = {
            "contrastive": log_p / 3,
            "ascent": log_p / 3,
            "grad_diff": log_p / 3,
            "npo": 2 / 0.1 * math.log(1 + math.exp(0.1 * (log_p - log_p0))) / 3,
            "simnpo": 2 / 2.5 * math.log(1 + math.exp(2.5 / 3 * log_p)),
            "uniform": flat / 3,
        }
        for name, value in need.items():
            term: Any = OBJECTIVES[name]().target
            assert term(now, true, original)[row].item() == pytest.approx(value, rel=1e-4), name
        assert hold_kl(now, true, original)[row].item() == pytest.approx(divergence / 3, rel=1e-4)
        assert lower_nll(now, true, original)[row].item() == pytest.approx(-log_p / 3, rel=1e-4)


class Interrupt(Exception):
    """A user's Ctrl-C, at a known step."""


@pytest.mark.parametrize("at", [1, 4])
def test_an_interrupted_edit_goes_on_to_the_same_weights(tiny_model, sets, mask, tmp_path, at):
    training = Training(steps=6, batch_size=2, learning_rate=1e-2)
    straight, need = contrastive(tiny_model, *sets, mask=mask, training=training)
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    def interrupt(done: int, _: int) -> None:
        if done == at:
            raise Interrupt

    file = tmp_path / "edit.safetensors"
    begun, resumed = replace(training, checkpoint=file), replace(training, checkpoint=file, resume=True)
    with pytest.raises(Interrupt):
        contrastive(tiny_model, *sets, mask=mask, training=begun, progress=interrupt)
    assert all(torch.equal(before[name], value) for name, value in tiny_model.state_dict().items())
    with pytest.raises(InputError, match="holds an interrupted edit; continue it with resume=True"):
        contrastive(tiny_model, *sets, mask=mask, training=begun)
    with pytest.raises(InputError, match="is of another edit"):
        contrastive(tiny_model, *sets, mask=mask, training=replace(resumed, learning_rate=1e-3))
    steps: list[int] = []
    edited, history = contrastive(
        tiny_model,
        *sets,
        mask=mask,
        training=resumed,
        progress=lambda done, _: steps.append(done),
    )
    # After slow writes a few steps are taken again.
    assert 2 <= steps[0] <= at + 1 and steps == list(range(steps[0], 7)) and not file.exists()
    assert changed_weights(straight, edited) == 0
    assert history.equals(need) and history.attrs == need.attrs


def test_verify_support_notices_one_weight(tiny_model, mask):
    for value in (1e-7, -0.0):
        edited = copy.deepcopy(tiny_model)
        name, parameter = next((n, p) for n, p in edited.named_parameters() if n.endswith("mlp.W_in"))
        free = next(
            i for i in range(parameter.numel()) if i not in set(mask.indices.get(name, torch.zeros(0)).tolist())
        )
        before = copy.deepcopy(tiny_model)
        with torch.no_grad():
            dict(before.named_parameters())[name].view(-1)[free] = 0.0
            parameter.view(-1)[free] = value
        with pytest.raises(SupportError, match="1 of .* weights of '.*mlp.W_in' moved outside the mask"):
            verify_support(before, edited, mask)
        verify_support(before, edited, Mask({name: torch.tensor([free])}, {name: tuple(parameter.shape)}))


def test_bad_input_is_refused(tiny_model, sets, mask):
    memorized, keep = sets
    with pytest.raises(InputError, match="1 paragraphs are both in memorized and in keep"):
        unlearn(tiny_model, memorized, Paragraphs(torch.cat([keep.tokens, memorized.tokens[:1]]), 8))
    with pytest.raises(InputError, match="the keep set is empty"):
        unlearn(tiny_model, memorized, keep.select(np.zeros(len(keep), dtype=bool)))
    with pytest.raises(InputError, match="the mask is empty"):
        unlearn(tiny_model, memorized, keep, mask=Mask({}, mask.shapes))
    with pytest.raises(InputError, match="the mask is of another model"):
        name = next(iter(mask.indices))
        unlearn(tiny_model, memorized, keep, mask=Mask({name: torch.tensor([0])}, {name: (2, 2)}))
    with pytest.raises(InputError, match="chooses all .* attention and MLP weights"):
        everything = {name: torch.arange(p.numel()) for name, p in editable_parameters(tiny_model).items()}
        unlearn(tiny_model, memorized, keep, mask=Mask(everything, mask.shapes))
    with pytest.raises(InputError, match="9 of 9 targets are not memorized"):
        unlearn(tiny_model, keep, memorized)
    with pytest.raises((InputError, TypeCheckError)):
        unlearn(tiny_model, memorized, keep, method="forget")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="got method 'forget'; need one of npo, simnpo, .*, task_arithmetic"):
        check_choice("method", "forget", Method)
    with pytest.raises(InputError, match="need a finite number of at least 0"):
        Stop(keep_kl=-1.0)


def test_methods_are_those_that_are_implemented():
    assert set(get_args(Method)) == {*OBJECTIVES, *DROPPING}


SETTINGS = {
    "learning_rate": 1e-3,
    "batch_size": 16,
    "keep_weight": 1.0,
    "weight_decay": 0.1,
    "max_norm": 1.0,
    "optimizer": lambda tensors: torch.optim.SGD(tensors, lr=0.1),
    "checkpoint": "edit.safetensors",
}


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("method", list(DROPPING))
def test_a_setting_that_a_method_does_not_use_is_refused(tiny_model, sets, method, name):
    """Also where it equals the default: what was set was meant."""
    with pytest.raises(InputError, match=f"method '{method}' does not use {name}; leave it out"):
        unlearn(tiny_model, *sets, method=method, training=Training(**{name: SETTINGS[name]}))


def test_ascent_holds_nothing_so_a_weight_of_it_is_refused(tiny_model, sets):
    with pytest.raises(InputError, match="method 'ascent' does not use keep_weight"):
        unlearn(tiny_model, *sets, method="ascent", training=Training(keep_weight=1.0))


def test_old_keywords_are_gathered_into_a_training(tiny_model, sets, mask):
    need, _ = contrastive(tiny_model, *sets, mask=mask, training=Training(steps=3, learning_rate=1e-2))
    old: Any = {"steps": 3, "learning_rate": 1e-2}
    with pytest.warns(DeprecationWarning, match=r"write training=mechmem\.Training\(learning_rate=\.\.\., steps="):
        edited, _ = contrastive(tiny_model, *sets, mask=mask, **old)
    assert changed_weights(need, edited) == 0
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(InputError, match="unlearn got learning_rate twice; keep the one in training="),
    ):
        contrastive(tiny_model, *sets, training=Training(learning_rate=0.1), **old)
    with pytest.warns(DeprecationWarning, match="unlearn: other is called keep now"):
        other: Any = {"other": sets[1]}
        unlearn(tiny_model, sets[0], method="contrastive", mask=mask, training=FAST, **other)


FAST = Training(steps=3, learning_rate=1e-2)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "ascent"},
        {"method": "grad_diff"},
        {"method": "npo"},
        {"training": replace(FAST, steps=6, keep_weight=2.0)},
        {"training": replace(FAST, steps=7)},
        {"training": replace(FAST, steps=6, batch_size=3)},
        {"training": replace(FAST, steps=6, max_norm=1.0)},
        {"training": replace(FAST, steps=6, learning_rate=None, optimizer=lambda t: torch.optim.AdamW(t, lr=0.5))},
        {"seed": 1},
        {"mask": None},
        {"stop": Stop(keep_kl=1.0)},
    ],
)
def test_the_checkpoint_of_another_edit_is_refused(tiny_model, sets, mask, tmp_path, change):
    """Whatever decides the result: objectives with the same target term and another keep term, too."""

    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise Interrupt

    file = tmp_path / "edit.safetensors"
    begun: dict[str, Any] = {"method": "contrastive", "mask": mask, "stop": Stop(), "training": replace(FAST, steps=6)}
    with pytest.raises(Interrupt):
        unlearn(
            tiny_model, *sets, **begun | {"training": replace(begun["training"], checkpoint=file)}, progress=interrupt
        )
    other = begun | change
    other["training"] = replace(other["training"], checkpoint=file, resume=True)
    with pytest.raises(InputError, match="is of another edit"):
        unlearn(tiny_model, *sets, **other)


@pytest.mark.filterwarnings("ignore:the edit removed nothing")
def test_a_rate_that_was_not_given_is_searched_and_said(tiny_model, sets, mask):
    calls: list[tuple[int, int]] = []
    edited, history = unlearn(tiny_model, *sets, mask=mask, progress=lambda *done: calls.append(done))
    assert history.ended == "stop rule" and history.em_before == 8 and history.em_after <= 1
    assert history.em_after == float(score(edited, sets[0]).em.mean())
    tried, met = history.rates_tried, history.rates_met
    assert history.learning_rate == min(rate for rate, good in zip(tried, met, strict=True) if good)
    assert 2 <= len(tried) <= 3 and len(set(tried)) == len(tried)
    # At most half of the clusters are tried on; the others can be reported as not tuned on.
    assert len(history.rate_ids) == 2 and set(history.rate_ids) < set(sets[0].ids.tolist())
    assert len({total for _, total in calls}) == 1 and [done for done, _ in calls] == sorted(done for done, _ in calls)
    alone, history = unlearn(tiny_model, sets[0].select([0]), sets[1], mask=mask)
    assert history.rate_choice == "default: targets of one cluster, no search" and history.learning_rate == 1e-3


def test_an_edit_that_removes_nothing_says_what_to_change(tiny_model, sets, mask):
    training = Training(steps=2, learning_rate=1e-7)
    with pytest.warns(RuntimeWarning, match=r"removed nothing: .* 8\.0 before and 8\.0 after 2 steps .*1e-07.*mask"):
        _, history = unlearn(tiny_model, *sets, mask=mask, training=training)
    assert history.em_before == history.em_after == 8


def test_a_model_with_hooks_is_refused_before_its_targets_are_looked_at(tiny_model, sets):
    def zero(z, hook):  # noqa: ARG001
        return z * 0

    with (
        with_hooks(tiny_model, {"blocks.1.attn.hook_z": zero}),
        pytest.raises(InputError, match="and unlearn would not"),
    ):
        unlearn(tiny_model, *sets)


def test_settings_that_make_no_sense_are_refused():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"steps": 0}, "got 0 as steps; need a whole number of at least 1"),
        ({"learning_rate": math.nan}, "got nan as learning_rate; need a finite number above 0"),
        ({"keep_weight": -1.0}, "got -1.0 as keep_weight; need a finite number of at least 0"),
        ({"resume": True}, "got resume=True and no checkpoint"),
        ({"optimizer": torch.optim.SGD, "weight_decay": 0.1}, "got an optimizer and weight_decay, which only AdamW"),
    ]
    for settings, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            Training(**settings)
