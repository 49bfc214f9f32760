import datasets
import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.stats import covariates
from mechmem.stats.covariates import prefix_nll, rarity, repeated_run, with_covariates


def slow_prefix_nll(model, paras: Paragraphs) -> list[float]:
    """One paragraph, one token at a time, from the logits of every position of the whole row."""
    result = []
    for row in paras.tokens:
        probabilities = model(row[None])[0].detach().double().softmax(-1)
        result.append(np.mean([-float(probabilities[p - 1, row[p]].log()) for p in range(1, paras.prefix_len)]))
    return result


@pytest.mark.parametrize("logits", [1, 61 * 4 * 5, 2**24], ids=["one column", "five columns", "all columns"])
def test_prefix_nll_is_that_of_the_slow_obvious_loop(tiny_model, tiny_paragraphs, monkeypatch, logits):
    monkeypatch.setattr(covariates, "_LOGITS", logits)
    seen: list[tuple[int, int]] = []
    found = prefix_nll(tiny_model, tiny_paragraphs, batch_size=4, progress=lambda *done: seen.append(done))
    np.testing.assert_allclose(found, slow_prefix_nll(tiny_model, tiny_paragraphs), rtol=1e-5)
    assert seen == [(4, 11), (8, 11), (11, 11)]


def test_no_more_logits_are_held_than_stated(tiny_model, tiny_paragraphs, monkeypatch):
    monkeypatch.setattr(covariates, "_LOGITS", 61 * 4 * 5)
    sizes = []

    def note(value: torch.Tensor, **_: object) -> None:
        sizes.append(value.shape[:2])

    with tiny_model.hooks(fwd_hooks=[("ln_final.hook_normalized", note)]):
        prefix_nll(tiny_model, tiny_paragraphs, batch_size=4)
    assert [tuple(size) for size in sizes[:3]] == [(4, 5), (4, 5), (4, 2)]


def test_prefix_nll_of_models_without_a_final_norm_and_with_a_soft_cap(small_model):
    paras = Paragraphs(torch.randint(0, 17, (3, 12), generator=torch.Generator().manual_seed(0)), 7)
    for model in (small_model(normalization_type=None), small_model(output_logits_soft_cap=0.1)):
        np.testing.assert_allclose(prefix_nll(model, paras), slow_prefix_nll(model, paras), rtol=1e-5)


def test_the_continuation_does_not_matter_to_the_prefix(tiny_model, tiny_paragraphs):
    counts = np.arange(61)
    other = Paragraphs(torch.cat([tiny_paragraphs.prefix, tiny_paragraphs.continuation.flip(1)], 1), 13)
    np.testing.assert_array_equal(prefix_nll(tiny_model, tiny_paragraphs), prefix_nll(tiny_model, other))
    np.testing.assert_array_equal(rarity(tiny_paragraphs, counts), rarity(other, counts))


def test_rarity_is_the_smoothed_unigram_surprise():
    paras = Paragraphs(torch.tensor([[0, 0, 1, 2], [2, 2, 2, 0], [0, 1, 2, 1]]), 3)
    counts = np.array([6, 1, 0, 0])  # Total 7 and four ids: probabilities 7/11, 2/11, 1/11.
    expected = np.array([2 * np.log(11 / 7) + np.log(11 / 2), 3 * np.log(11), np.log(11**3 / 14)]) / 3
    np.testing.assert_allclose(rarity(paras, counts), expected)
    np.testing.assert_allclose(rarity(paras, torch.as_tensor(counts)), expected)
    assert rarity(paras, counts)[1] == rarity(paras, counts).max()


def slow_repeated_run(row: list[int]) -> int:
    for length in range(len(row) - 1, 0, -1):
        runs = [tuple(row[start : start + length]) for start in range(len(row) - length + 1)]
        if len(set(runs)) < len(runs):
            return length
    return 0


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 8, 1000])
def test_repeated_run_is_that_of_comparing_all_runs(vocabulary, monkeypatch):
    monkeypatch.setattr(covariates, "_ROWS", 7)
    rows = np.random.default_rng(vocabulary).integers(0, vocabulary, size=(40, 17))
    rows[3, 9:16] = rows[3, 1:8]
    assert repeated_run(rows).tolist() == [slow_repeated_run(row) for row in rows.tolist()]


def test_repeated_runs_by_hand():
    rows = np.array([[5, 5, 5, 5, 1, 2], [1, 2, 3, 1, 2, 4], [1, 2, 1, 2, 1, 2], [1, 2, 3, 4, 5, 6]])
    assert repeated_run(rows).tolist() == [3, 2, 4, 0]
    assert repeated_run(np.zeros((0, 6), dtype=np.int64)).tolist() == []


def test_columns_are_added_and_the_others_stay(tiny_model, tiny_paragraphs):
    counts, table = np.arange(61), datasets.Dataset.from_dict({"id": list(range(11)), "rarity": [9.0] * 11})
    paras = Paragraphs(tiny_paragraphs.tokens, 13, table)
    both = with_covariates(paras, model=tiny_model, unigram_counts=counts, batch_size=4)
    np.testing.assert_array_equal(both.column("prefix_nll"), prefix_nll(tiny_model, paras, batch_size=4))
    np.testing.assert_array_equal(both.column("rarity"), rarity(paras, counts))
    np.testing.assert_array_equal(both.column("repeated_run"), repeated_run(paras.tokens.numpy()))
    assert both.column("id").tolist() == list(range(11)) and both.prefix_len == 13
    assert set(covariates.UNITS) | {"id"} == set(both.table.column_names if both.table else [])
    alone = with_covariates(tiny_paragraphs, unigram_counts=counts)
    assert alone.table is not None and set(alone.table.column_names) == {"repeated_run", "rarity"}


def test_bad_input_is_refused(tiny_model, tiny_paragraphs):
    with pytest.raises(InputError, match="got neither a model nor unigram counts.*model= .*unigram_counts= "):
        with_covariates(tiny_paragraphs)
    with pytest.raises(InputError, match="got prefix_len 1"):
        prefix_nll(tiny_model, Paragraphs(tiny_paragraphs.tokens, 1))
    with pytest.raises(InputError, match="got the token id 60 and 60 counts"):
        rarity(Paragraphs(torch.full((2, 20), 60), 5), np.ones(60))
    for counts, sentence in (
        (np.full(61, -1), "negative"),
        (np.full(61, np.nan), "not finite"),
        ([0] * 61, "all zero"),
    ):
        with pytest.raises(InputError, match=sentence):
            rarity(tiny_paragraphs, counts)
    with pytest.raises(InputError, match="got 0 paragraphs"):
        prefix_nll(tiny_model, tiny_paragraphs.select([]))
