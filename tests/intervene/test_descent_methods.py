"""Each newer objective against the step its paper writes, with whole tensors and torch's autograd."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.descent_methods import OBJECTIVES
from mechmem.intervene.loop import Stop
from mechmem.intervene.preferred import perturbed_continuations
from mechmem.intervene.rmu_terms import HELD, steered_layer
from mechmem.intervene.unlearn import unlearn
from mechmem.localize.gradients import weight_gradients
from mechmem.measure.scores import score
from mechmem.model.sites import editable_parameters
from mechmem.weights.masked_weights import MaskedWeights
from mechmem.weights.masks import Mask
from mechmem.weights.support import changed_weights
from mechmem.weights.training import Training

PREFIX = 8
Loss = Callable[[Any], Tensor]


@pytest.fixture(scope="module")
def sets(tiny_model):
    """Four paragraphs that the model says by itself, and four random ones."""
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (8, 14), generator=torch.Generator().manual_seed(1))
    for pos in range(PREFIX, 14):
        with torch.no_grad():
            tokens[:4, pos] = tiny_model(tokens[:4, :pos])[:, -1].argmax(-1)
    return Paragraphs(tokens[:4], PREFIX), Paragraphs(tokens[4:], PREFIX)


@pytest.fixture(scope="module")
def preferred(sets):
    """The memorized prefixes with the random continuations."""
    return Paragraphs(torch.cat([sets[0].prefix, sets[1].continuation], 1), PREFIX)


@pytest.fixture(scope="module")
def mask(tiny_model, sets):
    return Mask.top(weight_gradients(tiny_model, sets[0]), fraction=0.05)


def log_probs(model, paragraphs: Paragraphs) -> Tensor:
    return model(paragraphs.tokens)[:, PREFIX - 1 : -1].log_softmax(-1)


def sums(model, paragraphs: Paragraphs) -> Tensor:
    """Log-probability of each whole continuation."""
    return log_probs(model, paragraphs).gather(-1, paragraphs.continuation[..., None]).sum((1, 2))


def residual(model, paragraphs: Paragraphs, layer: int) -> Tensor:
    seen: list[Tensor] = []
    name = f"blocks.{layer}.hook_resid_post"
    model.run_with_hooks(paragraphs.tokens, fwd_hooks=[(name, lambda value, hook: seen.append(value))])  # noqa: ARG005
    return seen[0][:, PREFIX - 1 : -1]


def gradients(model, loss: Loss, mask: Mask | None) -> dict[str, Tensor]:
    """Of a loss, zero outside the mask."""
    parameters = editable_parameters(model)
    found = torch.autograd.grad(loss(model), list(parameters.values()), allow_unused=True)
    result = {}
    for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
        kept = torch.zeros_like(parameter) if gradient is None else gradient
        if mask is not None:
            allowed = torch.zeros(parameter.numel())
            allowed[mask.indices.get(name, torch.zeros(0, dtype=torch.long))] = 1
            kept = kept * allowed.view(parameter.shape)
        result[name] = kept
    return result


@torch.no_grad()
def move(model, direction: dict[str, Tensor], by: float) -> None:
    for name, parameter in editable_parameters(model).items():
        parameter.add_(direction[name], alpha=by)


def fast(model, sets, method: str, mask: Mask | None, rate: float, **options: Any):
    """Two steps of plain gradient descent: at the first the keep term has no gradient."""
    training = Training(steps=2, keep_weight=0.7, optimizer=lambda tensors: torch.optim.SGD(tensors, lr=rate))
    return unlearn(model, *sets, method=method, mask=mask, training=training, stop=Stop(), **options)[0]  # pyright: ignore[reportArgumentType]


def hold_kl(original, keep: Paragraphs) -> Loss:
    with torch.no_grad():
        before = log_probs(original, keep)
    return lambda model: (before.exp() * (before - log_probs(model, keep))).sum(-1).mean()


def npo(original, targets: Paragraphs) -> Loss:
    with torch.no_grad():
        before = sums(original, targets)
    length = targets.continuation_len
    return lambda model: (2 / 0.1 * torch.log1p((0.1 * (sums(model, targets) - before)).exp())).mean() / length


def assert_moved_alike(original, fast_model, slow_model) -> None:
    """The moves agree, to a thousandth of the largest; and there is a move."""
    for name, value in editable_parameters(slow_model).items():
        change = (value - editable_parameters(original)[name]).detach()
        error = (editable_parameters(fast_model)[name] - value).detach().abs().max()
        assert float(error) <= 1e-3 * float(change.abs().max()) + 2e-7, name
    assert any(not torch.equal(v, editable_parameters(original)[n]) for n, v in editable_parameters(slow_model).items())


@pytest.mark.parametrize("masked", [True, False])
def test_the_sharpness_aware_step_is_the_gradient_at_the_worst_point_nearby(tiny_model, sets, mask, masked):
    """Two passes: up the normalized gradient of the target term, its gradient there, and the keep term's here."""
    used, rate, radius = (mask if masked else None), 0.1, 0.05
    target, keep = npo(tiny_model, sets[0]), hold_kl(tiny_model, sets[1])
    slow = copy.deepcopy(tiny_model)
    for _ in range(2):
        first = gradients(slow, target, used)
        norm = math.sqrt(sum(float(each.double().square().sum()) for each in first.values()))
        there = copy.deepcopy(slow)
        move(there, first, radius / norm)
        step = {n: g + 0.7 * gradients(slow, keep, used)[n] for n, g in gradients(there, target, used).items()}
        move(slow, step, -rate)
    assert_moved_alike(tiny_model, fast(tiny_model, sets, "npo_sam", used, rate, radius=radius), slow)
    # The control: without the first pass the step is another one.
    plain = fast(tiny_model, sets, "npo", used, rate)
    with pytest.raises(AssertionError):
        assert_moved_alike(tiny_model, plain, slow)


