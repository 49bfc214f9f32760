"""The whole public surface: what it does with hooks on a model, and that the docs name all of it."""

import copy
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError

DOCS = Path(__file__).parents[1] / "docs"
POINT = "blocks.1.attn.hook_z"
VOCABULARY = 61
COUNTS = np.arange(1, VOCABULARY + 1)
P: Any = mm.Paragraphs(torch.randint(0, VOCABULARY, (6, 23), generator=torch.Generator().manual_seed(5)), prefix_len=13)


def models_of(function: Callable) -> list[str]:
    """The parameters that are a model."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if "HookedTransformer" in str(p.annotation)]


TAKE_MODELS = sorted(
    name
    for name in set(mm.__all__) - {"random_neurons"}  # it reads the model's sizes alone, which no hook changes
    if inspect.isfunction(getattr(mm, name)) and models_of(getattr(mm, name))
)


def policy(name: str) -> str | None:
    return getattr(getattr(mm, name), "hooks", None)


# What runs hooks: (plain model, the model under test) -> a result that the hook must change.
RUN: dict[str, Callable[[Any, Any], Any]] = {
    "ablate_greedily": lambda _, model: mm.ablate_greedily(model, P, count=2),
    "ablate_heads": lambda _, model: mm.ablate_heads(model, P),
    "ablate_layers": lambda _, model: mm.ablate_layers(model, P),
    "activation_gradients": lambda _, model: mm.activation_gradients(model, P),
    "capture": lambda _, model: mm.capture(model, P, "resid_post"),
    "contrastive_gradients": lambda _, model: mm.contrastive_gradients(model, P[:3], P[3:]),
    "detection_features": lambda _, model: mm.detection_features(model, P),
    "evaluate": lambda plain, model: mm.evaluate(plain, model, {"targets": P}),
    "evaluate_detector": lambda plain, model: of_one_token(plain, model),
    "kl": lambda plain, model: mm.kl(plain, model, P),
    "layer_similarity": lambda plain, model: mm.layer_similarity(plain, model, P),
    "logit_lens": lambda _, model: mm.logit_lens(model, P),
    "membership_probe": lambda plain, model: mm.membership_probe(plain, model, P[:3], P[3:], folds=2),
    "paragraph_costs": lambda plain, model: mm.paragraph_costs(plain, model, P),
    "paragraph_gradients": lambda _, model: mm.paragraph_gradients(model, P),
    "parameter_gradients": lambda _, model: mm.parameter_gradients(model, P),
    "perturb_prefix": lambda _, model: mm.perturb_prefix(model, P),
    "rare_token_attention": lambda _, model: mm.rare_token_attention(model, P, COUNTS, permutations=5),
    "score": lambda _, model: mm.score(model, P),
    "verbatim": lambda _, model: mm.verbatim(model, P),
    "weight_gradients": lambda _, model: mm.weight_gradients(model, P),
    "with_covariates": lambda _, model: mm.with_covariates(P, model=model),
    "worst_perturbations": lambda plain, model: mm.worst_perturbations(model, P, mm.perturb_prefix(plain, P)),
}


def of_one_token(plain: Any, model: Any) -> xr.Dataset:
    """A detector with random weights on paragraphs of one token, half of which the plain model says."""
    from tests.detect.monitor.conftest import random_detector

    said = mm.score(plain, P).greedy.values[:, :1]
    tokens = torch.cat([P.tokens[:, :13], torch.from_numpy(said)], 1).repeat(2, 1)
    tokens[6:, -1] = (tokens[6:, -1] + 1) % VOCABULARY
    detector, settings = random_detector(plain), mm.EvaluationSettings(ks=(0,), draws=20)
    return mm.evaluate_detector(detector, model, mm.Paragraphs(tokens, 13), settings=settings)


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model)


def silence_one_head(model) -> None:
    def silence(z, hook):  # noqa: ARG001
        z[:, :, 2] = 0.0
        return z

    model.add_hook(POINT, silence)


def numbers(result: Any) -> list[np.ndarray]:
    """Every number in a result."""
    if isinstance(result, torch.Tensor):
        return [result.detach().cpu().numpy()]
    if isinstance(result, np.ndarray):
        return [result]
    if isinstance(result, xr.DataArray):
        return [result.values] if result.dtype.kind in "fiub" else []
    if isinstance(result, xr.Dataset):
        return [array for name in sorted(map(str, result.data_vars)) for array in numbers(result[name])]
    if isinstance(result, mm.Paragraphs):
        assert result.table is not None
        columns = result.table.with_format("pandas")[:].select_dtypes("number")  # pyright: ignore[reportAttributeAccessIssue]
        return [result.tokens.numpy(), *(columns[name].to_numpy() for name in sorted(columns))]
    if isinstance(result, dict):
        return [array for name in sorted(result) for array in numbers(result[name])]
    if isinstance(result, tuple):
        return [array for each in result for array in numbers(each)]
    raise TypeError(f"{type(result).__name__}: say where its numbers are")


def same(left: Any, right: Any) -> bool:
    pairs = list(zip(numbers(left), numbers(right), strict=True))
    assert pairs
    return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-7, equal_nan=True) for a, b in pairs)


def test_every_function_that_takes_a_model_has_a_policy_and_a_case():
    assert {name for name in TAKE_MODELS if policy(name) not in ("run", "refuse")} == set()
    assert {name for name in TAKE_MODELS if policy(name) == "run"} <= set(RUN) <= set(TAKE_MODELS)


@pytest.mark.parametrize("name", [name for name in RUN if policy(name) == "run"])
def test_what_runs_hooks_gives_another_result_with_a_hook(name, tiny_model, model):
    without = RUN[name](tiny_model, model)
    assert same(without, RUN[name](tiny_model, model)), "the same result twice"
    silence_one_head(model)
    assert not same(without, RUN[name](tiny_model, model))


@pytest.mark.parametrize("name", [name for name in TAKE_MODELS if policy(name) == "refuse"])
def test_what_would_leave_hooks_out_refuses_and_says_how_to_go_on(name, tiny_model, model):
    function = getattr(mm, name)
    silence_one_head(model)
    for parameter in models_of(function):
        models = dict.fromkeys(models_of(function), tiny_model) | {parameter: model}
        with pytest.raises(
            InputError, match=rf"hooks on {POINT}, and {name} would not run them.*model\.reset_hooks\(\)"
        ):
            function(**models)


def test_the_docs_table_of_hooks_is_the_codes():
    said = dict(re.findall(r"^\| `(\w+)` \| (runs|refuses) \|$", (DOCS / "hooks.md").read_text(), re.M))
    policies = {name: found for name in TAKE_MODELS if (found := policy(name))}
    assert said | {name: {"run": "runs", "refuse": "refuses"}[policies[name]] for name in policies} == said


def test_the_docs_name_everything_public():
    text = "\n".join(page.read_text() for page in [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))])
    named = set(re.findall(r"(?:`|mm\.|mechmem\.)(\w+)", text))
    assert sorted(set(mm.__all__) - named) == []
