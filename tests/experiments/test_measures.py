"""The scripts about scoring, fragility, spans, rates and planted models, run small against slower ways."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import mechmem as mm


def test_perturbing_costs_memories_less_than_the_models_own_text(script, model, paragraphs, tmp_path):
    module = script("perturbation")
    module.photograph = lambda *_: None
    settings = module.Settings(
        candidates=40,
        memorized=2,
        other=2,
        permutations=100,
        matched_on=("rarity",),
        out=tmp_path,
        page=tmp_path / "page.md",
    )
    result = module.main(settings, model)
    pool = paragraphs.select(np.random.default_rng(0).permutation(len(paragraphs))[:100])
    scorer = module.ExactScorer(model, pool[: module.CALIBRATION])
    chosen = module.choose(settings, scorer, paragraphs)
    assert (mm.score(model, chosen["memorized"]).em == 50).all() and (mm.score(model, chosen["other"]).em <= 10).all()
    own = module.own_continuations(scorer, chosen["other"])
    assert torch.equal(own.prefix, chosen["other"].prefix) and (mm.score(model, own).em == 50).all()
    # Every replacement of the memorized paragraphs, scored as a paragraph of its own.
    drawn = mm.perturb_prefix(model, chosen["memorized"], seed=0).replacement.values[0]
    tokens = chosen["memorized"].tokens[:, None].repeat(1, 50, 1)
    tokens[:, range(50), range(50)] = torch.as_tensor(drawn, dtype=tokens.dtype)
    direct = mm.score(model, mm.Paragraphs(tokens.flatten(0, 1))).em.values.reshape(-1, 50) - 50.0
    found = {str(name): float(result.em_change.sel(set=name)) for name in result["set"].values}
    assert found["other, own text"] < 2 * found["memorized"] < 0, "memorized text is less fragile"
    assert abs(found["other, true text"]) < 2, "EM of other text is near zero before and after"
    np.testing.assert_allclose(result.profile.sel(set="memorized"), direct.mean(0), atol=1e-6)
    assert found["memorized"] == pytest.approx(direct.mean())
    page = (tmp_path / "page.md").read_text()
    assert f"| memorized | {found['memorized']:.2f} [" in page
    with xr.open_dataset(tmp_path / "result.nc", engine="h5netcdf") as written:
        xr.testing.assert_identical(written.load(), result)


def test_samples_spread_over_clusters_before_they_take_one_twice(script, paragraphs):
    module = script("perturbation")
    clusters = paragraphs[:40].with_columns(cluster=np.repeat([0, 1, 2, 3], [31, 4, 4, 1]))
    found = module.spread_over_clusters(clusters, 7, seed=3).column("cluster").tolist()
    # One of each, then one more of each that has more.
    assert sorted(found) == [0, 0, 1, 1, 2, 2, 3]


def test_spans_are_compared_with_every_window_scored_alone(script, model, tmp_path):
    module = script("spans")
    settings = module.Settings(
        characters=2_000_000,
        seed=15,
        documents=4,
        min_match=(50, 45),
        strides=(50,),
        out=tmp_path,
        page=tmp_path / "page.md",
    )
    results = module.main(settings, model)
    documents, _ = module.sample(settings, model)
    truth = []
    for start, stop in zip(documents.starts[:-1], documents.starts[1:], strict=True):
        rows = np.lib.stride_tricks.sliding_window_view(documents.tokens[start:stop], 100)
        em = mm.score(model, mm.Paragraphs(torch.from_numpy(rows.copy()))).em.values
        truth += [(int(offset), value == 50) for offset, value in enumerate(em)]
    known = sum(hit for _, hit in truth)
    assert (
        results["every offset (the reference)"]["found"] == known > 50
        and results["every offset (the reference)"]["recall"] == 1
    )
    at_stride = sum(hit for offset, hit in truth if offset % 50 == 0)
    assert results["windows at stride 50"]["found"] == at_stride
    assert results["windows at stride 50"]["recall"] == pytest.approx(at_stride / known)
    loose, strict = (results[f"document mode, min_match {least}"] for least in (45, 50))
    assert known >= loose["found"] >= strict["found"] > at_stride
    assert f"| every offset (the reference) | {known:,} | 1.000 |" in (tmp_path / "page.md").read_text()
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["results"] == results and written["settings"]["documents"] == 4


def test_a_corpus_of_ones_own_is_read_for_spans(script, model, paragraphs, tmp_path):
    module = script("spans")
    texts = paragraphs.column("text")[:4]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    documents, clusters = module.sample(module.Settings(corpus=str(tmp_path / "corpus.jsonl"), documents=3), model)
    cut = [documents.tokens[a:b].tolist() for a, b in zip(documents.starts[:-1], documents.starts[1:], strict=True)]
    whole = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert len(cut) == 3 == len(set(clusters.tolist())) and all(row in whole for row in cut)


def test_learning_rates_are_tried_on_paragraphs_that_no_study_uses(script, model, paragraphs, tmp_path):
    module = script("choose_learning_rate")
    settings = module.Settings(
        candidates=250, targets=2, steps=3, sparse_rates=(1e-4, 3e-2), dense_rates=(1e-4,),
        out=tmp_path, page=tmp_path / "page.md",
    )  # fmt: skip
    trials = module.main(settings, model)
    sets = module.choose(settings, model, paragraphs)
    em = {name: mm.score(model, part).em.values for name, part in sets.items()}
    assert ((em["targets"] >= 30) & (em["targets"] < 50)).all() and len(em["targets"]) == 2
    assert all(((em[name] > 10) & (em[name] < 30)).all() for name in ("keep", "held"))
    pool = paragraphs.select(np.random.default_rng(1).permutation(len(paragraphs))[:250])
    memorized = set(pool.column("cluster")[mm.score(model, pool).em.values == 50])
    assert not memorized & {label for part in sets.values() for label in part.column("cluster").tolist()}
    edits = [f"{method} {mask}" for method in ("npo", "contrastive") for mask in ("top", "all")]
    assert list(trials) == edits
    before = float(mm.score(model, sets["targets"]).nll.mean())
    small, large = trials["contrastive top"]
    assert small["nll"] > before and large["kl"] > small["kl"] > 0
    # A fifth of 50 tokens ends an edit, and only that counts as having met it.
    assert (small["reached"], large["reached"]) == ("no", "yes") and large["em"] <= 10 < small["em"]
    # NPO pushes a paragraph less the further it is forgotten.
    assert before < trials["npo all"][0]["nll"] < trials["contrastive all"][0]["nll"]
    page = (tmp_path / "page.md").read_text()
    assert f"| contrastive top | 0.03 | {large['steps']} | yes |" in page
    assert "contrastive top 0.0" in page.split("The study's rates: ")[1]
    assert json.loads((tmp_path / "result.json").read_text())["trials"] == trials


def test_the_best_rate_is_the_largest_that_costs_little_more_than_the_cheapest(script):
    module = script("choose_learning_rate")

    def trial(rate, reached, kl):
        return {"rate": rate, "reached": reached, "kl": kl}

    trials = {
        "top": [trial(1, "no", 0.0), trial(2, "yes", 0.3), trial(3, "yes", 0.2), {"rate": 4, "reached": "diverged"}],
        "all": [trial(1, "no", 0.1)],
    }
    assert module.best_rates(trials) == {"top": trial(3, "yes", 0.2)}
    trials["top"].append(trial(5, "yes", 0.39))
    assert module.best_rates(trials) == {"top": trial(5, "yes", 0.39)}


def test_localizers_find_what_was_planted(script, tmp_path):
    module = script("planted")
    result = module.main(module.Settings(seeds=(0,), integration_steps=4, out=tmp_path, page=tmp_path / "page.md"))
    found = dict(zip(result["figure"].values.tolist(), result.value.values[0].tolist(), strict=True))
    # Patching finds the head whole; a gradient at a saturated softmax has its place and not its size.
    assert found["patch, v, noising: head's share of all effects"] > 0.999
    assert found["attribute, v, noising: head's share"] > 0.99
    assert found["attribute, v, noising: sum at the head (exact: 1)"] < 0.01
    assert found["activation gradients, v, integrated: head's share"] > 0.99
    # Decoys draw the gradients away from the truth: of ten chosen weights more than seven are theirs.
    share = {name: found[f"weights, plain: share of {name} in the top 0.1%"] for name in ("truth", "decoys")}
    assert 0.1 < share["truth"] < 0.3 and 0.7 < share["decoys"] <= 1 - share["truth"] + 1e-9
    row = f"| patch, v, noising: head's share of all effects | {result.value.values[0, 0]:.4f} |"
    assert row in (tmp_path / "page.md").read_text()


def test_a_planted_head_is_reported(script, tmp_path):
    module = script("head_report")
    small = {"n_layers": 4, "n_heads": 4, "d_model": 128, "d_mlp": 512, "d_vocab": 512, "seed": 1}
    settings = module.Settings(**small, nulls=3, reports=1, out=tmp_path / "r", page=tmp_path / "p.md")
    result = module.main(settings)
    assert result.attrs["head"] == "L1H2" and result.attrs["double"].endswith("not shown to matter.")
    assert result.sizes == {"null": 3, "report": 1} and not result.found.any()
    text = (tmp_path / "p.md").read_text()
    below = int((result.lowest_p < 0.05).sum())
    assert f"| {below} of 3; exact 95 % interval" in text and f"| {result.attrs['verdict']} |" in text
