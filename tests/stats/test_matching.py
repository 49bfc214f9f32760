import itertools
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
import scipy.stats
import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.stats import assignment, matching
from mechmem.stats.covariates import with_covariates
from mechmem.stats.matching import match
from mechmem.stats.permutation import permutation_test


def made(start: int, **columns: Any) -> Paragraphs:
    """Paragraphs whose tokens and ids differ from each other; those of different starts differ, too."""
    numbers = start + torch.arange(len(next(iter(columns.values()))))
    return Paragraphs(numbers[:, None].repeat(1, 6), 3).with_columns(**({"id": numbers.numpy()} | columns))


def rows_of(matched: Paragraphs, start: int = 1000) -> list[int]:
    return (matched.tokens[:, 0] - start).tolist()


def mahalanobis(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """SciPy's distance, with the mean of the two sets' covariances."""
    pooled = (np.cov(one, rowvar=False) + np.cov(other, rowvar=False)) / 2
    return scipy.spatial.distance.cdist(one, other, "mahalanobis", VI=np.linalg.pinv(np.atleast_2d(pooled)))


def slow_best(cost: np.ndarray, ratio: int, allowed: np.ndarray) -> tuple[int, float]:
    """(most complete rows, smallest total distance) over every way to give `ratio` columns to some of the rows."""
    best = (0, 0.0)
    rows, columns = cost.shape
    for used in itertools.chain.from_iterable(itertools.combinations(range(rows), n) for n in range(1, rows + 1)):
        slots = np.repeat(used, ratio)
        for picks in itertools.permutations(range(columns), len(slots)):
            picks = np.array(picks)
            if allowed[slots, picks].all():
                best = min(best, (-len(used), float(cost[slots, picks].sum())))
    return -best[0], best[1]


def total(matched: Paragraphs, cost: np.ndarray) -> float:
    return float(cost[matched.column("matched_to"), rows_of(matched)].sum())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("ratio", "caliper"), [(1, None), (2, None), (1, 0.8), (2, 1.2)])
def test_the_assignment_is_that_of_trying_all(seed, ratio, caliper):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(3, 2)) @ [[1, 0.8], [0, 0.2]], rng.normal(size=(7, 2)) @ [[1, 0.8], [0, 0.2]]
    memorized = made(0, x=one[:, 0], y=100 * one[:, 1])
    candidates = made(1000, x=other[:, 0], y=100 * other[:, 1])
    cost = mahalanobis(one, other)
    spread = np.sqrt((one.var(0, ddof=1) + other.var(0, ddof=1)) / 2)
    allowed = (np.abs(one[:, None] - other[None]) <= (caliper or np.inf) * spread).all(-1)
    complete, expected = slow_best(cost, ratio, allowed)
    if complete == 0:
        with pytest.raises(InputError, match="no memorized paragraph has"):
            match(memorized, candidates, ["x", "y"], ratio=ratio, caliper=caliper)
        return
    matched, balance = match(memorized, candidates, ["x", "y"], ratio=ratio, caliper=caliper, seed=seed)
    assert len(set(rows_of(matched))) == len(matched) == complete * ratio
    assert allowed[matched.column("matched_to"), rows_of(matched)].all()
    assert balance.attrs["unmatched_count"] == 3 - complete
    # With more controls than one, which paragraph goes is chosen by a rule and not by trying all.
    if complete == 3 or ratio == 1:
        assert total(matched, cost) == pytest.approx(expected)


def test_a_greedy_choice_would_be_worse():
    # The first row is nearest to 0.9, which the second needs more.
    memorized, candidates = made(0, x=[0.0, 2.0]), made(1000, x=[0.9, -1.1, 50.0, 60.0])
    assert rows_of(match(memorized, candidates, ["x"])[0]) == [1, 0]


