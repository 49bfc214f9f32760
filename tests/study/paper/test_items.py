"""Items on the bundled model, against slow and obvious ones."""

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.localize.patch_pairs import Direction
from mechmem.measure.scores import score_logits
from mechmem.study.paper import published
from mechmem.study.paper.items import ITEMS
from mechmem.study.paper.paper_folder import NotPossibleError
from mechmem.study.paper.paper_sets import GROUPS
from mechmem.study.paper.readings import own_text, published_columns
from mechmem.study.paper.rows import Row
from mechmem.study.paper.wording import TRAPS, WORDING

OWN_ITEMS = ("sets", "perturbation", "patching", "parameter_gradients", "activation_gradients")


def row_of(paper, item: str, quantity: str, reading: str) -> Row:
    (found,) = (row for row in paper.account(item)[0] if row.quantity == quantity and row.reading == reading)
    return found


def test_every_item_has_words_and_every_trap_an_item():
    assert set(ITEMS) <= set(WORDING) and list(TRAPS) == list(range(1, 15))
    assert {item for _, item in TRAPS.values()} <= set(WORDING)


def test_the_published_columns_leave_out_the_first_continuation_token(bundled_model, bundled):
    some = bundled[:3]
    shifted = published_columns(some)
    assert (shifted.ids == some.ids).all()
    by_token = mm.score(bundled_model, some).token_nll.values
    np.testing.assert_allclose(mm.score(bundled_model, shifted).nll.values, by_token[:, 1:].mean(1), rtol=1e-5)


