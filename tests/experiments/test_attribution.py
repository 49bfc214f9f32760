"""The scripts about attribution and circuits, run small: their figures are those that one computes by hand."""

import copy

import datasets
import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.localize.metrics import nll
from mechmem.localize.patch_pairs import check_pairs
from mechmem.model.hooks import with_hooks


def test_figures_are_those_of_the_estimates_and_of_exact_patching(script, tmp_path):
    module = script("attribution")
    settings = module.Settings(
        pairs=2, sites=("mlp_out",), metrics=("nll",), kl_sites=("mlp_out",), out=tmp_path, page=tmp_path / "page.md"
    )
    known = module.models
    module.open_inputs = lambda *_: (None, None)
    module.perturbed_pairs = lambda *_: None
    module.models = lambda *_: list(known(settings, None))[1:]
    ((name, model, pairs),) = module.models()
    whole = module.main(settings)
    found = whole[name]["mlp_out"]["nll"]
    assert "gradient" not in whole[name]["mlp_out"]["kl"]["noising"]
    options = {"site": "mlp_out", "scored": "continuation", "average": False}
    exact = mm.patch(model, *pairs, direction="mean", **options).values
    guess = mm.attribute(model, *pairs, direction="mean", method="both_ends", **options).values
    for row in range(2):
        there = (exact[row] != 0) | (guess[row] != 0)
        a, b = guess[row][there], exact[row][there]
        measured = found["mean"]["both_ends"]
        assert measured["spearman"][row] == pytest.approx(spearmanr(a, b)[0], abs=2e-3)
        assert measured["pearson"][row] == pytest.approx(pearsonr(a, b)[0], abs=1e-3)
        count = round(0.05 * len(b))
        shared = set(np.argsort(-abs(a))[:count]) & set(np.argsort(-abs(b))[:count])
        assert measured["best"][row] == pytest.approx(len(shared) / count, abs=1 / count)
    assert found["mean"]["gradient"]["spearman"] == pytest.approx(found["mean"]["both_ends"]["spearman"], abs=2e-3)
    assert set(found["noising"]) == {"gradient", "both_ends", "integrated", "RelP", "AtP*"}
    page = (tmp_path / "page.md").read_text()
    assert "### mlp_out" in page and f"{np.mean(found['mean']['both_ends']['spearman']):.2f} [" in page
    # What is done is not done again.
    module.figures = None
    assert module.main(settings) == whole
    with pytest.raises(InputError, match="was begun with other settings"):
        module.main(module.Settings(seed=1, out=tmp_path, page=None))


def test_a_rung_gives_the_documents_that_its_model_knows_best(script, tiny_model, tmp_path):
    module = script("attribution")
    module.PREFIX_LEN, rows = 3, 9
    tokens = torch.randint(0, 61, (rows, 12), generator=torch.Generator().manual_seed(0))
    table = {"id": list(range(rows)), "text_of": ["base"] * 8 + ["near-duplicate"], "copies": [64] * 6 + [1, 0, 64]}
    documents = mm.Paragraphs(tokens, 7, datasets.Dataset.from_dict(table))
    best = module.best_known(tiny_model, documents, 4)
    scores = mm.score(tiny_model, mm.Paragraphs(tokens[:6, 4:], 3))
    order = sorted(range(6), key=lambda row: (-int(scores.em[row]), float(scores.nll[row])))
    assert best.ids.tolist() == order[:4] and best.prefix_len == 3
    assert module.name_of(tmp_path / "6M-small-seed0/snapshots/step000008") == "6M-small-seed0"
    assert module.name_of(tmp_path / "model") == "model"


