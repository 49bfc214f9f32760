"""No interval of any result reaches beyond what its quantity can be, however few clusters there are."""

import ast
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.detect.evaluation.compared_methods import EvaluationSettings, MethodScores, compare_methods
from mechmem.intervene.attack import AttackSizes
from mechmem.localize.patch_experiment import patch_experiment
from mechmem.localize.perturbed_token import perturbed_token_effects
from mechmem.measure.scaling_curves import with_curves
from mechmem.stats.bootstrap import cluster_bootstrap, cluster_bootstrap_difference
from mechmem.stats.cell_intervals import cell_intervals
from mechmem.stats.ranges import change_of, cut, range_of
from mechmem.study.kept_for_view import with_intervals

LENGTH = 9
ROOT = Path(__file__).parents[2]
# Quantities that have no range, by the end of their name, and slopes.
WITHOUT_RANGE = ("nll_change", "per_count_doubling", "per_prefix_doubling", "per_size_doubling")


def possible(name: str, values: xr.DataArray) -> tuple[float, float]:
    """What a result's variable can be, from its unit and name; a variable that this does not know fails."""
    units, low, high = values.attrs["units"], -math.inf, math.inf
    if name.endswith(WITHOUT_RANGE):
        return low, high
    if name == "perplexity":
        return 1, high
    if units == "tokens":
        low, high = 0, LENGTH
    elif units in ("1", "share"):
        low, high = 0, 1
    elif units in ("nats per token", "distance of two trained models", "alarms per 1,000 tokens"):
        low = 0
    else:
        raise AssertionError(f"{name} has the unit {units!r}: say here what it can be")
    return (-high, high) if "change" in name or name == "effect" else (low, high)


def beyond(result: xr.Dataset) -> tuple[list[str], int]:
    """Variables whose intervals reach outside, and how many intervals were looked at."""
    found, seen = [], 0
    for low in [str(name) for name in result.data_vars if str(name).endswith("_low")]:
        name = low.removesuffix("_low")
        least, largest = possible(name, result[name if name in result else low])
        ends = np.concatenate([result[f"{name}_{end}"].values.ravel() for end in ("low", "high")])
        seen += int(np.isfinite(ends).sum()) // 2
        if (ends < least).any() or (ends > largest).any():
            found.append(name)
    return found, seen


@pytest.fixture(scope="module")
def sets(tiny_model):
    """Two clusters that differ as much as they can: three paragraphs that the model says, and two random ones."""
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (5, 17), generator=torch.Generator().manual_seed(1))
    for pos in range(8, 17):
        with torch.no_grad():
            tokens[:3, pos] = tiny_model(tokens[:3, :pos])[:, -1].argmax(-1)
    return {"targets": mm.Paragraphs(tokens, 8).with_columns(cluster=[0, 0, 0, 1, 1])}


@pytest.fixture(scope="module")
def pairs(sets):
    clean = sets["targets"]
    changed = clean.tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 61
    changed[:, 8] = (changed[:, 8] + 1) % 61
    return clean, mm.Paragraphs(changed, 8).with_columns(cluster=clean.clusters)


def evaluated(model, sets, pairs) -> xr.Dataset:  # noqa: ARG001
    other, oracle = (noisy(model, seed) for seed in (1, 2))
    return mm.evaluate(model, noisy(model, 3), sets, oracle=oracle, oracle_scale=other)


def attacked(model, sets, pairs) -> xr.Dataset:  # noqa: ARG001
    sizes, targets = AttackSizes(steps=1, draws=2, samples=4), sets["targets"]
    others = mm.Paragraphs((targets.tokens + 7) % 61, 8)
    return mm.attack(model, noisy(model, 1, 1e-3), targets, others, attacks=("none", "perturbed prefix"), sizes=sizes)


def perturbed(model, sets, pairs) -> xr.Dataset:  # noqa: ARG001
    found = mm.perturb_prefix(model, sets["targets"])
    return found[["em_change_mean", "em_change_low", "em_change_high"]].rename(em_change_mean="em_change")


