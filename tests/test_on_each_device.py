"""What the CPU computes, a GPU computes as well; where there is none, each function at least runs as it is called."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import mechmem as mm


@pytest.fixture(scope="module")
def pairs(tiny_paragraphs) -> tuple[mm.Paragraphs, mm.Paragraphs]:
    tokens = tiny_paragraphs.tokens.clone()
    tokens[:, 4] = (tokens[:, 4] + 1) % 61
    return tiny_paragraphs, tiny_paragraphs.replace_tokens(tokens)


CALLS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "score": lambda model, clean, _: mm.score(model, clean)[["em", "nll", "match"]],
    "capture": lambda model, clean, _: mm.capture(model, clean, sites=("z", "pattern", "v"))[["z", "pattern", "v"]],
    "detection_features": lambda model, clean, _: mm.detection_features(
        model, clean, features=("output", "prefix", "residual", "lens", "heads", "neurons"), neurons=[(1, 3)]
    )[["output", "prefix", "residual", "heads", "neurons"]],
    "patch": lambda model, clean, corrupt: mm.patch(model, clean, corrupt, site="z", direction="noising"),
    "attribute": lambda model, clean, corrupt: mm.attribute(model, clean, corrupt, site="z", direction="noising"),
    "parameter_gradients": lambda model, clean, _: mm.parameter_gradients(model, clean),
    "activation_gradients": lambda model, clean, _: mm.activation_gradients(model, clean, site="v"),
    "ablate_heads": lambda model, clean, _: mm.ablate_heads(model, clean, method="zero")[["em_change", "nll_change"]],
    "perturb_prefix": lambda model, clean, _: mm.perturb_prefix(model, clean)[["em_change", "nll_change"]],
}


@pytest.mark.parametrize("name", CALLS)
def test_every_device_gives_the_numbers_of_the_cpu(name, device, device_model, tiny_model, pairs):
    there, here = (CALLS[name](model, *pairs) for model in (device_model, tiny_model))
    assert next(device_model.parameters()).device.type == device
    xr.testing.assert_allclose(there, here, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("method", ["npo", "kfac"])
@pytest.mark.filterwarnings("ignore:.*(removed nothing|unlearned nothing).*:RuntimeWarning")
def test_unlearning_runs_where_the_model_is_and_leaves_it(method, device, device_model, pairs):
    before = {name: tensor.clone() for name, tensor in device_model.state_dict().items()}
    clean = pairs[0]
    options: dict[str, Any] = {} if method == "kfac" else {"training": mm.Training(steps=2, learning_rate=1e-3)}
    edited, history = mm.unlearn(
        device_model, clean[:5], clean[5:], method=method, stop=mm.Stop(), check_targets=False, **options
    )
    assert {parameter.device.type for parameter in edited.parameters()} == {device}
    assert np.isfinite(history.memorized_nll.values).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in device_model.state_dict().items())


def test_a_scan_finds_the_same_on_every_device(device, tmp_path):
    settings = mm.ScanSettings(windows=mm.WindowSettings(limit=40), edit_distance=False)
    found = {}
    for where in ("cpu", device):
        mm.scan(settings, tmp_path / f"{where}.parquet", device=where)
        found[where] = mm.Paragraphs.load(tmp_path / f"{where}.parquet")
    assert found["cpu"].column("em").tolist() == found[device].column("em").tolist()
    np.testing.assert_allclose(found["cpu"].column("nll"), found[device].column("nll"), rtol=1e-3, atol=1e-4)