def test_many_candidates_are_searched_as_well_as_few(monkeypatch):
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(60, 3)), rng.normal(size=(400, 3))
    memorized, candidates = (made(s, x=v[:, 0], y=v[:, 1], z=v[:, 2]) for s, v in ((0, one), (1000, other)))
    cost = mahalanobis(one, other)
    best = cost[scipy.optimize.linear_sum_assignment(cost)].sum()
    exact, balance = match(memorized, candidates, ["x", "y", "z"])
    assert total(exact, cost) == pytest.approx(best) and balance.assignment == "optimal"
    monkeypatch.setattr(assignment, "NEAREST", 1)
    monkeypatch.setattr(matching, "NEAREST", 1)
    near, balance = match(memorized, candidates, ["x", "y", "z"])
    assert balance.assignment == "approximate: 1 nearest candidates of each"
    assert len(set(rows_of(near))) == 60 and best < total(near, cost) < 1.3 * best


def test_when_all_are_near_the_same_few_the_others_are_still_found(monkeypatch):
    monkeypatch.setattr(assignment, "NEAREST", 2)
    matched, balance = match(made(0, x=np.zeros(9)), made(1000, x=np.arange(30.0)), ["x"])
    assert sorted(rows_of(matched)) == list(range(9)) and balance.unmatched_count == 0


def test_words_agree_exactly_and_who_has_no_partner_is_named():
    memorized = made(
        0, id=[70, 71, 72, 73], source=["a", "b", "c", "b"], seen=[True, True, True, False], x=[0, 1, 2, 3]
    )
    candidates = made(
        1000, source=["b", "a", "a", "b", "b"], seen=[True, False, True, True, True], x=[9.0, 0.1, 5.0, 7.0, 8.0]
    )
    matched, balance = match(memorized, candidates, ["source", "seen", "x"])
    assert rows_of(matched) == [2, 3] and matched.column("matched_to").tolist() == [70, 71]
    assert balance.paragraph[balance.controls == 0].values.tolist() == [72, 73] and balance.unmatched_count == 2
    assert balance.controls.values.tolist() == [1, 1, 0, 0]


def test_controls_name_their_paragraph_by_its_id_whatever_its_row():
    memorized = made(0, x=[0.0, 5.0, 9.0])
    candidates = made(1000, x=[9.1, 0.1, 5.1, 70.0])
    partners = dict(
        zip(*(lambda m: (m.column("matched_to"), m.ids))(match(memorized, candidates, ["x"])[0]), strict=True)
    )
    turned, balance = match(memorized.select([2, 0]), candidates, ["x"])
    assert dict(zip(turned.column("matched_to"), turned.ids, strict=True)) == {i: partners[i] for i in (2, 0)}
    assert balance.paragraph.values.tolist() == [2, 0]
    plain, balance = match(Paragraphs(memorized.tokens, 3).with_columns(x=[0.0, 5.0, 9.0]), candidates, ["x"])
    assert set(plain.column("matched_to")) == set(balance.paragraph.values)


def test_with_two_controls_each_a_paragraph_has_both_or_none():
    memorized = made(0, source=list("aaabb"), x=[0.0, 1.0, 2.0, 0.0, 1.0])
    candidates = made(1000, source=list("aaaaabbbbbb"), x=np.arange(11.0))
    matched, balance = match(memorized, candidates, ["source", "x"], ratio=2)
    assert sorted(balance.controls.values[:3].tolist()) == [0, 2, 2] and balance.controls.values[3:].tolist() == [2, 2]
    assert len(set(rows_of(matched))) == len(matched) == 8
    distance = np.abs(np.array(memorized.column("x"))[matched.column("matched_to")] - matched.column("x"))
    assert (np.diff(matched.column("matched_to")) >= 0).all() and (distance[::2] <= distance[1::2]).all()