def test_uphill_goes_the_radius_and_comes_back_to_the_bit(tiny_model, sets, mask):
    model = copy.deepcopy(tiny_model)
    weights = MaskedWeights(model, mask, Training(learning_rate=1e-3))
    true = sets[0].continuation

    def nll(logits: Tensor, rows: slice) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), true[rows].flatten())

    def distance() -> float:
        pairs = zip(editable_parameters(model).values(), editable_parameters(tiny_model).values(), strict=True)
        return math.sqrt(sum(float((a - b).detach().double().square().sum()) for a, b in pairs))

    with pytest.raises(KeyboardInterrupt):
        weights.accumulate(sets[0].tokens, PREFIX, nll)
        with weights.uphill(0.3):
            assert distance() == pytest.approx(0.3, rel=1e-4)
            raise KeyboardInterrupt
    assert distance() == 0.0
    # No gradient leads nowhere.
    with weights.uphill(0.3):
        assert distance() == 0.0


@pytest.mark.parametrize("logits_bytes", [1, 2**30])
def test_dpo_prefers_the_other_continuation(tiny_model, sets, mask, preferred, logits_bytes, monkeypatch):
    """Whatever number of logits is made at once, the two of a pair come together."""
    monkeypatch.setattr("mechmem.model.lean.trainable.LOGITS_BYTES", logits_bytes)
    memorized, keep = sets
    with torch.no_grad():
        before = sums(tiny_model, preferred) - sums(tiny_model, memorized)

    def target(model: Any) -> Tensor:
        gain = sums(model, preferred) - sums(model, memorized) - before
        return (-2 / 0.1 * torch.log(torch.sigmoid(0.1 * gain))).mean() / memorized.continuation_len

    slow, held = copy.deepcopy(tiny_model), hold_kl(tiny_model, keep)
    for _ in range(2):
        step = gradients(slow, lambda model: target(model) + 0.7 * held(model), mask)
        move(slow, step, -0.1)
    assert_moved_alike(tiny_model, fast(tiny_model, sets, "dpo", mask, 0.1, preferred=preferred), slow)


def test_dpo_makes_the_preferred_text_likelier_than_the_memorized_one(tiny_model, sets, preferred):
    memorized, keep = sets
    options: Any = {"preferred": preferred, "stop": Stop(), "training": Training(steps=20, learning_rate=3e-3)}
    edited, history = unlearn(tiny_model, memorized, keep, method="dpo", **options)
    with torch.no_grad():
        assert bool((sums(tiny_model, preferred) < sums(tiny_model, memorized)).all())
        assert bool((sums(edited, preferred) > sums(edited, memorized)).all())
    # The history measures the memorized text, and not the preferred one.
    assert history.memorized_nll[0] == pytest.approx(float(score(tiny_model, memorized).nll.mean()), abs=1e-5)
    assert history.final_memorized_em == float(score(edited, memorized).em.mean())


