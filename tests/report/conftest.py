"""A synthetic study folder, plausible in its numbers, with any text where a real one has paragraphs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from datasets import Dataset

from mechmem.data.netcdf import save_netcdf
from mechmem.data.paragraphs import Paragraphs

LAYERS, HEADS, FULL = 6, 7, 50
SETS = ["memorized", "other"]
COMPONENTS = [f"{kind}{head}" for kind in "QKVO" for head in range(HEADS)] + ["mlp_in", "mlp_out"]
WORDS = (
    "The rain in Astoria began before dawn and by noon the harbour office had closed its shutters against it".split()
)


def write_paragraphs(folder: Path, rng: np.random.Generator, hostile: str, rows: int = 900) -> None:
    count = np.where(rng.random(rows) < 0.2, 0, 2 ** rng.integers(0, 8, rows))
    reach = np.where(rng.random(rows) < np.minimum(count / 90, 0.9), FULL, rng.geometric(0.2, rows) - 1 + count // 12)
    em = np.minimum(reach, FULL)
    texts = [" ".join(rng.permutation(WORDS)) for _ in range(rows)]
    table = {
        "id": np.arange(rows).tolist(),
        "source": [["letters", "verses", "tables", "rules" + hostile][i % 4] for i in range(rows)],
        "count": count.tolist(),
        "cluster": (np.arange(rows) // 3).tolist(),
        "em": em.tolist(),
        "nll": (3.2 - 3 * em / FULL + 0.2 * rng.random(rows)).tolist(),
        "match_fraction": np.minimum(1, em / FULL + 0.1 * rng.random(rows)).tolist(),
        "set": np.where(em == FULL, "memorized", np.where(em <= 10, "other", "between")).tolist(),
        "text": [text + hostile for text in texts],
        "prefix_text": [text + hostile for text in texts],
        "continuation_text": [" and then\n    it cleared." + hostile] * rows,
        "greedy_text": [" and so it rained." + hostile] * rows,
    }
    tokens = torch.randint(0, 500, (rows, 2 * FULL))
    Paragraphs(tokens, FULL, Dataset.from_dict(table)).save(folder / "paragraphs.parquet")


def gradients(rng: np.random.Generator) -> xr.Dataset:
    size = rng.lognormal(-4, 0.7, (2, LAYERS, len(COMPONENTS)))
    size[0] *= np.linspace(0.5, 0.1, LAYERS)[:, None]
    coords = {"set": SETS, "layer": range(LAYERS), "component": COMPONENTS}
    values = xr.DataArray(size, coords, ("set", "layer", "component"))
    share = values.sum("component")
    return xr.Dataset({"max_gradient": values, "layer_share": share / share.sum("layer")})


def heads(rng: np.random.Generator, needed: tuple[int, int] = (1, 2), drop: float = 18.4) -> xr.Dataset:
    fall = rng.normal(0.6, 0.8, (2, LAYERS, HEADS))
    fall[1] *= 0.1
    fall[(0, *needed)] = drop
    coords = {"set": SETS, "layer": range(LAYERS), "head": range(HEADS)}
    dims = ("set", "layer", "head")
    return xr.Dataset({"em_change": (dims, -fall), "nll_change": (dims, fall / 12)}, coords, {"method": "mean"})


def rare(rng: np.random.Generator) -> xr.Dataset:
    coords, dims = {"layer": range(LAYERS), "head": range(HEADS)}, ("layer", "head")
    excess = rng.normal(-0.02, 0.04, (LAYERS, HEADS))
    excess[1, 2] = 0.31
    data = {"excess": excess, "spearman": -2 * excess, "kendall": -1.5 * excess, "mass_over_uniform": excess}
    data["p_value"] = rng.random((LAYERS, HEADS))
    result = xr.Dataset({name: (dims, values) for name, values in data.items()}, coords)
    result["excess"].attrs["expectation"] = "other paragraphs' attention to the same positions"
    return result


def attention(rng: np.random.Generator, hostile: str, length: int = 2 * FULL) -> xr.Dataset:
    logits = rng.normal(0, 1.2, (2, 3, length, length)) + 4 * (rng.random((2, 3, 1, length)) > 0.96)
    logits[..., 0] += 4
    weights = np.exp(np.where(np.tril(np.ones((length, length), bool)), logits, -np.inf))
    pattern = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    token = np.array([[f" {WORDS[i % len(WORDS)]}{hostile if i % 9 == 0 else ''}" for i in range(length)]] * 2, object)
    if hostile:
        # Long tokens are cut: these are short.
        token[:, 1:4] = ["</script>", "<img/src=x onerror=window.pwned=1>", "<img/src=http://leak.test/bare>"]
    return xr.Dataset(
        {
            "pattern": (("view", "head_slot", "query_pos", "key_pos"), pattern),
            "token": (("view", "query_pos"), token),
            "layer": (("view", "head_slot"), np.array([[1, 3, 4], [1, 0, 5]])),
            "head": (("view", "head_slot"), np.array([[2, 0, 6], [2, 4, 1]])),
            "paragraph_id": (("view",), np.array([17, 41])),
            "caption": (("view",), np.array([f"The heads that cost most{hostile}", f"Rare readers{hostile}"], object)),
            "finding": (("view",), np.array(["memorized", "rare"], object)),
        }
    )


def patching(rng: np.random.Generator) -> xr.Dataset:
    """Six pairs whose token 30 is replaced; the memory moves to position 49 in layer 2, by way of head L1H2."""
    pairs, length = 6, 2 * FULL
    stream = rng.normal(0, 0.01, (pairs, LAYERS, length))
    stream[:, :2, 30], stream[:, 2:, FULL - 1] = -2.0, -1.9
    z = np.full((pairs, LAYERS, HEADS, length), np.nan)
    z[:, 1, :, FULL - 1] = -0.1
    z[:, 1, 2, FULL - 1] = -1.0
    attrs = {"base": 2.5, "source": 0.5, "rank_correlation": 0.93}
    dims = ("paragraph", "layer", "head", "pos")
    coords = {"layer": range(LAYERS), "head": range(HEADS), "pos": range(length)}
    return xr.Dataset(
        {
            "resid_pre": (("paragraph", "layer", "pos"), stream, attrs),
            "z": (dims, z, attrs),
            "perturbed_pos": ("paragraph", np.full(pairs, 30)),
            "impact_pos": ("paragraph", np.full(pairs, FULL)),
            "id": ("paragraph", np.arange(pairs)),
        },
        coords,
    )


EDITS = ["original", "NPO, top 0.1 %", "NPO, random 0.1 %", "contrastive, all weights"]


def unlearned(rng: np.random.Generator, *, random_after: float = 48.6, held_out_after: float = 31.0) -> xr.Dataset:
    sets = ["targets", "held-out memorized", "other", "never seen"]
    mean = np.array(
        [[50, 50, 4.2, 3.1], [6.3, held_out_after, 3.9, 3.0], [random_after, 49.5, 4.2, 3.1], [2.2, 12.0, 3.1, 2.4]]
    )
    spread = np.minimum(0.3 + 0.1 * mean, 50 - mean)
    kl = np.where(np.arange(4)[:, None] == 0, 0.0, 0.4 - mean / 200)
    data = {
        "em": mean,
        "em_low": mean - spread - 0.2,
        "em_high": mean + spread,
        "exact_fraction": mean / 60,
        "match_fraction": mean / 50,
        "edit_distance": 50 - mean,
        "nll": 3.4 - mean / 16,
        "perplexity": np.exp(3.4 - mean / 16),
        "kl": kl,
        "kl_low": kl,
        "kl_high": kl + 0.1,
        "changed_top1": kl / 2,
    }
    history = np.full((4, 12), np.nan)
    history[1:] = 0.1 + np.cumsum(rng.random((3, 12)) * [[0.3], [0.02], [0.5]], axis=1)
    share = rng.random((LAYERS, len(COMPONENTS))) ** 6
    dims = ("edit", "set")
    result = xr.Dataset({name: (dims, values) for name, values in data.items()}, {"edit": EDITS, "set": sets})
    result["weights_changed"] = (("edit",), np.array([0, 84_935, 84_935, 84_934_656]))
    result["nll_history"] = (("edit", "step"), history)
    coords = {"layer": range(LAYERS), "component": COMPONENTS}
    result["selected_share"] = xr.DataArray(share / share.sum(), coords, ("layer", "component"))
    return result.assign_attrs(weights_total=84_934_656)


KS = (0, 1, 2, 4, 8, 16, 32)
METHODS = ("detector", "nll", "entropy")


def detection(rng: np.random.Generator, hostile: str = "", *, gain: float = 0.3) -> xr.Dataset:
    """A detector `gain` above the running NLL, which is above the entropy; three recitations and three others."""
    with_ends: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}

    def put(name: str, dims: tuple[str, ...], values: np.ndarray, width: float = 0.05) -> None:
        for end, moved in (("", values), ("_low", values - width), ("_high", values + width)):
            with_ends[name + end] = (dims, np.clip(moved, 0, 1))

    found = 0.2 + 0.05 * np.arange(len(KS)) + np.array([[gain], [0.0], [-0.1]])
    put("tpr_at_1", ("method", "k"), found)
    put("tpr_at_01", ("method", "k"), found / 2)
    put("auroc", ("method", "k"), 0.5 + found / 2)
    only = np.array([1.0, np.nan, np.nan])
    for name, value in {"flagged": 0.9, "flagged_early": 0.62, "false_alarm_rate": 0.008}.items():
        put(name, ("method",), value * only)
    put("observed", ("method", "bin"), only[:, None] * np.linspace(0.05, 0.95, 5))
    data = with_ends | {
        "calibration_error": (("method", "k"), 0.03 * only[:, None] * np.ones(len(KS))),
        "predicted": (("method", "bin"), only[:, None] * np.linspace(0.1, 0.9, 5)),
        "in_bin": (("method", "bin"), np.array([[0.4, 0.2, 0.0, 0.1, 0.3], [np.nan] * 5, [np.nan] * 5])),
    }
    texts = np.array([[f" {WORDS[i % len(WORDS)]}{hostile * (i % 9 == 0)}" for i in range(2 * FULL)]] * 6, object)
    score = np.full((6, 2 * FULL), np.nan)
    score[:, FULL:] = rng.random((6, FULL)) * np.array([1, 1, 0.3, 0.9, 0.1, 0.1])[:, None]
    kinds = ["recitation, flagged"] * 2 + ["recitation, missed", "no recitation, false alarm"]
    kinds += ["no recitation, no alarm" + hostile] * 2
    examples = {
        "example_text": (("example", "example_pos"), texts),
        "example_score": (("example", "example_pos"), score),
        "example_alarm": ("example", np.array([FULL + 3, FULL, -1, FULL + 20, -1, -1])),
        "example_em": ("example", np.array([50, 50, 50, 3, 0, 5])),
        "example_kind": ("example", np.array(kinds, object)),
        "example_id": ("example", np.arange(6)),
    }
    kind = ("method", ["detector", "baseline", "baseline"])
    attrs = {"false_alarms": 0.01, "recitations": 400, "others": 380, "generation_len": FULL, "prefix_len": FULL}
    attrs |= {"settings": "{}", "seed": 0}
    return xr.Dataset(data | examples, {"method": list(METHODS), "k": list(KS), "kind": kind}, attrs)


def manifest(hostile: str) -> dict[str, object]:
    return {
        "format": 2,
        "model": {"name": "neo-small" + hostile, "weight_hash": "9f2c41aa" + hostile, "processing": "raw"}
        | {"n_layers": LAYERS, "n_heads": HEADS, "d_model": 256, "n_params": 12_345_678},
        "corpus": {"name": "letters and verses" + hostile},
        "versions": {"torch": "2.9.0", "transformer-lens": "3.9.1", "weird" + hostile: "1" + hostile},
        "seed": 0,
        "settings": {"fraction": 0.001, "targets": 32, "note": hostile},
        "timings": {
            name: {"seconds": seconds, "cpu_seconds": 2 * seconds, "peak_mb": 900}
            for name, seconds in {"scan": 41.5, "gradients": 63.0, "heads" + hostile: 120.2, "unlearn": 88.1}.items()
        },
        "findings": {"scan": "9 of 900 paragraphs reproduced exactly" + hostile},
        "skipped": {},
        "created": "2025-01-02T10:00:00+00:00",
        "finished": "2025-01-02T10:05:12+00:00",
    }


def write_study(folder: Path, hostile: str = "") -> Path:
    """Every file of a study; `hostile` goes wherever a study holds text from outside."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(manifest(hostile)), encoding="utf-8")
    write_paragraphs(folder, rng, hostile)
    stages = {
        "gradients.nc": gradients(rng),
        "heads.nc": heads(rng),
        "rare.nc": rare(rng),
        "attention.nc": attention(rng, hostile),
        "patching.nc": patching(np.random.default_rng(1)),
        "unlearn.nc": unlearned(rng),
    }
    for name, result in stages.items():
        save_netcdf(result, folder / name)
    return folder


@pytest.fixture(scope="session")
def make_study() -> Callable[..., Path]:
    return write_study


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study, for tests that only read it."""
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def synthetic():
    """This file: its builders make single results."""
    return sys.modules[__name__]
