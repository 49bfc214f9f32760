"""Circuits against hooks, one set and one paragraph at a time; and a planted circuit that is known to be one."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.localize.ablation_runs import successors
from mechmem.localize.faithfulness import faithfulness
from mechmem.truth.planted import planted

LAYERS, HEADS, NEURONS = "layer", "head", "neuron"
# Attention and MLP beside each other, as GPT-NeoX has them.
PARALLEL: dict[str, Any] = {"parallel_attn_mlp": True, "positional_embedding_type": "rotary", "rotary_dim": 4}
PARALLEL |= {"n_layers": 3, "d_model": 12, "d_head": 6, "d_mlp": 12, "d_vocab": 61}


@pytest.fixture(scope="module")
def paragraphs() -> mm.Paragraphs:
    generator = torch.Generator().manual_seed(18)
    return mm.Paragraphs(torch.randint(0, 61, (9, 11), generator=generator), 7).with_columns(
        id=[f"p{row}" for row in range(9)]
    )


def scores_of(model, kinds: str, seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    sizes = {HEADS: model.cfg.n_heads, NEURONS: model.cfg.d_mlp}
    data = {
        f"{part}s": ((LAYERS, part), rng.normal(size=(model.cfg.n_layers, size)))
        for part, size in sizes.items()
        if part[0] in kinds
    }
    return xr.Dataset(data)


def by_hooks(model, paragraphs, keep: dict[str, np.ndarray], ablation: str, seed: int) -> torch.Tensor:
    """NLL of every paragraph with everything outside replaced: hooks, one paragraph at a time."""
    names = {HEADS: "attn.hook_z", NEURONS: "mlp.hook_post"}
    with torch.no_grad():
        _, cache = model.run_with_cache(paragraphs.tokens)
        other = successors(len(paragraphs), seed)
        rows = []
        for row, tokens in enumerate(paragraphs.tokens):
            hooks = []
            for kind, inside in keep.items():
                for layer, kept in enumerate(inside):
                    value = cache[f"blocks.{layer}.{names[kind]}"]
                    instead = {"zero": 0 * value[row], "mean": value.mean(0), "resample": value[other[row]]}[ablation]

                    def replace(own, hook, kept=kept, instead=instead):  # noqa: ARG001
                        mask = torch.from_numpy(kept)
                        return torch.where(mask[None, None, :, None] if own.ndim == 4 else mask, own, instead)

                    hooks.append((f"blocks.{layer}.{names[kind]}", replace))
            logits = model.run_with_hooks(tokens[None], fwd_hooks=hooks)[0, paragraphs.prefix_len - 1 : -1]
            true = tokens[paragraphs.prefix_len :]
            rows.append(-logits.log_softmax(-1).gather(-1, true[:, None]).mean())
        return torch.stack(rows)


@pytest.mark.parametrize("kinds", ["h", "n", "hn"])
@pytest.mark.parametrize("kind_of_model", ["tiny", "parallel"])
def test_every_circuit_is_the_run_with_hooks_on_its_complement(
    tiny_model, small_model, paragraphs, kinds, kind_of_model
):
    model = tiny_model if kind_of_model == "tiny" else small_model(**PARALLEL)
    scores = scores_of(model, kinds)
    options: dict[str, Any] = {"shares": (0.1, 0.5, 1.0), "seed": 3, "batch_size": 7}
    found = faithfulness(model, paragraphs, scores, **options)
    flat = np.concatenate([scores[f"{name}s"].values.ravel() for name in (HEADS, NEURONS) if f"{name}s" in scores])
    count = flat.size
    assert found.components.values.tolist() == [max(1, round(0.1 * count)), round(0.5 * count), count]
    assert found.attrs["negative"] == (flat < 0).sum()

    def masks(inside: np.ndarray) -> dict[str, np.ndarray]:
        parts, start = {}, 0
        for name in (HEADS, NEURONS):
            if f"{name}s" in scores:
                one = scores[f"{name}s"]
                parts[name] = inside[start : start + one.size].reshape(one.shape)
                start += one.size
        return parts

    for ablation in ("zero", "mean", "resample"):
        ends = [
            by_hooks(model, paragraphs, masks(np.full(count, whole)), ablation, 3).numpy() for whole in (True, False)
        ]
        here = found.sel(ablation=ablation, measure="nll")
        np.testing.assert_allclose(here.intact, ends[0], atol=2e-5)
        np.testing.assert_allclose(here.nothing, ends[1], atol=2e-5)
        for ranking, order in (("value", np.argsort(-flat)), ("magnitude", np.argsort(-abs(flat)))):
            number = 0 if ranking == "magnitude" else 1
            inside = np.isin(np.arange(count), order[: int(found.components[number])])
            slow = by_hooks(model, paragraphs, masks(inside), ablation, 3).numpy()
            one = here.sel(ranking=ranking).isel(share=number)
            np.testing.assert_allclose(one.score, slow, atol=2e-5)
            share = (slow.mean() - ends[1].mean()) / (ends[0].mean() - ends[1].mean())
            assert float(one.faithfulness) == pytest.approx(share, abs=2e-3)
        positive = by_hooks(model, paragraphs, masks(flat >= 0), ablation, 3).numpy()
        share = (positive.mean() - ends[1].mean()) / (ends[0].mean() - ends[1].mean())
        assert float(here.without_negative) == pytest.approx(share, abs=2e-3)
    assert (found.faithfulness.sel(measure="nll").isel(share=-1) == 1).all()
    np.testing.assert_allclose(found.intact.sel(measure="nll"), mm.score(model, paragraphs).nll, atol=1e-5)
    np.testing.assert_array_equal(found.intact.sel(measure="em"), mm.score(model, paragraphs).em)


def test_areas_are_trapezia_from_nothing_to_the_whole_model(tiny_model, paragraphs):
    scores = scores_of(tiny_model, "h").heads
    for shares in ((0.25, 0.5), (0.25, 0.5, 1.0)):
        found = faithfulness(tiny_model, paragraphs, scores, ablations=["mean"], shares=shares)
        for ranking in ("value", "magnitude"):
            one = found.sel(ranking=ranking, measure="nll", ablation="mean")
            a, b = one.faithfulness.values[:2]
            assert float(one.cpr) == pytest.approx(0.25 * a / 2 + 0.25 * (a + b) / 2 + 0.5 * (b + 1) / 2)
            p, q = abs(1 - a), abs(1 - b)
            assert float(one.cmd) == pytest.approx(0.25 * (1 + p) / 2 + 0.25 * (p + q) / 2 + 0.5 * q / 2)


def test_the_planted_head_alone_is_faithful_and_a_random_ranking_is_not():
    truth = planted()
    model, memorized = truth.model, truth.memorized[:4]
    known = np.zeros((model.cfg.n_layers, model.cfg.n_heads))
    known[truth.head] = 1

    def measured(values, shares=(0.01, 0.5, 1.0)):
        return faithfulness(model, memorized, xr.DataArray(values, dims=(LAYERS, HEADS)), shares=shares)

    best = measured(known)
    assert (best.faithfulness.isel(share=0) > 0.98).all() and int(best.components[0]) == 1
    assert (best.cpr > 0.95).all() and (best.cmd < 0.05).all()
    # Without the head nothing is left, whatever else stays.
    worst = measured(-known)
    assert (worst.faithfulness.sel(ranking="value").isel(share=[0, 1]) < 0.1).all()
    assert (worst.cpr.sel(ranking="value") < 0.3).all() and (worst.cmd.sel(ranking="value") > 0.7).all()
    assert (worst.without_negative < 0.1).all() and (worst.cpr.sel(ranking="magnitude") > 0.95).all()
    random = [measured(np.random.default_rng(seed).random(known.shape)).cpr.values for seed in range(4)]
    assert (np.mean(random, 0) < 0.8).all()
    # The head with its neurons, of all heads and neurons: everything else is gone.
    neurons = np.zeros((model.cfg.n_layers, model.cfg.d_mlp or 0))
    neurons[tuple(np.array(truth.neurons).T)] = 1
    both = xr.Dataset({"heads": ((LAYERS, HEADS), known), "neurons": ((LAYERS, NEURONS), neurons)})
    share = (1 + len(truth.neurons)) / (known.size + neurons.size)
    circuit = faithfulness(model, memorized, both, shares=[share], ablations=["zero"])
    assert int(circuit.components[0]) == 1 + len(truth.neurons) and (circuit.faithfulness > 0.9).all()


def test_what_is_no_score_of_components_is_refused(tiny_model, paragraphs):
    good = scores_of(tiny_model, "h")
    ablated = mm.ablate_heads(tiny_model, paragraphs)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (ablated, {}, "choose one variable of a Dataset"),
        (good.heads.rename(layer="depth"), {}, "need .layer, head. of 4 x"),
        (good.heads[:2], {}, "got scores with"),
        (good.heads * np.nan, {}, "of which 12 are not finite"),
        (xr.Dataset(), {}, "got scores without a variable"),
        (good, {"ablations": []}, "got no ablations; need some of mean, zero"),
        (good, {"ablations": "mean"}, "got 'mean' as ablations; need several values"),
        (good, {"ablations": ["half"]}, "need one of mean, zero, resample"),
        (good, {"shares": []}, "got no shares"),
        (good, {"shares": [0.0]}, "got 0.0 as shares"),
    ]
    for scores, options, said in cases:
        with pytest.raises(InputError, match=said):
            faithfulness(tiny_model, paragraphs, scores, **options)
    with pytest.raises(InputError, match="got 1 paragraph for method 'mean'"):
        faithfulness(tiny_model, paragraphs[:1], good)
    faithfulness(tiny_model, paragraphs[:1], good, ablations=["zero"])
