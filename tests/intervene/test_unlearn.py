import copy

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.unlearn import unlearn
from mechmem.localize.gradients import weight_gradients
from mechmem.measure.scores import kl, score
from mechmem.model.masks import Mask
from mechmem.model.support import SupportError, changed_weights, verify_support


@pytest.fixture(scope="module")
def sets(tiny_model):
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (14, 16), generator=torch.Generator().manual_seed(1))
    return Paragraphs(tokens[:5], 8), Paragraphs(tokens[5:], 8)


@pytest.fixture(scope="module")
def mask(tiny_model, sets):
    return Mask.top(weight_gradients(tiny_model, sets[0]), fraction=0.02)


@pytest.mark.parametrize("weight_decay", [0.0, 1.0])
def test_a_sparse_update_leaves_every_other_weight_bit_identical(tiny_model, sets, mask, weight_decay):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    edited, _ = unlearn(tiny_model, *sets, mask=mask, steps=4, learning_rate=1e-2, weight_decay=weight_decay)
    after = edited.state_dict()
    for name, value in before.items():
        assert torch.equal(tiny_model.state_dict()[name], value), f"the caller's {name} moved"
        moved = (after[name].view(-1) != value.view(-1)).nonzero().flatten()
        assert set(moved.tolist()) <= set(mask.indices.get(name, torch.zeros(0)).tolist())
    assert 0.9 * mask.count < changed_weights(tiny_model, edited) <= mask.count


def test_nll_of_the_targets_rises_and_history_speaks_of_the_values_before_each_step(tiny_model, sets, mask):
    memorized, keep = sets
    edited, history = unlearn(tiny_model, memorized, keep, mask=mask, steps=6, learning_rate=1e-2)
    assert float(score(edited, memorized).nll.mean()) > float(score(tiny_model, memorized).nll.mean()) + 0.1
    assert history.memorized_nll[0] == pytest.approx(float(score(tiny_model, memorized).nll.mean()), abs=1e-5)
    assert history.keep_kl[0] == pytest.approx(0.0, abs=1e-6)
    assert history.sizes["step"] == 6 and bool((history.memorized_nll.diff("step") > 0).all())


def test_the_keep_term_holds_the_keep_set(tiny_model, sets):
    memorized, keep = sets
    drift = [
        float(
            kl(
                tiny_model, unlearn(tiny_model, memorized, keep, steps=8, learning_rate=3e-3, keep_weight=w)[0], keep
            ).mean()
        )
        for w in (0.0, 30.0)
    ]
    assert drift[1] < 0.5 * drift[0]


def test_the_update_is_adamw_on_the_masked_weights(tiny_model, sets, mask):
    """Slow oracle: AdamW over whole tensors, with masked gradients and no decay, takes the same steps."""
    memorized, keep = sets
    edited, _ = unlearn(tiny_model, memorized, keep, mask=mask, steps=3, learning_rate=1e-2, keep_weight=0.7)
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

    edited, history = unlearn(tiny_model, *sets, mask=mask, steps=50, batch_size=2, learning_rate=1e-3, stop=stop)
    assert history.sizes["step"] == 3
    again, _ = unlearn(tiny_model, *sets, mask=mask, steps=2, batch_size=2, learning_rate=1e-3)
    assert changed_weights(edited, again) == 0
    other, _ = unlearn(tiny_model, *sets, mask=mask, steps=2, batch_size=2, learning_rate=1e-3, seed=1)
    assert changed_weights(edited, other) > 0


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
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        unlearn(tiny_model, memorized, keep, steps=20, learning_rate=1e30)