def test_no_candidate_of_a_memorized_cluster_is_taken():
    memorized = made(0, x=[0.0, 1.0], cluster=[5, 6])
    candidates = made(1000, x=[0.0, 1.0, 40.0, 50.0], cluster=[6, 5, 7, 7])
    matched, balance = match(memorized, candidates, ["x"])
    assert sorted(rows_of(matched)) == [2, 3] and balance.clusters.startswith("2 candidates")
    unknown, balance = match(memorized, made(1000, x=[0.0, 1.0, 40.0, 50.0]), ["x"])
    assert rows_of(unknown) == [0, 1] and balance.clusters.startswith("not compared")


def test_a_seed_settles_ties_and_nothing_else():
    memorized, candidates = made(0, source=["a"] * 3), made(1000, source=["a"] * 40)
    first, again, other = (rows_of(match(memorized, candidates, ["source"], seed=s)[0]) for s in (0, 0, 1))
    assert first == again and set(first) != set(other)
    values = np.random.default_rng(0).normal(size=40)
    one, two = (rows_of(match(made(0, x=values[:3]), made(1000, x=values[3:]), ["x"], seed=s)[0]) for s in (0, 1))
    assert one == two


def test_columns_that_say_the_same_and_constant_ones_do_no_harm():
    rng = np.random.default_rng(4)
    one, other = rng.normal(size=4), rng.normal(size=9)
    alone = rows_of(match(made(0, x=one), made(1000, x=other), ["x"])[0])
    twice = match(made(0, x=one, y=3 * one, c=[1] * 4), made(1000, x=other, y=3 * other, c=[1] * 9), ["x", "y", "c"])
    assert rows_of(twice[0]) == alone
    assert twice[1].smd.sel(covariate="c").values.tolist() == [0, 0]
    single = match(made(0, x=[1.0]), made(1000, x=[9.0, 1.2, 3.0]), ["x"])
    assert rows_of(single[0]) == [1] and np.isfinite(single[1].smd.values).all()


def confounded(seed: int, effect: float) -> tuple[Paragraphs, Paragraphs]:
    """Memorized paragraphs with easier prefixes and other sources; `score` follows the prefix, plus a true effect."""
    rng = np.random.default_rng(seed)
    easier, count = rng.normal(-0.8, 0.8, size=60), 700
    nll = np.concatenate([easier, rng.normal(0.0, 1.0, size=count)])
    source = rng.random(60 + count) < np.repeat([0.7, 0.4], [60, count])
    score = -nll + source + 0.5 * rng.normal(size=60 + count) + effect * (np.arange(60 + count) < 60)
    sides = slice(0, 60), slice(60, None)
    words = np.where(source, "book", "code")
    first, second = (
        made(start, prefix_nll=nll[side], source=words[side], score=score[side])
        for start, side in zip((0, 1000), sides, strict=True)
    )
    return first, second


def p_values(memorized: Paragraphs, candidates: Paragraphs, seed: int) -> tuple[float, float, xr.Dataset]:
    """Of the naive comparison and of the matched pairs."""
    scores = memorized.column("score"), candidates.column("score")
    is_memorized = np.repeat([True, False], [len(memorized), len(candidates)])
    naive = permutation_test(np.concatenate(scores), is_memorized, permutations=199, seed=seed)[1]
    matched, balance = match(memorized, candidates, ["prefix_nll", "source"], seed=seed)
    differences = scores[0][matched.column("matched_to")] - matched.column("score")
    paired = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=199, vectorized=True, rng=seed
    )
    return naive, float(paired.pvalue), balance


def test_matching_removes_a_planted_confounding_and_keeps_a_true_effect():
    runs, naive, false, found = 40, 0, 0, 0
    for seed in range(runs):
        first, second, balance = p_values(*confounded(seed, effect=0.0), seed)
        naive, false = naive + (first <= 0.05), false + (second <= 0.05)
        found += p_values(*confounded(seed, effect=0.5), seed)[1] <= 0.05
        smd = balance.smd.sel(covariate="prefix_nll").values
        assert smd[0] < -0.5 and abs(smd[1]) < 0.1
        assert balance.total_variation.sel(covariate="source").values[1] == 0
    # 2 of 40 are expected by chance; at most 6 with probability 0.99.
    assert naive == runs and false <= 6 and found >= 0.9 * runs


