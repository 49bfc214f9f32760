import copy

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.intervene.attacks.quantize import quantization_attack, quantize
from mechmem.measure.scores import score
from mechmem.model.sites import editable_parameters
from mechmem.weights.support import changed_weights


def channels(name: str, weight: torch.Tensor) -> list[torch.Tensor]:
    """Views of a weight, one for each number that its product gives."""
    if name.endswith(("W_Q", "W_K", "W_V")):
        return [weight[head, :, out] for head in range(weight.shape[0]) for out in range(weight.shape[2])]
    if name.endswith("W_O"):
        return [weight[:, :, out] for out in range(weight.shape[2])]
    return [weight[:, out] for out in range(weight.shape[1])]


@pytest.mark.parametrize(("scheme", "highest"), [("int8", 127), ("int4", 7)])
def test_each_output_is_rounded_to_its_own_levels(tiny_model, scheme, highest):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.blocks[1].mlp.W_in[:, 3] = 0
    quantized = quantize(model, scheme)
    after = editable_parameters(quantized)
    for name, weight in editable_parameters(model).items():
        pairs = list(zip(channels(name, weight), channels(name, after[name]), strict=True))
        assert sum(channel.numel() for channel, _ in pairs) == weight.numel()
        for channel, rounded in pairs:
            largest = max(abs(x) for x in channel.flatten().tolist())
            step = largest / highest
            expected = [round(x / step) * step if step else 0.0 for x in channel.flatten().tolist()]
            assert rounded.flatten().tolist() == pytest.approx(expected, abs=1e-6)
            assert float(rounded.detach().abs().max()) == pytest.approx(largest)
    assert (quantized.blocks[1].mlp.W_in[:, 3] == 0).all()
    others = {name for name in before if name not in after}
    assert others and all(torch.equal(quantized.state_dict()[n], model.state_dict()[n]) for n in others)
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


@pytest.mark.parametrize(("scheme", "bits"), [("float16", 10), ("bfloat16", 7)])
def test_halves_round_the_mantissa(tiny_model, scheme, bits):
    after = editable_parameters(quantize(tiny_model, scheme))
    for name, weight in editable_parameters(tiny_model).items():
        mantissa, exponent = np.frexp(weight.detach().numpy().astype(np.float64))
        expected = np.ldexp(np.round(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)
        # Below 6e-5 float16 has fewer bits.
        assert np.allclose(after[name].detach().numpy(), expected, rtol=0, atol=1e-7 if scheme == "float16" else 0)
        assert after[name].dtype == weight.dtype


def test_an_edit_within_half_a_level_is_undone_and_a_larger_one_is_not(tiny_model, tiny_paragraphs):
    """Theorem: rounding is a projection, and no weight moved by less than half a level leaves its level."""
    grid = quantize(tiny_model, "int8")
    generator = torch.Generator().manual_seed(1)
    for size, undone in ((0.45, True), (3.0, False)):
        edited = copy.deepcopy(grid)
        with torch.no_grad():
            for name, weight in editable_parameters(edited).items():
                for channel in channels(name, weight):
                    largest = channel.abs().max()
                    noise = size * largest / 127 * (2 * torch.rand(channel.shape, generator=generator) - 1)
                    # The largest keeps the scale.
                    channel += torch.where(channel.abs() < 0.9 * largest, noise, 0.0)
        nll = score(grid, tiny_paragraphs).nll
        assert abs(score(edited, tiny_paragraphs).nll - nll).max() > 1e-3
        found = quantization_attack(edited, tiny_paragraphs, schemes=("int8",)).nll.sel(scheme="int8")
        assert (abs(found - nll).max() < 1e-4) == undone


def test_the_attack_scores_the_rounded_models(tiny_model, tiny_paragraphs):
    seen = []
    found = quantization_attack(tiny_model, tiny_paragraphs, progress=lambda *done: seen.append(done))
    assert found.scheme.values.tolist() == ["float16", "bfloat16", "int8", "int4"]
    for scheme in ("bfloat16", "int4"):
        scores = score(quantize(tiny_model, scheme), tiny_paragraphs)
        assert found.nll.sel(scheme=scheme).values.tolist() == scores.nll.values.tolist()
        assert found.em.sel(scheme=scheme).values.tolist() == scores.em.values.tolist()
    rise = abs(found.nll - score(tiny_model, tiny_paragraphs).nll).mean("paragraph")
    assert 0 < rise.sel(scheme="float16") < rise.sel(scheme="int8") < rise.sel(scheme="int4")
    assert seen == [(11, 44), (22, 44), (33, 44), (44, 44)]
    assert changed_weights(tiny_model, quantize(tiny_model, "int4")) > 0


def test_bad_input_is_refused(tiny_model, tiny_paragraphs):
    with pytest.raises(InputError, match="got schemes .*; need some of float16"):
        quantization_attack(tiny_model, tiny_paragraphs, schemes=())