def patched(model, sets, pairs, metric: Any = "em") -> xr.Dataset:  # noqa: ARG001
    options: dict[str, Any] = {"site": "resid_pre", "scored": "continuation", "direction": "noising"}
    found = patch_experiment(model, *pairs, metric=metric, **options)
    return found[["effect_mean", "effect_low", "effect_high"]].rename(effect_mean="effect")


def patched_kl(model, sets, pairs) -> xr.Dataset:
    """A KL to the unpatched run is no change: it is 0 without a patch."""
    found = patched(model, sets, pairs, "kl")
    return found.rename({str(name): str(name).replace("effect", "kl") for name in found.data_vars})


def patched_at_one_token(model, sets, pairs) -> xr.Dataset:  # noqa: ARG001
    only: dict[str, Any] = {"sites": ("v",), "readings": ("memorized_own",)}
    found = perturbed_token_effects(model, *pairs, metric="kl", scored="continuation", **only)
    return found[["effect_mean", "effect_low", "effect_high"]].rename(
        effect_mean="kl", effect_low="kl_low", effect_high="kl_high"
    )


def ablated(model, sets, pairs) -> xr.Dataset:  # noqa: ARG001
    return with_intervals(mm.ablate_heads(model, sets["targets"], average=False), sets["targets"])


def scaled(model, sets, pairs) -> xr.Dataset:  # noqa: ARG001
    """Of made-up scores: the models of a suite come from files."""
    rng = np.random.default_rng(0)
    em = np.where(np.arange(6) < 3, LENGTH, 0) * np.ones((2, 2, 1))
    dims = ("model", "prefix_len", "paragraph")
    scores = xr.Dataset(
        {
            "em": (dims, em, {"units": "tokens"}),
            "nll": (dims, rng.exponential(size=em.shape) * (em == 0), {"units": "nats per token"}),
            "p_extractable": (dims, em / LENGTH, {"units": "1"}),
        },
        {
            "prefix_len": [2, 8],
            "n_weights": ("model", [10, 20]),
            "count": ("paragraph", [1, 2, 3, 2, 3, 1]),
            "cluster": ("paragraph", [0, 0, 0, 1, 1, 1]),
        },
    )
    return with_curves(scores, LENGTH)


def detected(model, sets, pairs) -> xr.Dataset:  # noqa: ARG001
    rng = np.random.default_rng(0)
    recites, clusters = np.arange(12) < 6, np.repeat(np.arange(6), 2)
    methods = {"detector": MethodScores(rng.random((12, 3)), kind="detector", calibrated=True)}
    settings = EvaluationSettings(ks=(0, 2), draws=50, folds=2)
    return compare_methods(methods, recites, clusters, (0, 1, 2), generation_len=3, settings=settings)


def noisy(model, seed: int, scale: float = 3.0):
    mask = mm.Mask.random_like(mm.Mask.heads(model, [(0, 0)]), seed=seed)
    return mm.add_noise(model, mask, scale=scale, seed=seed)


RESULTS = (evaluated, attacked, perturbed, patched, patched_kl, patched_at_one_token, ablated, scaled, detected)


@pytest.mark.parametrize("results", RESULTS)
def test_no_interval_reaches_beyond_what_its_quantity_can_be(results, tiny_model, sets, pairs, monkeypatch):
    moved = []

    def watched(within, estimates, low, high):
        ends = cut(within, estimates, low, high)
        moved.append(any((one != other).any() for one, other in zip(ends, (low, high), strict=True)))
        return ends

    monkeypatch.setattr("mechmem.stats.mean_intervals.cut", watched)
    found, seen = beyond(results(tiny_model, sets, pairs))
    assert not found and seen
    # Control: these are results whose intervals would reach beyond; those of detection are resampled.
    assert any(moved) or results is detected


