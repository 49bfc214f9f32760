from typing import Any

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.activation_gradients import activation_gradients
from mechmem.model.lean.trace import HEAD_SITES, HOOKS, SITES
from mechmem.truth.planted import planted


def nll(logits, tokens, targets):
    columns = logits[:, [t - 1 for t in targets]].double().log_softmax(-1)
    return -columns.gather(-1, tokens[:, targets, None])[..., 0].mean(-1)


@pytest.fixture(scope="module")
def paras(tiny_paragraphs) -> Paragraphs:
    return tiny_paragraphs.select(np.arange(5))


@pytest.mark.parametrize("target", [None, 4, 22])
@pytest.mark.parametrize("site", SITES)
def test_it_is_the_gradient_of_each_paragraph_alone(tiny_model, paras, site, target):
    found = activation_gradients(tiny_model, paras, site=site, target=target, average=False, batch_size=2)
    assert found.paragraph.values.tolist() == paras.ids.tolist()
    product = activation_gradients(tiny_model, paras, site=site, target=target, method="gradient_x_activation")
    targets = list(range(13, 23)) if target is None else [target]
    products = []
    for row in range(5):
        tokens = paras.tokens[row : row + 1]
        for layer in (0, 3):
            kept = []

            def keep(value, hook, kept=kept):  # noqa: ARG001
                kept.append(value)
                value.retain_grad()

            logits = tiny_model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.{HOOKS[site]}", keep)])
            nll(logits, tokens, targets).sum().backward()
            size, weighed = kept[0].grad[0].abs(), (kept[0].grad * kept[0]).detach()[0]
            if site != "pattern" and site in HEAD_SITES:
                size, weighed = size.transpose(0, 1), weighed.transpose(0, 1)
            expected = size.amax(-1).numpy()
            np.testing.assert_allclose(found.values[row, layer], expected, rtol=1e-3, atol=1e-6)
            products.append(weighed.sum(-1).numpy())
            tiny_model.zero_grad(set_to_none=True)
    for layer, half in ((0, products[::2]), (3, products[1::2])):
        np.testing.assert_allclose(product.values[layer], np.mean(half, 0), rtol=1e-3, atol=1e-5)
    assert found.dims[-1] == "pos" and found.attrs["units"] == "nats per token per unit of activation"
    assert not any(parameter.grad is not None for parameter in tiny_model.parameters())
    assert not any(point.fwd_hooks for point in tiny_model.hook_dict.values())


@pytest.mark.parametrize("site", ["z", "mlp_post", "attn_out", "pattern"])
def test_integrated_gradients_add_up_to_what_zero_takes_off(tiny_model, paras, site):
    found = activation_gradients(tiny_model, paras, site=site, method="integrated", steps=100, average=False)
    targets = list(range(13, 23))
    with torch.no_grad():
        whole = nll(tiny_model(paras.tokens), paras.tokens, targets)
        for layer in range(4):
            name = f"blocks.{layer}.{HOOKS[site]}"
            gone = tiny_model.run_with_hooks(paras.tokens, fwd_hooks=[(name, lambda value, hook: value * 0)])  # noqa: ARG005
            taken = (whole - nll(gone, paras.tokens, targets)).numpy()
            total = found.isel(layer=layer).values.reshape(5, -1).sum(1)
            np.testing.assert_allclose(total, taken, rtol=0.05, atol=0.02)


def test_on_a_planted_model_products_name_the_head_and_its_trigger():
    truth = planted()
    found = activation_gradients(truth.model, truth.memorized, site="v", method="integrated", steps=16, average=False)
    size = abs(found).sum("pos").mean("paragraph").values
    assert np.unravel_index(size.argmax(), size.shape) == truth.head
    assert np.sort(size.ravel())[-2] < 0.1 * size.max()
    mine = abs(found.sel(layer=truth.head[0], head=truth.head[1])).values
    assert mine.argmax(-1).tolist() == truth.triggers.tolist()
    # Taking it away raises the NLL.
    assert found.sel(layer=truth.head[0], head=truth.head[1]).sum("pos").max().item() < 0


def test_bad_input_is_refused(tiny_model, small_model, paras):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"site": "w"}, "got site 'w'; need one of resid_pre"),
        ({"target": 0}, "got target 0; need a token position from 1 to 22"),
        ({"target": 23}, "got target 23"),
        ({"method": "integrated", "steps": 0}, "got 0 as steps"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            activation_gradients(tiny_model, paras, **arguments)
    parallel = small_model(parallel_attn_mlp=True, positional_embedding_type="rotary", rotary_dim=4, d_head=6)
    short = Paragraphs(paras.tokens[:, :12] % 17, 6)
    with pytest.raises(InputError, match="it has no 'resid_mid'"):
        activation_gradients(parallel, short, site="resid_mid")
    parallel.unembed.W_U.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite; look at the weights"):
        activation_gradients(parallel, short)
