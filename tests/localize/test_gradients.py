import copy

import numpy as np
import pytest
import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.gradients import layer_shares, parameter_gradients, weight_gradients
from mechmem.measure.scores import score
from mechmem.model.sites import editable_parameters


def test_gradients_are_finite_differences_in_double_precision(small_model):
    model = small_model(dtype=torch.float64, d_mlp=12)
    paras = Paragraphs(torch.randint(0, 17, (5, 11), generator=torch.Generator().manual_seed(2)), 4)
    gradients = weight_gradients(model, paras, batch_size=2)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in editable_parameters(model).items():
        for index in torch.randint(0, parameter.numel(), (3,), generator=generator).tolist():
            values = []
            for step in (1e-5, -1e-5):
                changed = copy.deepcopy(model)
                with torch.no_grad():
                    dict(changed.named_parameters())[name].view(-1)[index] += step
                values.append(float(score(changed, paras).nll.mean()))
            slope = (values[0] - values[1]) / 2e-5
            assert gradients[name].flatten()[index].item() == pytest.approx(slope, rel=1e-4, abs=1e-8), (name, index)


def hand_loop(model, paras: Paragraphs, first_column: int) -> dict[str, torch.Tensor]:
    """One paragraph at a time, one term at a time, from the logits of every position."""
    model = copy.deepcopy(model)
    for row in paras.tokens:
        log_probs = model(row[None])[0].log_softmax(-1)
        targets = range(first_column + 1, len(row))
        torch.stack([-log_probs[t - 1, row[t]] / len(targets) for t in targets]).sum().backward()
    return {name: p.grad / len(paras) for name, p in model.named_parameters() if p.grad is not None}


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(ours[n], theirs[n], rtol=1e-3, atol=1e-5) for n in ours)


def test_gradients_are_those_of_a_hand_loop_over_the_continuation_alone(tiny_model, tiny_paragraphs):
    gradients = weight_gradients(tiny_model, tiny_paragraphs, batch_size=4)
    assert close(gradients, hand_loop(tiny_model, tiny_paragraphs, 12))
    assert not close(gradients, hand_loop(tiny_model, tiny_paragraphs, 13))
    assert not close(gradients, hand_loop(tiny_model, tiny_paragraphs, 0))


def test_batch_size_does_not_matter(tiny_model, tiny_paragraphs):
    seen: list[tuple[int, int]] = []
    one = weight_gradients(tiny_model, tiny_paragraphs, batch_size=11)
    parts = weight_gradients(tiny_model, tiny_paragraphs, batch_size=3, progress=lambda *done: seen.append(done))
    assert close(one, parts)
    assert seen == [(3, 11), (6, 11), (9, 11), (11, 11)]


def test_the_model_is_left_as_it_was(tiny_model, tiny_paragraphs):
    model = copy.deepcopy(tiny_model)
    model.blocks[0].attn.W_Q.requires_grad_(False)
    model.embed.W_E.grad = torch.ones_like(model.embed.W_E)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        gradients = weight_gradients(model, tiny_paragraphs)
    assert gradients["blocks.0.attn.W_Q"].abs().max() > 0 and not gradients["blocks.0.attn.W_Q"].requires_grad
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name != "blocks.0.attn.W_Q")
        assert (parameter.grad is None) == (name != "embed.W_E")
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_component_scores_are_the_largest_gradients(tiny_model, tiny_paragraphs):
    gradients = weight_gradients(tiny_model, tiny_paragraphs)
    result = parameter_gradients(tiny_model, tiny_paragraphs)
    expected = gradients["blocks.1.attn.W_V"][2].abs().max().item()
    assert float(result.sel(layer=1, component="V2")) == pytest.approx(expected, rel=1e-5)
    total = sum(gradient.abs().double().sum().item() for gradient in gradients.values())
    assert float(parameter_gradients(tiny_model, tiny_paragraphs, reduction="sum").sum()) == pytest.approx(total)
    assert result.attrs["units"] == "nats per token per unit of weight"


def test_the_gradient_is_of_the_mean_and_not_the_mean_of_gradients(tiny_model, tiny_paragraphs):
    together = parameter_gradients(tiny_model, tiny_paragraphs)
    single = [parameter_gradients(tiny_model, tiny_paragraphs.select(np.array([i]))) for i in range(11)]
    alone = xr.concat(single, dim="paragraph", combine_attrs="override").mean("paragraph")
    assert bool((together <= alone + 1e-6).all()) and float(together.sum()) < 0.8 * float(alone.sum())


def test_layer_shares_sum_to_one_in_every_set():
    data = xr.DataArray(np.arange(1.0, 25).reshape(2, 3, 4), dims=("set", "layer", "component"))
    shares = layer_shares(data)
    assert shares.dims == ("set", "layer")
    np.testing.assert_allclose(shares.sum("layer"), 1)
    np.testing.assert_allclose(shares[0], [10 / 78, 26 / 78, 42 / 78])


def test_what_cannot_be_used_is_refused(tiny_model, tiny_paragraphs, small_model):
    with pytest.raises(InputError, match="got 0 paragraphs"):
        weight_gradients(tiny_model, tiny_paragraphs.select(np.zeros(11, dtype=bool)))
    grouped = small_model(n_key_value_heads=1)
    with pytest.raises(InputError, match="grouped attention"):
        parameter_gradients(grouped, Paragraphs(torch.zeros(1, 8, dtype=torch.long), 4))