def test_own_text_is_what_the_model_writes_token_by_token(bundled_model, bundled):
    em = mm.score(bundled_model, bundled[:60]).em.values
    some = bundled[:60].select(np.flatnonzero(em <= 10)[:1])
    tokens = some.prefix.clone()
    with torch.no_grad():
        for _ in range(50):
            tokens = torch.cat([tokens, bundled_model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    written = own_text(bundled_model, some)
    assert torch.equal(written.tokens, tokens) and (written.ids == some.ids).all()
    assert (mm.score(bundled_model, written).em.values == 50).all()


def test_rows_of_the_sets(small_paper):
    rows, traps = small_paper.account("sets")
    counts = [row_of(small_paper, "sets", f"paragraphs, EM {name}", "as published") for name in GROUPS]
    assert sum(row.measured for row in counts) == 60 and [row.published for row in counts] == [12422, 436, 141, 442]
    nll = row_of(small_paper, "sets", "mean NLL, EM 50", "corrected")
    scores = mm.score(small_paper.model, small_paper.sets.memorized)
    assert nll.measured == pytest.approx(float(scores.nll.mean()), rel=1e-5)
    assert nll.low is not None and nll.high is not None and nll.low <= nll.measured <= nll.high
    known = {trap.number: trap for trap in traps}
    assert set(known) == {3, 4, 5, 13} and known[3].corrected == pytest.approx(nll.measured)
    assert known[3].slipped == pytest.approx(float(scores.token_nll[:, 1:].mean()), rel=1e-5)
    assert "in 16 of 16 paragraphs" in known[13].change
    assert rows


def test_trap_4_scores_true_tokens_behind_own_ones(small_paper):
    known = {trap.number: trap for trap in small_paper.account("sets")[1]}
    some = small_paper.sets.group("0-10")[:16]
    own, model = own_text(small_paper.model, some), small_paper.model
    with torch.no_grad():
        mixed = score_logits(model(own.tokens)[:, 49:99], some.continuation)
        written = score_logits(model(own.tokens)[:, 49:99], own.continuation)
        true = score_logits(model(some.tokens)[:, 49:99], some.continuation)
    assert known[4].slipped == pytest.approx(float(mixed["nll"].mean()), rel=1e-4)
    assert known[4].corrected == known[5].corrected == pytest.approx(float(true["nll"].mean()), rel=1e-4)
    assert known[5].slipped == pytest.approx(float(written["nll"].mean()), rel=1e-4) and known[5].slipped < 1
    assert known[4].slipped > known[4].corrected


def test_the_mean_drop_counts_position_0_or_not(small_paper):
    sample = small_paper.sample("memorized", 2)
    fall = -mm.perturb_prefix(small_paper.model, sample, seed=0).em_change.values
    quantity = "mean EM drop per token, memorized"
    slipped = row_of(small_paper, "perturbation", quantity, "as published")
    corrected = row_of(small_paper, "perturbation", quantity, "corrected")
    assert corrected.measured == pytest.approx(fall.mean())
    assert slipped.measured == pytest.approx((fall.sum() - fall[:, 0].sum()) / fall.size)
    assert corrected.published == published.EM_DROP_MEMORIZED
    traps = {trap.number: trap for trap in small_paper.account("perturbation")[1]}
    assert (traps[10].slipped, traps[10].corrected) == (slipped.measured, corrected.measured)
    assert traps[12].slipped == pytest.approx(fall.mean() / 50) and traps[12].corrected < traps[12].slipped


def test_the_second_panel_scores_the_perturbed_run_s_own_text(small_paper):
    data = small_paper.data("patching")
    sample = small_paper.sample("memorized", 2)
    changed = mm.perturb_prefix(small_paper.model, sample, seed=0)
    clean, corrupt = mm.worst_perturbations(small_paper.model, sample, changed, before="all")
    assert (data.paragraph.values == clean.ids).all()
    place = clean.column("perturbed_pos")
    runs: tuple[tuple[str, mm.Paragraphs, mm.Paragraphs, Direction], ...] = (
        ("memorized_own", clean, corrupt, "noising"),
        ("perturbed_own", corrupt, clean, "noising"),
        ("perturbed_memorized", clean, corrupt, "denoising"),
    )
    for panel, first, second, direction in runs:
        effect = mm.patch(small_paper.model, first[:1], second[:1], site="v", direction=direction, scored="impact")
        ours = data.effect.sel(reading=panel, site="v").isel(paragraph=0)
        np.testing.assert_allclose(ours, effect.sel(pos=int(place[0])), atol=1e-5)
    row = row_of(small_paper, "patching", "largest mean |effect| of a head, perturbed run, own text", "as published")
    assert row.measured == pytest.approx(
        float(np.abs(data.effect.sel(reading="perturbed_own").mean("paragraph")).max())
    )


def test_gradients_are_of_both_readings(small_paper):
    data = small_paper.data("parameter_gradients")
    sample = small_paper.sample("0-10", 4)
    corrected = mm.parameter_gradients(small_paper.model, sample)
    np.testing.assert_allclose(data.gradient.sel(reading="corrected", group="0-10"), corrected, rtol=1e-3)
    written = published_columns(own_text(small_paper.model, sample))
    slipped = mm.parameter_gradients(small_paper.folded, written)
    np.testing.assert_allclose(data.gradient.sel(reading="as published", group="0-10"), slipped, rtol=1e-3)
    row = row_of(small_paper, "parameter_gradients", "sum of component scores, EM 0-10", "corrected")
    assert row.measured == pytest.approx(float(corrected.sum()), rel=1e-3) and row.published == 53.01
    assert row.low is not None and row.low < row.measured
    lower = row_of(small_paper, "parameter_gradients", "sum of layer 1, EM 50", "as published")
    assert lower.published == 1.51


def test_activation_gradients_rank_the_study_s_head(small_paper):
    data = small_paper.data("activation_gradients")
    mean = data.gradient.sel(reading="corrected").mean("paragraph").values
    count = mean.size
    row = row_of(small_paper, "activation_gradients", f"rank of L1H2 among {count} heads", "corrected")
    assert row.measured == 1 + (mean > mean[1, 2]).sum() and row.published == 1


def test_a_sample_draws_on_clusters_in_turn_and_says_why_there_is_none(small_paper):
    sample = small_paper.sample("other", 5)
    assert len(np.unique(sample.clusters)) == 5 and (sample.column("em") <= 10).all()
    assert (small_paper.sample("other", 5).ids == sample.ids).all()
    distinct = small_paper.sample("memorized", distinct=True)
    assert len(np.unique(distinct.clusters)) == len(distinct)
    with pytest.raises(NotPossibleError, match="has 0 paragraphs of the set 'nothing' in 0 clusters"):
        small_paper.sample("nothing", 5)
