"""Items 4, 5, 7 and 8 of the repeated study on a planted model, whose answer is known, and what each trap changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.intervene.published_recipe import Recipe
from mechmem.report.paper.drawings import DRAWINGS
from mechmem.study.paper.items import ITEMS, contrastive_finding
from mechmem.study.paper.items.contrastive_finding import start_masks
from mechmem.study.paper.items.noise_finding import places_in_head, share_in_head
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.paper_settings import PaperSettings
from mechmem.study.paper.rows import Finding
from mechmem.study.paper.tuning_runs import bernoulli_mask, by_recipe, draws, others_labels, outcome, published_masks
from mechmem.study.paper.tuning_traps import leaking_split, misplaced
from mechmem.weights.mask_choice import size


@pytest.fixture(scope="module")
def truth():
    return mm.planted(mm.PlantedSettings(n_layers=3))


@pytest.fixture(scope="module")
def paper(truth, tmp_path_factory):
    """A checkpoint folder of the planted model and its text, each memory in two versions."""
    folder = tmp_path_factory.mktemp("paper")
    mm.export(truth.model, folder / "model")
    rows = np.arange(len(truth.memorized))
    twins = truth.memorized.tokens.clone()
    # One of the first tokens that is not the rare one, replaced by a token that stands later in the paragraph.
    place = np.where(truth.triggers == 3, 4, 3)
    twins[rows, place] = twins[rows, place + 5]
    tokens = torch.cat([truth.memorized.tokens, twins, truth.other.tokens])
    mm.Paragraphs(tokens, prefix_len=truth.memorized.prefix_len).save(folder / "text.parquet")
    settings = PaperSettings(
        model=str(folder / "model"),
        corpus=str(folder / "text.parquet"),
        gradient_sample=8,
        targets=3,
        kept=3,
        steps=6,
        repeats=1,
        head_sample=None,
        noise_scales=(1.0, 3.0),
        noise_draws=1,
        permutations=100,
        draws=50,
    )
    paper = PaperFolder(folder / "out", settings)
    paper.folder.mkdir()
    with pytest.warns(UserWarning, match="no tokenizer"):
        assert paper.model.cfg.n_layers == paper.folded.cfg.n_layers == 3
    paper.store(paper.sets)
    assert len(paper.sets.memorized) == 16 and len(np.unique(paper.sets.memorized.clusters)) == 8
    return paper


def rows_of(finding: Finding) -> dict[tuple[str, str], float]:
    return {(row.quantity, row.reading): row.measured for row in finding.rows}


def saved(paper: PaperFolder, name: str, finding: Finding) -> None:
    """What the page needs: files that read back, and figures."""
    paper.save(name, finding)
    rows, traps = paper.account(name)
    assert (rows, traps) == (finding.rows, finding.traps)
    drawings = DRAWINGS[name](paper.data(name))
    assert drawings and all(drawing.figure.to_json() and drawing.figure.layout.title.text for drawing in drawings)
    for row in rows:
        assert row.item == name and row.units
        assert row.low is None or row.high is None or row.low <= row.high


def test_the_planted_values_are_the_most_salient_and_kl_adds_nothing(paper):
    finding = ITEMS["contrastive"](paper)
    found = rows_of(finding)
    assert found["rank of W_V of L1H2 among all components", "as published"] == 1
    assert found["rank of W_V of L1H2 among all components", "corrected"] <= 5
    (trap,) = finding.traps
    assert trap.number == 2 and trap.slipped == 100 > trap.corrected
    assert float(finding.data.cosine) == pytest.approx(1, abs=1e-6)
    assert float(finding.data.overlap.sel(mask="random", other_mask="plain")) < 0.1
    saved(paper, "contrastive", finding)


def test_a_kl_to_another_model_would_change_the_mask(paper, monkeypatch):
    """Control of trap 2: held to other weights than the starting ones, the KL term has a gradient."""

    gradient = mm.weight_gradients(paper.folded, paper.sets.memorized)
    moved = mm.edit_weights(paper.folded, {"W_V": lambda weight: 0 * weight}, heads=["L1H2"])[0]
    real = contrastive_finding.kl_gradients
    monkeypatch.setattr(contrastive_finding, "kl_gradients", lambda model, _, keep: real(model, moved, keep))
    masks, alike = start_masks(paper.folded, gradient, paper.sets.memorized, 0.001)
    assert alike < 0.99 and masks["objective"].overlap(masks["plain"]) < 0.99


def test_the_planted_head_attends_to_rare_tokens_and_every_head_slopes_down(paper):
    finding = ITEMS["head"](paper)
    found = rows_of(finding)
    name = "Spearman, attention of L1H2 and token frequency"
    assert found[name, "as published"] < -0.9 and found[name, "corrected"] < -0.5
    assert found["rank of L1H2 by this excess", "corrected"] <= 2
    assert found["p of this excess, L1H2, over all heads", "corrected"] < 0.05
    # Trap 7: attention that is spread evenly slopes down too, and so do heads that were not planted.
    assert found["Spearman, attention spread evenly and token frequency", "as published"] < -0.4
    slopes = finding.data.rank_sum_correlation.sel(coefficient="spearman")
    by_token = finding.data.spearman
    assert (slopes < 0).mean() > 0.9 > 0.5 >= (by_token < -0.3).mean()
    (trap,) = finding.traps
    assert trap.number == 7 and trap.slipped == pytest.approx(float(slopes.sel(layer=1, head=2)))
    saved(paper, "head", finding)


def test_noise_meant_for_head_2_lands_on_head_0(paper):
    finding = ITEMS["noise"](paper)
    (trap,) = finding.traps
    assert (trap.number, trap.slipped, trap.corrected) == (8, 0, 100)
    counts = finding.data.weights.sel(mask="top")
    assert abs(2 * int(counts.sel(reading="as published")) - int(counts.sel(reading="corrected"))) <= 1
    em = finding.data.em.sel(reading="corrected", set="memorized").mean("draw")
    assert float(em.sel(mask="top", scale=1.0)) < 10 < float(em.sel(mask="top, random", scale=1.0))
    saved(paper, "noise", finding)


def test_places_in_a_head_are_those_of_head_0_in_the_whole_tensor(paper):
    mask = mm.Mask.heads(paper.model, [(1, 2)])
    slipped = places_in_head(mask, 2)
    for name, index in mask.indices.items():
        whole = torch.zeros(mask.shapes[name])
        # As the public code does: places where a slice has weights, put into the flat whole.
        whole.view(-1)[whole[2].flatten().eq(0).nonzero().flatten()] = 1
        assert (
            torch.equal(whole.flatten().nonzero().flatten(), slipped.indices[name]) and len(index) == whole[0].numel()
        )
    assert share_in_head(slipped, (1, 0)) == 100 == share_in_head(mask, (1, 2))
    # Control: of head 0 itself the slip changes nothing.
    assert share_in_head(places_in_head(mm.Mask.heads(paper.model, [(1, 0)]), 0), (1, 0)) == 100


@pytest.fixture(scope="module")
def tuned(paper):
    return ITEMS["finetuning"](paper)


def test_sparse_unlearning_works_through_the_chosen_weights_alone(paper, tuned):
    found = rows_of(tuned)
    after = {w: found[f"EM of memorized paragraphs after: unlearn, {w}", "corrected"] for w in
             ("all weights", "the 0.1 % with the largest gradients", "random 0.1 %")}  # fmt: skip
    assert after["the 0.1 % with the largest gradients"] < 25 < after["random 0.1 %"]
    assert len(tuned.rows) == 2 * 2 * 3 * 2 + 2 + 2
    assert found["weights of a mask that is called 0.1 %", "as published"] == pytest.approx(0.05, rel=0.01)
    assert (tuned.data.moved_outside.sel(reading="corrected") == 0).all()
    saved(paper, "finetuning", tuned)


def test_traps_of_fine_tuning(tuned):
    traps = {trap.number: trap for trap in tuned.traps}
    assert set(traps) == {1, 6, 9, 11}
    assert traps[1].slipped > 500_000 and traps[1].corrected == 0
    assert traps[6].slipped < 5 < traps[6].corrected
    assert traps[9].slipped > 20 and traps[9].corrected == 0


def test_without_decay_the_public_code_is_sparse(paper):
    """Control of trap 1."""
    (draw,) = draws(paper)
    mask = published_masks(paper, draw)["top"]
    assert mask is not None
    edited = by_recipe(paper, draw, "unlearn", mask, Recipe(steps=2, weight_decay=0.0))
    assert outcome(paper.folded, edited, draw, mask).outside == 0
    # Trap 6: no paragraph gets the text of its own perturbation.
    wanted = others_labels(draw)
    assert not (wanted == draw.perturbed.continuation).all(1).any()
    assert sorted(map(tuple, wanted.tolist())) == sorted(map(tuple, draw.perturbed.continuation.tolist()))


def test_a_chance_mask_has_its_weights_by_size(paper):
    """Trap 9: counts by tensor are those of chance; a matched mask has none misplaced."""
    top = mm.Mask.top(mm.weight_gradients(paper.model, paper.sets.memorized), fraction=0.01)
    chance = bernoulli_mask(top, 0.01, 0)
    total = sum(size(shape) for shape in top.shapes.values())
    assert chance.count == pytest.approx(0.01 * total, rel=0.1)
    for name, shape in top.shapes.items():
        assert len(chance.indices[name]) == pytest.approx(0.01 * size(shape), rel=0.35)
    assert misplaced(chance, top) > 0.2 and misplaced(mm.Mask.random_like(top, seed=1), top) == 0


def test_a_random_split_leaks_near_duplicates_and_one_without_them_cannot(paper):
    """Trap 11: a memory is unlearned in both its versions; its control has one paragraph of each cluster."""
    more = PaperFolder(paper.folder, replace(paper.settings, targets=6))
    more.__dict__.update({name: getattr(paper, name) for name in ("model", "folded", "sets")})
    trap = leaking_split(more)
    assert trap.slipped > 5 and abs(trap.corrected) < 2 and "none has" in trap.change
    first = np.unique(paper.sets.scored.clusters, return_index=True)[1]
    more.__dict__["sets"] = replace(paper.sets, scored=paper.sets.scored.select(np.sort(first)))
    trap = leaking_split(more)
    assert np.isnan(trap.slipped) and "no near-duplicates" in trap.change