def test_without_a_preferred_text_it_is_what_the_model_writes_after_a_changed_prefix(tiny_model, sets):
    memorized, keep = sets
    found = perturbed_continuations(tiny_model, memorized, keep, seed=0)
    changed = (found.prefix != memorized.prefix).sum(1)
    assert found.tokens.shape == memorized.tokens.shape and bool((changed >= 1).all())
    text = found.prefix
    for _ in range(memorized.continuation_len):
        with torch.no_grad():
            text = torch.cat([text, tiny_model(text)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(text, found.tokens)
    matches = (found.continuation == memorized.continuation).long().cumprod(1).sum(1)
    assert bool((matches <= memorized.continuation_len // 5).all())
    # As few tokens as are needed: with a model that gives in at once, a tenth of the prefix.
    assert int(changed.min()) == 1
    assert torch.equal(perturbed_continuations(tiny_model, memorized, keep, seed=0).tokens, found.tokens)


def test_a_text_that_is_said_after_every_prefix_leaves_nothing_to_prefer(tiny_model, sets):
    stubborn = copy.deepcopy(tiny_model)
    with torch.no_grad():
        stubborn.b_U.zero_()
        stubborn.b_U[3] = 100.0
    said = Paragraphs(torch.cat([sets[0].prefix, torch.full((4, 6), 3)], 1), PREFIX)
    with pytest.raises(InputError, match="continues 4 of 4 targets .number 0 first. with their text"):
        unlearn(stubborn, said, sets[1], method="dpo")


@pytest.mark.filterwarnings("ignore:the edit removed nothing")
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("masked", [True, False])
def test_rmu_steers_the_residual_stream_and_holds_that_of_the_keep_set(tiny_model, sets, mask, masked, layer):
    """Also in the last layer, after which no other position is computed."""
    used, coefficient = (mask if masked else None), 1.5
    memorized, keep = sets
    with torch.no_grad():
        before, held = (residual(tiny_model, part, layer) for part in sets)
    square = before.square().sum(-1).mean()
    direction = torch.randn(tiny_model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    goal = coefficient * square.sqrt() * direction / direction.norm()

    def loss(model: Any) -> Tensor:
        target = (residual(model, memorized, layer) - goal).square().sum(-1).mean() / square
        drift = (residual(model, keep, layer) - held).square().sum(-1).mean() / square
        return target + 0.7 * HELD * drift

    assert tiny_model.cfg.n_layers == 4
    slow = copy.deepcopy(tiny_model)
    for _ in range(2):
        move(slow, gradients(slow, loss, used), -1e-3)
    edited = fast(tiny_model, sets, "rmu", used, 1e-3, layer=layer, coefficient=coefficient)
    assert_moved_alike(tiny_model, edited, slow)
    if layer == 1:
        later = {name for name in editable_parameters(edited) if name.startswith("blocks.2.")}
        moved = [
            n for n in later if not torch.equal(editable_parameters(edited)[n], editable_parameters(tiny_model)[n])
        ]
        assert later and not moved


def test_rmu_ends_where_it_steers_to(tiny_model, sets):
    memorized, keep = sets
    training = Training(steps=40, learning_rate=3e-3)
    edited, history = unlearn(tiny_model, memorized, keep, method="rmu", layer=1, training=training, stop=Stop())
    direction = torch.randn(tiny_model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        near = [
            [float(functional.cosine_similarity(residual(m, part, 1), direction, dim=-1).mean()) for part in sets]
            for m in (tiny_model, edited)
        ]
    assert abs(near[0][0]) < 0.5 and near[1][0] > 0.8
    assert abs(near[1][1] - near[0][1]) < 0.2, "the keep set is held"
    assert history.objective.units == "squared distance, 1: the residual stream's own length, minimized"
    assert float(score(edited, memorized).nll.mean()) > float(score(tiny_model, memorized).nll.mean()) + 1


@pytest.mark.parametrize(
    ("method", "options", "weight"),
    [
        ("wga", {}, lambda p: p),
        ("wga", {"alpha": 0.5}, lambda p: p**0.5),
        ("satimp", {}, lambda p: p**5 * (1 - p)),
        ("satimp", {"beta": 2.0}, lambda p: p**2 * (1 - p)),
    ],
)
def test_weighted_ascent_has_the_gradient_of_ascent_with_weights(method, options, weight):
    """Slow oracle: the weights are constants, as the authors' programs have them."""
    logits = (2 * torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2))).double().requires_grad_()
    true = torch.tensor([[1, 4, 5, 0], [0, 0, 3, 2], [5, 1, 1, 3]])
    log_p = logits.log_softmax(-1).gather(-1, true[..., None]).squeeze(-1)
    slow = (weight(log_p.exp().detach()) * log_p).mean(-1).sum()
    (need,) = torch.autograd.grad(slow, logits, retain_graph=True)
    term = OBJECTIVES[method](**options).target
    assert term is not None
    value = term(logits.log_softmax(-1), true, torch.empty(0))
    (found,) = torch.autograd.grad(value.sum(), logits)
    assert torch.allclose(found, need, atol=1e-12)
    # What is descended is bounded by zero, where everything is forgotten.
    gone = torch.full((1, 4, 6), -50.0).double()
    assert 0 <= float(term(gone, true[:1], gone)) < 1e-9 < float(value.detach().min())


@pytest.mark.filterwarnings("ignore:the edit removed nothing")
@pytest.mark.parametrize(
    ("method", "other"), [("npo_sam", {"radius": 0.2}), ("rmu", {"coefficient": 3.0}), ("dpo", {"beta": 0.2})]
)
def test_an_interrupted_edit_goes_on_to_the_same_weights(tiny_model, sets, preferred, mask, tmp_path, method, other):
    training = Training(steps=3, batch_size=2, learning_rate=1e-2)
    begun = replace(training, checkpoint=tmp_path / "edit.safetensors")
    common: dict[str, Any] = {"method": method, "mask": mask, "stop": Stop()}
    common |= {"preferred": preferred} if method == "dpo" else {}

    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    straight, need = unlearn(tiny_model, *sets, training=training, **common)
    with pytest.raises(KeyboardInterrupt):
        unlearn(tiny_model, *sets, training=begun, progress=interrupt, **common)
    with pytest.raises(InputError, match="is of another edit"):
        unlearn(tiny_model, *sets, training=replace(begun, resume=True), **common, **other)
    edited, history = unlearn(tiny_model, *sets, training=replace(begun, resume=True), **common)
    assert changed_weights(straight, edited) == 0 and history.equals(need)


def test_a_searched_rate_takes_the_preferred_text_of_the_targets_it_is_tried_on(tiny_model, sets, preferred):
    _, history = unlearn(tiny_model, *sets, method="dpo", preferred=preferred, training=Training(steps=20))
    assert history.ended == "stop rule" and len(history.rate_ids) == 2


def test_options_that_a_method_does_not_use_are_refused(tiny_model, sets, preferred):
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("npo", {"radius": 0.1}, "method 'npo' does not use radius; leave it out"),
        ("contrastive", {"beta": 0.1}, "method 'contrastive' does not use beta"),
        ("npo_sam", {"layer": 1, "coefficient": 2.0}, "does not use layer, coefficient; leave them out"),
        ("kfac", {"beta": 0.1}, "method 'kfac' does not use beta"),
        ("wga", {"preferred": preferred}, "method 'wga' does not use preferred"),
        ("npo_sam", {"radius": 0.0}, "got 0.0 as radius; need a finite number above 0"),
        ("rmu", {"layer": 4}, "got layer 4; need one below 4, counted from zero"),
        ("rmu", {"layer": -1}, "got -1 as layer; need a whole number of at least 0"),
        ("dpo", {"preferred": preferred[:3]}, r"got preferred \[3, 14\] with a prefix of 8; need \[4, 14\] with 8"),
        ("dpo", {"preferred": sets[0]}, "4 of 4 preferred continuations are the memorized ones"),
    ]
    for method, options, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            unlearn(tiny_model, *sets, method=method, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="unexpected keyword argument 'steering'; options are beta, margin"):
        unlearn(tiny_model, *sets, steering=1)  # pyright: ignore[reportCallIssue]


def test_a_mask_behind_the_steered_layer_is_refused(tiny_model):
    late = Mask.heads(tiny_model, [(1, 0)])
    with pytest.raises(InputError, match="first weight is in layer 1, and no weight behind layer 0"):
        steered_layer(tiny_model, 0, late)
    assert steered_layer(tiny_model, 1, late) == 1
