"""Transplants against tensors put together by hand, and on planted models with and without their memories."""

import copy

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from mechmem.data.errors import InputError
from mechmem.localize.transplants import transplant_layers
from mechmem.measure.scores import score
from mechmem.model.load import load_model
from mechmem.truth.planted import planted
from mechmem.truth.planted_settings import PlantedSettings
from mechmem.weights.component_choice import every_component
from mechmem.weights.edit_weights import edit_weights
from mechmem.weights.masks import Mask
from mechmem.weights.support import SupportError, verify_support
from mechmem.weights.transplant import transplant, transplanted


def bits(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.fixture
def other_model(tiny_model):
    """The same architecture with other weights, biases and layer norms included."""
    model = copy.deepcopy(tiny_model)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


# Of each component, its tensors and what of them, written out.
BY_HAND = {
    "L1H2": {f"blocks.1.attn.{name}": (2,) for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")},
    "neuron3.17": {"blocks.3.mlp.W_in": (..., 17), "blocks.3.mlp.W_out": (17,), "blocks.3.mlp.b_in": (17,)},
    "mlp2": {f"blocks.2.{name}": ... for name in ("mlp.W_in", "mlp.W_out", "mlp.b_in", "mlp.b_out", "ln2.w", "ln2.b")},
    "embed": {"embed.W_E": ..., "pos_embed.W_pos": ...},
    "unembed": {"unembed.W_U": ..., "unembed.b_U": ..., "ln_final.w": ..., "ln_final.b": ...},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_component_is_transplanted_and_nothing_else(name, tiny_model, other_model):
    before = bits(tiny_model), bits(other_model)
    mask = Mask.components(tiny_model, [name], biases=True)
    result = transplant(other_model, tiny_model, mask)
    expected = bits(tiny_model)
    for tensor, place in BY_HAND[name].items():
        expected[tensor][place] = other_model.state_dict()[tensor][place]
    assert equal(expected, bits(result)) and not equal(expected, bits(tiny_model))
    assert equal(before[0], bits(tiny_model)) and equal(before[1], bits(other_model))
    verify_support(tiny_model, result, mask)
    with pytest.raises(SupportError):
        verify_support(tiny_model, result, Mask.components(tiny_model, ["mlp0"], biases=True))
    with transplanted(other_model, result, Mask.components(tiny_model, ["layer0"], biases=True)) as inside:
        assert not equal(expected, bits(inside))
    assert equal(expected, bits(result))


def test_all_components_make_the_source_and_a_layers_are_its_halves(tiny_model, other_model):
    everything = Mask.components(tiny_model, every_component(tiny_model), biases=True)
    result = transplant(other_model, tiny_model, everything)
    assert {name for name, _ in result.named_parameters()} == set(everything.indices)
    assert equal(dict(result.named_parameters()), dict(other_model.named_parameters()))
    for biases in (True, False):
        layer, halves = (Mask.components(tiny_model, names, biases=biases) for names in (["layer2"], ["attn2", "mlp2"]))
        assert layer.overlap(halves) == 1
    heads = Mask.components(tiny_model, [f"L2H{head}" for head in range(tiny_model.cfg.n_heads)])
    assert heads.overlap(Mask.components(tiny_model, ["attn2"])) == 1
    assert heads.overlap(Mask.heads(tiny_model, [(2, head) for head in range(tiny_model.cfg.n_heads)])) == 1
    assert Mask.components(tiny_model, ["neuron3.17"]).overlap(Mask.neurons(tiny_model, [(3, 17)])) == 1


def test_the_planted_head_and_neurons_bring_the_memories_back_and_decoys_do_not():
    """Two planted halves in one model; the other model lacks both, as one that never read the text."""
    truth = planted(PlantedSettings(n_layers=2, memories=4, others=8, d_mlp=128, continuation_len=16, prefix_len=20))
    never, _ = edit_weights(truth.model, {"W_V": 0.0}, heads=[truth.head])
    with torch.no_grad():
        for layer, neuron in truth.neurons:
            never.blocks[layer].mlp.get_parameter("b_in")[neuron] = -100.0
    assert not score(never, truth.memorized).em.any()
    names = [f"neuron{layer}.{neuron}" for layer, neuron in truth.neurons]
    head, silent, loud = (f"L{layer}H{head}" for layer, head in (truth.head, truth.silent, truth.loud[0]))
    found = {
        what: score(
            transplant(truth.model, never, Mask.components(never, chosen, biases=True)), truth.memorized
        ).em.values
        for what, chosen in {
            "both": [head, *names],
            "head": [head],
            "neurons": names,
            "decoys": [silent, loud, f"neuron{truth.shared[0]}.{truth.shared[1]}"],
        }.items()
    }
    assert (found.pop("both") == 16).all()
    assert not any(em.any() for em in found.values()), "one half alone, or a decoy, is not the memory"


def test_the_layer_whose_transplant_brings_the_memory_back_is_found():
    truth = planted(PlantedSettings(n_layers=3, memories=4, others=8, d_mlp=128, continuation_len=16, prefix_len=20))
    never, _ = edit_weights(truth.model, {"W_V": 0.0}, heads=[truth.head])
    found = transplant_layers(truth.model, never, truth.memorized)
    head = f"L{truth.head[0]}H{truth.head[1]}"
    back = {str(name) for name in found.component.values if (found.em_change.sel(component=name) > 0).all()}
    assert back == {f"layer{truth.head[0]}", f"attn{truth.head[0]}"}
    assert (found.em_change.sel(component="attn1") == 16).all() and (found.em_source == 16).all()
    assert not found.em_target.any() and (found.nll_change.sel(component="attn1") < -0.1).all()
    parts = [head, f"L{truth.silent[0]}H{truth.silent[1]}", "mlp2"]
    some = transplant_layers(truth.model, never, truth.memorized, components=parts)
    assert some.em_change.mean("paragraph").values.tolist() == [16, 0, 0]
    alone = transplant(truth.model, never, Mask.components(never, [head], biases=True))
    change = score(alone, truth.memorized).nll.values - score(never, truth.memorized).nll.values
    np.testing.assert_allclose(some.nll_change.sel(component=head), change, atol=1e-6)
    assert int(some.weights.sel(component=head)) == Mask.components(never, [head], biases=True).count


def test_what_does_not_fit_is_refused(tiny_model, other_model, small_model):
    mask = Mask.components(tiny_model, ["mlp0"])
    with pytest.raises(InputError, match="source has n_layers 2 and target 4; need two models of one architecture"):
        transplant(small_model(n_layers=2, n_ctx=32, d_vocab=61), tiny_model, mask)
    half = copy.deepcopy(other_model).half()
    with pytest.raises(InputError, match=r"torch.float16 in source .* need one shape and dtype"):
        transplant(half, tiny_model, mask)
    with pytest.raises(InputError, match="chooses no weight"):
        transplant(other_model, tiny_model, Mask({}, mask.shapes))
    with pytest.raises(InputError, match=r"the mask's 'blocks.0.mlp.W_in' has shape \(2, 3\)"):
        transplant(
            other_model, tiny_model, Mask({"blocks.0.mlp.W_in": torch.tensor([1])}, {"blocks.0.mlp.W_in": (2, 3)})
        )
    for name in ("layer4", "mlp9", "L0H99", "neuron0.44", "head2", "L0", "blocks.0.mlp.W_in"):
        with pytest.raises(InputError, match=r"got the component .*; need names such as layer3, attn3, L3H"):
            Mask.components(tiny_model, [name])
    with pytest.raises(InputError, match="got no component"):
        Mask.components(tiny_model, [])


def test_raw_into_folded_and_other_tokenizers_are_refused(bundled_model):
    folded = load_model("bundled", processing="folded")
    mask = Mask.components(bundled_model, ["mlp0"])
    with pytest.raises(InputError, match="need two models of one architecture, both raw or both folded"):
        transplant(folded, bundled_model, mask)
    other = copy.deepcopy(bundled_model)
    other.tokenizer = copy.deepcopy(other.tokenizer)
    verify_support(bundled_model, transplant(other, bundled_model, mask), mask)
    other.tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))  # noqa: S106
    with pytest.raises(InputError, match="different tokenizers"):
        transplant(other, bundled_model, mask)
