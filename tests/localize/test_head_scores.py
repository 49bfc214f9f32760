import pytest
import torch

from mechmem.localize.head_scores import SCORES, pattern_scores


def slow(pattern: torch.Tensor, tokens: torch.Tensor, head: int) -> list[list[float]]:
    """Each score's values, one query at a time."""
    found: list[list[float]] = [[], [], [], []]
    for p, row in enumerate(tokens.tolist()):
        for query in range(1, len(row)):
            weights = pattern[p, head, query]
            earlier = [k for k in range(query) if row[k] == row[query]]
            found[0].append(float(weights[query - 1]))
            if earlier:
                found[1].append(sum(float(weights[k]) for k in earlier))
                found[2].append(sum(float(weights[k + 1]) for k in earlier))
            found[3].append(-sum(float(w * w.log()) for w in weights[: query + 1] if w > 0))
    return found


def test_scores_equal_one_query_at_a_time():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 5, (3, 11), generator=generator)
    raw = torch.randn(3, 2, 11, 11, generator=generator)
    pattern = raw.masked_fill(torch.ones(11, 11).triu(1).bool(), -torch.inf).softmax(-1)
    sums, counted = pattern_scores(pattern, tokens)
    for head in range(2):
        for number, values in enumerate(slow(pattern, tokens, head)):
            assert float(counted[number]) == len(values)
            assert float(sums[number, head]) == pytest.approx(sum(values), rel=1e-5)


def test_an_induction_head_and_a_previous_token_head_are_told_apart():
    tokens = torch.tensor([[3, 1, 4, 5, 2, 3, 1, 4, 5, 2]])
    pattern = torch.zeros(1, 3, 10, 10)
    for query in range(10):
        pattern[0, 0, query, max(query - 1, 0)] = 1
        pattern[0, 1, query, query - 4 if query >= 5 else 0] = 1
        pattern[0, 2, query, query - 5 if query >= 5 else 0] = 1
    sums, counted = pattern_scores(pattern, tokens)
    means = dict(zip(SCORES, (sums / counted[:, None]).tolist(), strict=True))
    assert means["previous_token"][0] == 1 and means["induction"] == [0, 1, 0] and means["duplicate_token"] == [0, 0, 1]
    assert means["entropy"] == [0, 0, 0]
