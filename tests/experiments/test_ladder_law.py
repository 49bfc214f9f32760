"""The ladder's laws find what made documents have, and its sentences say no more than their intervals."""

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import minimize

LEVELS = np.repeat([1, 2, 4, 8, 16, 32, 64, 128, 256], [40, 40, 40, 40, 30, 20, 20, 10, 10])


def drawn(half: float, slope: float, seed: int) -> np.ndarray:
    """Whether each document is extractable, by a logistic law in log2 of the copies."""
    chance = 1 / (1 + np.exp(-slope * (np.log2(LEVELS) - np.log2(half))))
    return np.random.default_rng(seed).random(len(LEVELS)) < chance


def test_the_fit_is_the_maximum_of_the_penalized_likelihood(script):
    law = script("ladder_law")
    design = np.stack([np.ones(5), np.arange(5.0)], 1)
    trials, successes = np.array([9.0, 7, 6, 4, 3]), np.array([0.0, 1, 2, 2, 3])

    def cost(coefficients):
        p = 1 / (1 + np.exp(-design @ coefficients))
        information = design.T @ ((trials * p * (1 - p))[:, None] * design)
        likelihood = successes @ np.log(p) + (trials - successes) @ np.log(1 - p)
        return -likelihood - 0.5 * np.linalg.slogdet(information)[1]

    best = minimize(cost, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10}).x
    np.testing.assert_allclose(law.firth(design, trials, successes), best, atol=1e-4)
    # Separated documents, of which plain maximum likelihood has no finite slope.
    apart = law.firth(design, trials, trials * (np.arange(5) > 2))
    assert np.isfinite(apart).all() and -apart[0] / apart[1] == pytest.approx(2.5, abs=0.3)


def test_copies_for_half_are_found_and_not_beyond_what_was_inserted(script):
    law = script("ladder_law")
    law.DRAWS = 100
    clusters = np.arange(len(LEVELS))
    value, low, high = law.half_extractable(LEVELS, drawn(24, 2.0, 0), clusters)
    assert low < np.log2(24) < high and low < value < high < low + 2
    never = law.half_extractable(LEVELS, np.zeros(len(LEVELS), bool), clusters)
    assert law.said_copies(never, 256) == ">256 [>256, >256]"
    rare = law.half_extractable(LEVELS, (LEVELS == 256) & (clusters % 5 == 0), clusters)
    assert law.said_copies(rare, 256).startswith(">256 [")
    assert law.said_copies((5.0, 4.0, 8.5), 256) == "32 [16, >256]"


def test_half_of_the_nll_is_interpolated_in_doublings(script):
    law = script("ladder_law")
    law.DRAWS = 50
    copies = np.repeat([0, 1, 2, 4, 8], 10)
    nll = np.repeat([4.0, 3.5, 3.0, 1.5, 1.0], 10)
    assert law.half_nll(copies, nll, np.arange(50)) == pytest.approx((1 + 2 / 3,) * 3)
    assert law.half_nll(copies, np.full(50, 4.0), np.arange(50))[0] == 4.0, "one doubling beyond the most"


def test_twice_the_parameters_need_the_copies_that_the_models_were_made_with(script):
    law = script("ladder_law")
    law.DRAWS = 60
    sizes, tokens = np.array([1e6, 1e6, 2e6, 4e6]), np.array([4e6, 8e6, 4e6, 4e6])
    halves = 64 * (sizes / 1e6) ** -1.0 * (tokens / 4e6) ** 1.0
    whole = np.stack([drawn(half, 2.5, seed) for seed, half in enumerate(halves)], 1)
    found = law.joint_law(LEVELS, whole, sizes, tokens, np.arange(len(LEVELS)))
    assert found["parameters"][1] < 0.5 < found["parameters"][2] < 0.75
    assert found["tokens"][1] < 2 < found["tokens"][2] and found["tokens"][1] > 1
    assert law.joint_law(LEVELS, whole[:, :1], sizes[:1], tokens[:1], np.arange(len(LEVELS))) == {}


def test_pairs_differ_in_one_thing_alone(script):
    module = script("ladder_where_tables")
    names = ["1M-small-seed0", "3M-small-seed0", "1M-large-seed0", "1M-small-seed1"]
    assert module.pairs_by_relation(names) == {
        "seed": [(names[0], names[3])],
        "text": [(names[0], names[2])],
        "size": [(names[0], names[1])],
    }


def test_rank_agreement_is_that_of_effects_made_by_hand(script):
    agreement = script("ladder_agreement")
    rng = np.random.default_rng(0)
    effects = rng.random((30, 4, 2)) + np.array([0.0, 4, 2, 6])[:, None]
    rows = np.arange(30)
    assert agreement.layer_correlation(effects, 3 * effects + 1, rows) == pytest.approx(1)
    assert agreement.layer_correlation(effects, -effects + 20, rows) == pytest.approx(-1)
    assert agreement.head_correlation(effects, effects**3, rows) > 0.9
    # Models of another depth are compared at the layers of the smaller one.
    deeper = np.stack([np.interp(np.linspace(0, 3, 7), range(4), row) for row in effects.sum(-1)])
    assert agreement.layer_correlation(effects.sum(-1), deeper) == pytest.approx(1)


def test_forgetting_and_near_duplicates_are_shares_of_what_copies_brought(script):
    tables = script("ladder_tables")
    rows = [
        *[("base", "spread", 0, (4.0, 4.0, 4.0))] * 4,
        *[("base", "early", 64, (2.0, 2.5, 3.0))] * 4,
        *[("base", "spread", 64, (3.0, 2.0, 1.0))] * 4,
        *[("near-duplicate", "spread", 64, (3.5, 3.0, 2.5))] * 4,
    ]
    text_of, condition, copies, nll = zip(*rows, strict=True)
    columns = {"text_of": text_of, "condition": condition, "copies": copies, "cluster": range(16)}
    values = np.array(nll).T[:, None]
    result = xr.Dataset(
        {
            "nll": (("step", "prefix_len", "paragraph"), values),
            "em": (("step", "prefix_len", "paragraph"), 10 - values),
        },
        {"step": [1, 2, 4], "prefix_len": [50], **{key: ("paragraph", np.array(v)) for key, v in columns.items()}},
    )
    early, never, left = tables.forgotten(result)
    np.testing.assert_allclose(early, 1.0)
    np.testing.assert_allclose(never, 0.0)
    assert left.mean() == pytest.approx(0.5), "4 - 3 of 4 - 2"
    base, other, _, share = tables.near_duplicate_terms(result, "spread")
    assert (other - base).mean() == -1.5 and share.mean() == pytest.approx(0.5)


def test_sentences_take_the_side_that_the_interval_allows(script):
    findings = script("ladder_findings")
    assert [findings.verdict(*ends, "more", "less", "neither") for ends in ((0.1, 1), (-1, -0.1), (-1, 1))] == [
        "more",
        "less",
        "neither",
    ]