def test_the_range_cuts_and_does_nothing_else():
    values, clusters = np.array([50.0, 50, 50, 0, 0, 0]), np.array([0, 0, 1, 1, 2, 2])
    low, high = cluster_bootstrap(values, clusters)
    assert low < 0 and high > 50
    assert cluster_bootstrap(values, clusters, within=(0, 50)) == (0, 50)
    assert cluster_bootstrap(values, clusters, within=(None, 50)) == (low, 50)
    assert cluster_bootstrap(values, clusters, within=(0, None)) == (0, high)
    wide = (low - 1, high + 1)
    assert cluster_bootstrap(values, clusters, within=wide) == (low, high)
    medians = cluster_bootstrap(values, clusters, statistic=np.median)
    assert cluster_bootstrap(values, clusters, statistic=np.median, within=(0, 50)) == medians
    cells = np.stack([values, values / 50, np.full(6, np.nan)], 1)
    found = np.stack(cell_intervals(cells, clusters, within=(0, 50)))
    np.testing.assert_array_equal(found[:, 0], [0, 50])
    np.testing.assert_allclose(found[:, 1], [0, high / 50])
    assert np.isnan(found[:, 2]).all()


def test_a_difference_has_the_range_of_a_difference():
    first, second, clusters = np.array([50.0, 50, 50, 40]), np.array([0.0, 0, 0, 10]), np.arange(4)
    low, high = cluster_bootstrap_difference(first, second, clusters, clusters + 9)
    assert high > 50
    assert cluster_bootstrap_difference(first, second, clusters, clusters + 9, within=(-50, 50)) == (low, 50)
    assert change_of((0.0, 50.0)) == (-50, 50) and change_of((0.0, None)) == (None, None)
    assert range_of("em_change", 50) == (-50, 50) and range_of("nll_change", 50) == (None, None)
    with pytest.raises(KeyError):
        range_of("unheard of", 50)


@pytest.mark.parametrize(
    ("within", "sentence"),
    [
        ((0, 1), r"got within=\(0.0, 1.0\), and values whose statistic is .* need the range of this statistic"),
        ((50, 0), r"got \(50.0, 0.0\) as within; need the least value first"),
        ((0, 1, 2), "got 3 values as within; need 2"),
        ((0, math.nan), r"got nan as within\[1\]; need a finite number"),
    ],
)
def test_a_range_that_cannot_be_is_refused(within, sentence):
    values, clusters = np.array([50.0, 50, 0, 0]), np.arange(4)
    for statistic in (np.mean, np.median):
        with pytest.raises(InputError, match=sentence):
            cluster_bootstrap(values, clusters, within=within, statistic=statistic)
    with pytest.raises(InputError, match=sentence):
        cell_intervals(values[:, None], clusters, within=within)


# Calls without a range: what is measured has none, or the values are bools, whose shares have theirs.
NO_RANGE = {
    "mechmem/localize/head_report.py": "changes of NLL",
    "mechmem/measure/scaling_curves.py": "slopes",
    "mechmem/report/sections/answers.py": "a share of bools; and the part of a loss undone, which may be more than all",
    "experiments/spans.py": "a share of bools",
    "experiments/faithfulness_page.py": "an area that may be above 1",
}


def test_every_interval_is_given_its_range():
    """A call of an interval says `within`, is of a resampled statistic, or is one of those that need none."""
    calls, without = 0, set()
    for path in [*ROOT.glob("mechmem/**/*.py"), *ROOT.glob("experiments/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "attr", getattr(getattr(node, "func", None), "id", ""))
            if name in ("cluster_bootstrap", "cluster_bootstrap_difference", "cell_intervals"):
                calls += 1
                if not {"within", "statistic"} & {keyword.arg for keyword in node.keywords}:  # pyright: ignore[reportAttributeAccessIssue]
                    without.add(str(path.relative_to(ROOT)))
    assert calls > 20 and without == set(NO_RANGE)