def test_random_candidates_do_not_balance():
    for seed in range(5):
        memorized, candidates = confounded(seed, effect=0.0)
        unrelated = np.random.default_rng(seed).normal(size=len(candidates))
        memorized = memorized.with_columns(noise=np.zeros(60) + np.arange(60) / 30 - 1)
        matched, _ = match(memorized, candidates.with_columns(noise=unrelated), ["noise"], seed=seed)
        difference = memorized.column("prefix_nll").mean() - matched.column("prefix_nll").mean()
        assert difference / 0.9 < -0.3


def test_covariates_lead_to_matches(tiny_model):
    tokens = torch.randint(0, 61, (40, 20), generator=torch.Generator().manual_seed(1))
    paras = with_covariates(Paragraphs(tokens, 10), model=tiny_model, unigram_counts=np.arange(61) + 1)
    paras = paras.with_columns(source=["a", "b"] * 20)
    matched, balance = match(paras.select(np.arange(8)), paras.select(np.arange(8, 40)))
    assert len(matched) == 8 and balance.covariate.values.tolist() == ["prefix_nll", "rarity", "source", "repeated_run"]
    assert (abs(balance.smd.sel(when="after")) <= abs(balance.smd.sel(when="before"))).sum() >= 2


def test_the_balance_goes_through_netcdf(tmp_path):
    _, balance = match(made(0, source=["a"], x=[1.0]), made(1000, source=["a"] * 3, x=[1.0, 2.0, 3.0]), ["source", "x"])
    balance.to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    read = xr.load_dataset(tmp_path / "b.nc", engine="h5netcdf")
    xr.testing.assert_equal(read, balance)
    assert read.attrs["unmatched_count"] == 0 and "caliper" not in read.attrs
    assert "Austin 2009" in read.attrs["convention"]
    assert read.smd.attrs["units"] == "pooled standard deviations before matching"


def test_bad_input_is_refused():
    one, two = made(0, x=[1.0, 2.0], s=["a", "b"]), made(1000, x=[1.0, 2.0, 3.0], s=["a", "b", "c"])
    cases: list[tuple[str, Paragraphs, Paragraphs, dict[str, Any]]] = [
        ("memorized paragraphs have no column 'rarity', only .*with_covariates", one, two, {"on": ["rarity"]}),
        ("candidate paragraphs have no column 'x'", one, made(1000, s=["a"] * 3), {}),
        ("column 'x' is float64 in the memorized and <U1", one, made(1000, x=["a"] * 3), {}),
        ("'x' of the candidate .* 1 of 3 values missing", one, made(1000, x=[1.0, np.nan, 2.0]), {}),
        ("'s' of the memorized .* 1 of 2 values missing", made(0, s=["a", None]), two, {"on": ["s"]}),
        ("got 1 paragraphs that are in both sets", one, made(1, x=[1.0, 2.0]), {}),
        ("got 3 candidates .0 more share a cluster.*; need 2 for each of 2", one, two, {"ratio": 2}),
        ("got 0 memorized paragraphs and 3 candidates", one.select([]), two, {}),
        ("no memorized paragraph has 1 candidates", one, made(1000, x=[90.0, 80.0, 70.0]), {"caliper": 0.1}),
        ("got on=\\[\\]", one, two, {"on": []}),
        ("got 's' as on; need several values", one, two, {"on": "s"}),
        ("got 0 as ratio", one, two, {"ratio": 0}),
        ("got -1.0 as caliper", one, two, {"caliper": -1.0}),
        ("length and prefix .6, 3. and candidates of .6, 2.", one, Paragraphs(two.tokens, 2, two.table), {}),
    ]
    for sentence, memorized, candidates, settings in cases:
        arguments: dict[str, Any] = {"on": ["x"]} | settings
        with pytest.raises(InputError, match=sentence):
            match(memorized, candidates, **arguments)
