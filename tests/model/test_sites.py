import inspect

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.model.sites import component_names, editable_parameters, reduce_by_component


def test_components_of_a_layer_are_heads_by_matrix_and_two_mlp_ends(tiny_model, small_model):
    assert component_names(tiny_model) == [*"Q0 Q1 Q2 K0 K1 K2 V0 V1 V2 O0 O1 O2".split(), "mlp_in", "mlp_out"]
    assert component_names(small_model(attn_only=True)) == "Q0 Q1 K0 K1 V0 V1 O0 O1".split()


def test_editable_parameters_are_the_attention_and_mlp_matrices_themselves(tiny_model):
    parameters = editable_parameters(tiny_model)
    every = dict(tiny_model.named_parameters())
    matrices = {name for name in every if name.startswith("blocks.") and ".W_" in name}
    assert set(parameters) == matrices and len(parameters) == 24
    assert all(parameters[name] is every[name] for name in matrices)
    assert [name for name in parameters if name.startswith("blocks.2")] == list(parameters)[12:18]


def test_gpt_neo_125m_has_the_papers_count_of_weights(small_model):
    """Stoehr et al. 2024, section 5: 84,934,656 weights; a model of that shape without memory for its weights."""
    sizes = {"n_layers": 12, "n_heads": 12, "d_model": 768, "d_head": 64, "d_mlp": 3072, "d_vocab": 50257}
    with torch.device("meta"):
        model = small_model(**sizes, device="meta", init_weights=False)
    assert sum(parameter.numel() for parameter in editable_parameters(model).values()) == 84_934_656
    assert len(component_names(model)) == 50


@pytest.mark.parametrize(
    ("reduction", "slow"),
    [
        ("max", lambda v: max(abs(x) for x in v)),
        ("sum", lambda v: sum(abs(x) for x in v)),
        ("norm", lambda v: sum(x * x for x in v) ** 0.5),
    ],
)
def test_reduction_of_each_component_equals_a_loop(tiny_model, reduction, slow):
    generator = torch.Generator().manual_seed(0)
    values = {n: torch.randn(p.shape, generator=generator) for n, p in editable_parameters(tiny_model).items()}
    result = reduce_by_component(tiny_model, values, reduction)
    assert result.dims == ("layer", "component") and result.shape == (4, 14)
    for layer in range(4):
        for component in result.component.values.tolist():
            if component.startswith("mlp"):
                part = values[f"blocks.{layer}.mlp.W_{component[4:]}"]
            else:
                part = values[f"blocks.{layer}.attn.W_{component[0]}"][int(component[1:])]
            expected = slow(part.flatten().tolist())
            np.testing.assert_allclose(result.sel(layer=layer, component=component), expected, rtol=1e-6)


def test_attention_only_models_have_no_mlp_columns(small_model):
    model = small_model(attn_only=True)
    values = {n: torch.ones_like(p) for n, p in editable_parameters(model).items()}
    assert reduce_by_component(model, values, "sum").shape == (2, 8)


def test_values_of_another_model_are_refused(tiny_model):
    values = {n: torch.ones_like(p) for n, p in editable_parameters(tiny_model).items()}
    with pytest.raises(InputError, match="reduction is 'mean'; need one of"):
        # Without the annotations' checks that the tests switch on, as a user meets it.
        inspect.unwrap(reduce_by_component)(tiny_model, values, "mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"'blocks.0.mlp.W_in' have shape .2, 2. and the parameter .21, 44."):
        reduce_by_component(tiny_model, values | {"blocks.0.mlp.W_in": torch.ones(2, 2)}, "max")
    del values["blocks.3.attn.W_O"]
    with pytest.raises(InputError, match="got no values for 'blocks.3.attn.W_O'"):
        reduce_by_component(tiny_model, values, "max")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_key_value_heads": 1}, r"1 key and value heads for 2 query heads \(grouped attention\); need layers of"),
        ({"gated_mlp": True}, r"gated MLPs \(a third matrix, W_gate\)"),
    ],
)
def test_other_layouts_are_refused(small_model, changes, sentence):
    model = small_model(**changes)
    for function in (component_names, editable_parameters):
        with pytest.raises(InputError, match=sentence):
            function(model)
