"""Rules over a whole generation: equal to slow loops, and the rate holds for generations and not for looks."""

import numpy as np
import pytest
import torch

from mechmem.detect.probes.conformal import conformal_threshold
from mechmem.detect.probes.rules import Statistic, log_odds, statistics

RULES = ("max", "cusum", "sprt")


def slow(rule: str, odds: list[float]) -> list[float]:
    """The definitions, over the log odds of one text."""
    found = []
    for end in range(1, len(odds) + 1):
        values = []
        for at in range(1, end + 1):
            if rule == "max":
                values.append(odds[at - 1])
            elif rule == "sprt":
                values.append(sum(odds[:at]))
            else:
                values.append(max([0.0, *(sum(odds[start:at]) for start in range(at))]))
        found.append(max(values))
    return found


@pytest.mark.parametrize("rule", RULES)
def test_the_running_statistic_is_the_definitions(rule):
    scores = np.random.default_rng(0).uniform(0.01, 0.99, (5, 9)).astype(np.float32)
    found = statistics(rule, scores, tuple(range(9)), block=9)
    expected = [slow(rule, log_odds(torch.from_numpy(row)).tolist()) for row in scores]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_a_long_generation_starts_again_at_each_block(rule):
    scores = np.random.default_rng(1).uniform(0.01, 0.99, (3, 8)).astype(np.float32)
    whole = statistics(rule, scores, tuple(range(8)), block=4)
    np.testing.assert_array_equal(whole[:, 4:], statistics(rule, scores[:, 4:], tuple(range(4)), block=4))


@pytest.mark.parametrize("rule", RULES)
def test_rows_can_be_taken_and_repeated(rule):
    scores = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    running = Statistic(rule, 3, 50)
    running.step(scores[0], 0)
    rows = torch.tensor([2, 0, 0])
    running.select(rows)
    moved = [running.step(scores[k][rows], k) for k in (1, 2, 3)]
    plain = Statistic(rule, 3, 50)
    for k in range(4):
        expected = plain.step(scores[k], k)
    torch.testing.assert_close(moved[-1], expected[rows])


def test_scores_of_zero_and_one_are_finite():
    assert torch.isfinite(log_odds(torch.tensor([0.0, 1.0]))).all()


def generations(rng: np.random.Generator, count: int) -> np.ndarray:
    """Scores at 30 steps of texts that are not recited, successive steps nearly alike."""
    steps = 0.6 * rng.normal(size=(count, 30)).cumsum(1) / np.sqrt(np.arange(1, 31)) - 0.5
    return (1 / (1 + np.exp(-steps))).astype(np.float32)


@pytest.mark.parametrize("rule", RULES)
def test_the_rate_holds_for_the_whole_generation_and_not_for_each_look(rule):
    rng = np.random.default_rng(3)
    whole, looks = [], []
    for _ in range(60):
        null, new = (statistics(rule, generations(rng, n), tuple(range(30)), 30) for n in (99, 100))
        whole.append((new[:, -1] > conformal_threshold(null[:, -1], 0.05)).mean())
        scores, fresh = generations(rng, 99), generations(rng, 100)
        # Control: a threshold for each look, each with the right rate.
        each = np.array([conformal_threshold(scores[:, k], 0.05) for k in range(30)])
        looks.append((fresh > each).any(1).mean())
    assert np.mean(whole) == pytest.approx(0.05, abs=0.012)
    assert np.mean(looks) > 0.12
