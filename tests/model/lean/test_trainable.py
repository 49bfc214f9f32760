import copy

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mechmem.data.errors import InputError
from mechmem.model.forward import continuation_logits
from mechmem.model.hooks import frozen
from mechmem.model.lean.trainable import SPARSE_SHARE, TrainableModel, picked
from mechmem.model.sites import editable_parameters
from mechmem.weights.masks import Mask


@pytest.fixture(scope="module")
def tokens(tiny_model):
    return torch.randint(0, tiny_model.cfg.d_vocab, (5, 30), generator=torch.Generator().manual_seed(3))


def random_mask(model, share: float) -> Mask:
    generator = torch.Generator().manual_seed(7)
    parameters = editable_parameters(model)
    chosen = {
        name: torch.randperm(p.numel(), generator=generator)[: max(1, round(share * p.numel()))].sort().values
        for name, p in parameters.items()
    }
    return Mask(chosen, {name: tuple(p.shape) for name, p in parameters.items()})


def loss_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 12:].flatten())


def hooked_gradients(model, tokens) -> dict[str, torch.Tensor]:
    """Slow oracle: the hooked model's own forward, and gradients of whole tensors."""
    model = copy.deepcopy(model)
    parameters = editable_parameters(model)
    loss = loss_of(continuation_logits(model, tokens, 12), tokens)
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize("share", [0.5 * SPARSE_SHARE, 0.1, None])
@pytest.mark.parametrize("family", ["neo", "pythia"])
def test_logits_and_gradients_are_those_of_the_hooked_model(tiny_model, small_model, tokens, family, share):
    model = copy.deepcopy(tiny_model)
    if family == "pythia":
        model = small_model(
            positional_embedding_type="rotary",
            rotary_dim=4,
            d_head=6,
            d_model=12,
            parallel_attn_mlp=True,
            normalization_type="LNPre",
            d_vocab=61,
            n_ctx=40,
            original_architecture="GPTNeoXForCausalLM",
        )
    mask = None if share is None else random_mask(model, share)
    need = hooked_gradients(model, tokens)
    with frozen(model):
        trainable = TrainableModel(model, list(editable_parameters(model)), mask and mask.indices)
        logits = trainable.continuation_logits(tokens, 12)
        assert torch.allclose(logits, continuation_logits(model, tokens, 12), atol=1e-5)
        found = torch.autograd.grad(loss_of(logits, tokens), list(trainable.values.values()))
    for name, gradient in zip(trainable.values, found, strict=True):
        expected = need[name] if mask is None else need[name].flatten()[mask.indices[name]]
        assert torch.allclose(gradient, expected, atol=1e-6, rtol=1e-4), name


def test_what_is_written_is_seen_by_both_forwards(tiny_model, tokens):
    model = copy.deepcopy(tiny_model)
    mask = random_mask(model, 0.05)
    with frozen(model):
        trainable = TrainableModel(model, list(mask.indices), mask.indices)
        with torch.no_grad():
            for value in trainable.values.values():
                value += 0.3
        before = trainable.continuation_logits(tokens, 12)
        trainable.write()
        after = trainable.continuation_logits(tokens, 12)
    assert not torch.allclose(before, after, atol=1e-2)
    assert torch.allclose(after, continuation_logits(model, tokens, 12), atol=1e-5)
    for name, parameter in editable_parameters(model).items():
        moved = (parameter.flatten() != editable_parameters(tiny_model)[name].flatten()).nonzero().flatten()
        assert torch.equal(moved, mask.indices[name])


def test_picked_products_are_entries_of_the_whole_one():
    generator = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(17, 5, generator=generator), torch.randn(17, 7, generator=generator)
    rows, columns = torch.tensor([0, 4, 2, 4]), torch.tensor([6, 0, 3, 0])
    assert torch.allclose(picked(x, gradient, rows, columns), (x.T @ gradient)[rows, columns], atol=1e-6)


class Shapes(TorchDispatchMode):
    """Notes the shape of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ARG002
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and "mm" in func.__name__:
            self.seen.add(tuple(result.shape))
        return result


def test_a_sparse_mask_makes_no_matrix_of_gradients(tiny_model, tokens, monkeypatch):
    """The few weights' gradients must not come by way of all of them; with another share they do, and it is seen."""
    width, inner = tiny_model.cfg.d_model, tiny_model.cfg.d_mlp
    for share, whole in ((SPARSE_SHARE, False), (0.0, True)):
        monkeypatch.setattr("mechmem.model.lean.trainable.SPARSE_SHARE", share)
        model = copy.deepcopy(tiny_model)
        mask = random_mask(model, 0.002)
        with frozen(model):
            trainable = TrainableModel(model, list(mask.indices), mask.indices)
            loss = loss_of(trainable.continuation_logits(tokens, 12), tokens)
            with Shapes() as shapes:
                torch.autograd.grad(loss, list(trainable.values.values()))
        assert bool({(width, inner), (inner, width)} & shapes.seen) is whole


def test_a_model_that_has_no_lean_forward_is_refused(small_model):
    with pytest.raises(InputError, match="need a GPT-Neo, GPT-2 or GPT-NeoX"):
        TrainableModel(small_model(attn_only=True), [], None)