def test_other_approximations_run_the_same_model_and_fix_patterns_exactly(script, tiny_model):
    module = script("attribution_methods")
    generator = torch.Generator().manual_seed(3)
    clean = mm.Paragraphs(torch.randint(0, 61, (2, 12), generator=generator), 7)
    corrupt = clean.replace_tokens((clean.tokens + torch.eye(12).long()[4] + torch.eye(12).long()[8]) % 61)
    pairs = check_pairs(tiny_model, clean, corrupt, "noising", "continuation")
    change = module._patterns_change(tiny_model, pairs)
    _, base = tiny_model.run_with_cache(clean.tokens)
    _, source = tiny_model.run_with_cache(corrupt.tokens)
    for layer in range(4):
        names = {end: f"blocks.{layer}.attn.hook_{end}" for end in ("q", "pattern")}
        seen = {}

        def keep(value, hook, seen=seen):  # noqa: ARG001
            seen["pattern"] = value

        def query(value, hook, name=names["q"]):  # noqa: ARG001
            return source[name]

        with torch.no_grad():
            tiny_model.run_with_hooks(clean.tokens, fwd_hooks=[(names["q"], query), (names["pattern"], keep)])
        expected = seen["pattern"] - base[names["pattern"]]
        torch.testing.assert_close(change[names["pattern"]], expected, atol=1e-6, rtol=0)
    before = tiny_model(clean.tokens)
    for site in ("q", "z", "resid_pre"):
        cells = module.approximated("AtP*", tiny_model, pairs, site, nll, at_once=1)
        assert np.isfinite(cells).all() and not (cells[:, :, :, :4]).any()
    # With everything held constant that RelP holds, the model's output is what it was.
    inputs = {}
    hooks = {}
    for layer in range(4):
        pre, post = module._factor(inputs, layer)
        hooks |= {f"blocks.{layer}.mlp.hook_pre": pre, f"blocks.{layer}.mlp.hook_post": post}
    with with_hooks(tiny_model, hooks):
        assert torch.equal(tiny_model(clean.tokens), before)
    # Above the last layer only the norm's scale is held: where that is a constant, RelP is the gradient.
    linear = copy.deepcopy(tiny_model)
    linear.ln_final.eps = 1e8
    linear.ln_final.w.data *= 1e4
    relevance = module.approximated("RelP", linear, pairs, "resid_post", nll)[:, :, 0]
    plain = mm.attribute(linear, clean, corrupt, site="resid_post", method="gradient", average=False)
    np.testing.assert_allclose(relevance[:, -1], plain.isel(layer=-1), atol=1e-5)
    assert np.abs(relevance[:, 0] - plain.isel(layer=0).values).max() > 1e-3
    assert torch.equal(tiny_model(clean.tokens), before) and not any(p.fwd_hooks for p in tiny_model.hook_dict.values())


def test_areas_by_paragraph_are_those_of_all(script, model, tmp_path):
    module = script("faithfulness")
    known = module.localizers
    chosen = ("heads, ablate mean", "heads, random 0", "neurons, random 0")
    module.localizers = lambda task: ((name, scores) for name, scores in known(task) if name in chosen)
    settings = module.Settings(
        candidates=60,
        paragraphs=2,
        shares=(0.05, 0.5, 1.0),
        random=1,
        out=tmp_path,
        page=tmp_path / "page.md",
    )
    result = module.main(settings, model)
    assert result.localizer.values.tolist() == list(chosen)
    np.testing.assert_allclose(result.cpr_paragraph.mean("paragraph"), result.cpr, atol=1e-6)
    page = (tmp_path / "page.md").read_text()
    assert "## Heads" in page and "## Neurons" in page and "| ablate mean |" in page and "| random |" in page
    assert "Not measured: alignment, hard_concrete, slimming, zero_out, integrated," in page
    # Stored curves are taken as they are.
    module.mm = None
    module.by_em = lambda *_, **__: {}
    file = tmp_path / "localizers" / "heads-ablate-mean.json"
    again = module.measured(module.Task(settings, model, *[None] * 3), "heads, ablate mean", lambda: None)
    assert file.is_file() and float(again.cpr.sum()) == pytest.approx(float(result.cpr.sel(localizer=chosen[0]).sum()))
