import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import kendalltau, spearmanr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.heads import head_patterns, rare_token_attention
from mechmem.localize.rarity import kendall, rarest_weight, rarity_counts, rarity_weights, shuffled_p_value, spearman
from mechmem.truth.planted import planted as real_planted

PREFIX = 20
PLANTED = (1, 2)


@pytest.fixture(scope="module")
def paras() -> Paragraphs:
    """Forty paragraphs of 24 tokens, frequent ids often and rare ids seldom."""
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, 62)
    return Paragraphs(torch.from_numpy(rng.choice(61, size=(40, 24), p=chances / chances.sum())), PREFIX)


@pytest.fixture(scope="module")
def counts() -> torch.Tensor:
    return torch.from_numpy((1e6 / np.arange(1, 62)).astype(np.int64))


@pytest.fixture(scope="module")
def planted(tiny_model, counts):
    """The tiny model, but head 2 of layer 1 attends in proportion to rarity, with noise."""
    model = copy.deepcopy(tiny_model)
    tokens = torch.zeros(0, dtype=torch.long)

    def note(activation, hook):  # noqa: ARG001
        nonlocal tokens
        tokens = activation

    def attend(pattern, hook):  # noqa: ARG001
        pattern = pattern.clone()
        noise = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1))
        rarity = (0.5 + noise) / counts[tokens].float()
        visible = torch.tril(rarity[:, None, :].expand(-1, tokens.shape[1], -1))
        pattern[:, PLANTED[1]] = visible / visible.sum(-1, keepdim=True)
        return pattern

    model.embed.register_forward_pre_hook(lambda _, arguments: note(arguments[0], None))
    model.add_hook(f"blocks.{PLANTED[0]}.attn.hook_pattern", attend)
    return model


def test_the_planted_head_is_found_and_only_it(planted, paras, counts):
    result = rare_token_attention(planted, paras, counts, permutations=400)
    found = result.sel(layer=PLANTED[0], head=PLANTED[1])
    assert float(found.p_value) == pytest.approx(1 / 401)
    assert float(found.excess) > 0.15 and float(found.mass_over_uniform) > 0.15
    assert float(found.spearman) < -0.7 and float(found.kendall) < -0.6
    assert result.excess.argmax(...)["layer"] == 1 and result.excess.argmax(...)["head"] == 2
    elsewhere = result.p_value.where(result.p_value.layer != PLANTED[0])
    # Layers below and above do not attend to rarity: random weights.
    assert int((elsewhere < 0.05).sum()) <= 1


def test_the_null_is_not(tiny_model, planted, paras, counts):
    """Counts given to other tokens: corrected over heads, at most one run in twenty may have any p-value below 0.05."""
    runs = []
    for seed in range(40):
        shuffled = counts[torch.randperm(61, generator=torch.Generator().manual_seed(seed))]
        result = rare_token_attention(tiny_model, paras, shuffled, permutations=200, seed=seed)
        runs.append(float(result.p_value.min()))
    assert sum(p < 0.05 for p in runs) <= 6
    # The same test is not blind: with the true counts the planted head is far out.
    assert float(rare_token_attention(planted, paras, counts, permutations=200).p_value.min()) < 0.01


def scipys(test: Callable[..., Any], attention: np.ndarray, frequency: np.ndarray) -> float:
    """SciPy's coefficient, one paragraph at a time; mean over paragraphs [paragraph, key_pos]."""
    return float(np.mean([test(a, f).statistic for a, f in zip(attention, frequency, strict=True)]))


def slow_expectation(attention: np.ndarray, frequency: np.ndarray, need: int) -> tuple[float, float]:
    """Excess and raw mass, one paragraph and one other paragraph at a time; no tie at the border."""
    excess, mass = [], []
    for paragraph, row in enumerate(attention):
        rarest = sorted(range(len(row)), key=lambda k, p=paragraph: frequency[p, k])[:need]
        own = sum(row[k] for k in rarest)
        others = [sum(other[k] for k in rarest) for q, other in enumerate(attention) if q != paragraph]
        excess.append(own - np.mean(others))
        mass.append(own)
    return float(np.mean(excess)), float(np.mean(mass))


def test_every_number_equals_a_slow_oracle(tiny_model):
    generator = torch.Generator().manual_seed(2)
    # All tokens of a prefix differ, so no frequencies are tied at the border.
    tokens = torch.stack([torch.randperm(61, generator=generator)[:24] for _ in range(7)])
    counts = torch.randperm(61, generator=generator).double()
    result = rare_token_attention(tiny_model, Paragraphs(tokens, PREFIX), counts, permutations=9, batch_size=3)
    _, cache = tiny_model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    frequency = counts[tokens[:, :PREFIX]].numpy()
    np.testing.assert_allclose(result.tenth_count, np.median(np.sort(frequency).reshape(7, 10, 2), axis=(0, 2)))
    for layer in range(4):
        # Query 20 is the first continuation token; keys are 0..19.
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, :, PREFIX, :PREFIX].double().numpy()
        for head in range(3):
            ours = result.sel(layer=layer, head=head)
            excess, mass = slow_expectation(pattern[:, head], frequency, need=2)
            assert float(ours.excess) == pytest.approx(excess, abs=1e-6)
            assert float(ours.mass_over_uniform) == pytest.approx(mass - 2 / 21, abs=1e-6)
            # Tenths of 20 keys are two keys each; the first one's difference is the excess.
            order, rows = np.argsort(frequency, axis=1), pattern[:, head]
            tenths = np.take_along_axis(rows, order, 1).reshape(7, 10, 2).sum(2).mean(0)
            np.testing.assert_allclose(ours.tenth_mass, tenths, atol=1e-6)
            others = [[rows[np.arange(7) != p][:, order[p]].reshape(6, 10, 2).sum(2).mean(0)] for p in range(7)]
            np.testing.assert_allclose(ours.tenth_expected, np.mean(others, axis=(0, 1)), atol=1e-6)
            assert float((ours.tenth_mass - ours.tenth_expected)[0]) == pytest.approx(excess, abs=1e-6)
            assert float(ours.spearman) == pytest.approx(scipys(spearmanr, pattern[:, head], frequency))
            assert float(ours.kendall) == pytest.approx(scipys(kendalltau, pattern[:, head], frequency))


def test_rank_correlations_with_ties_are_scipys_and_constants_say_nothing():
    rng = np.random.default_rng(0)
    attention = rng.integers(0, 5, size=(6, 3, 17)).astype(float)
    frequency = rng.integers(0, 4, size=(6, 17)).astype(float)
    for ours, theirs in ((spearman, spearmanr), (kendall, kendalltau)):
        expected = [scipys(theirs, attention[:, head], frequency) for head in range(3)]
        np.testing.assert_allclose(ours(attention, frequency), expected)
        spoilt, still = attention.copy(), frequency.copy()
        spoilt[:, 1], still[0] = 0.3, 7.0
        result = ours(spoilt, still)
        assert np.isnan(result[1]) and result[0] == pytest.approx(scipys(theirs, attention[1:, 0], frequency[1:]))


def test_rarest_keys_share_what_is_left_at_the_border():
    frequency = np.array([[5.0, 1, 3, 3, 3, 9, 9, 9, 9, 9], [1.0] * 10, list(range(10, 0, -1))])
    weight = rarest_weight(frequency, 0.3)
    np.testing.assert_allclose(weight[0], [0, 1, 2 / 3, 2 / 3, 2 / 3, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(weight[1], 0.3)
    np.testing.assert_allclose(weight[2], [0] * 7 + [1] * 3)
    np.testing.assert_allclose(rarest_weight(frequency, 0.01).sum(1), 1)


def test_tenths_share_every_key_whatever_is_tied():
    frequency = np.array([[5.0, 1, 3, 3, 3, 9, 9, 9, 9, 9, 9, 9], [1.0] * 12, list(range(12, 0, -1))])
    weights = rarity_weights(frequency, 10)
    np.testing.assert_allclose(weights.sum(0), 1)
    np.testing.assert_allclose(weights.sum(2), np.diff(np.round(np.arange(11) * 1.2))[:, None].repeat(3, 1))
    np.testing.assert_allclose(weights[:, 1], weights[:, 1, :1].repeat(12, 1))
    np.testing.assert_allclose(weights[:, 2].argmax(0)[::-1], [0, 1, 2, 2, 3, 4, 5, 6, 7, 7, 8, 9])
    assert (weights >= 0).all()
    # Of three keys, parts of whole keys are empty where none ends.
    few = rarity_weights(np.array([[3.0, 1, 2]]), 10)
    np.testing.assert_allclose(few.sum(0), 1)
    assert np.isnan(rarity_counts(np.array([[3.0, 1, 2]]), 10)).sum() == 7


def test_a_position_that_every_paragraph_attends_to_is_no_excess(tiny_model, counts):
    """A head that looks at position 0 whatever stands there, in text whose position 0 is always rare."""
    model = copy.deepcopy(tiny_model)

    def look_at_the_start(pattern, hook):  # noqa: ARG001
        pattern = torch.zeros_like(pattern)
        pattern[..., 0] = 1.0
        return pattern

    model.add_hook("blocks.0.attn.hook_pattern", look_at_the_start)
    tokens = torch.randint(0, 5, (12, 24), generator=torch.Generator().manual_seed(3))
    tokens[:, 0] = 60
    result = rare_token_attention(model, Paragraphs(tokens, PREFIX), counts, permutations=50).sel(layer=0)
    np.testing.assert_allclose(result.mass_over_uniform, 1 - 2 / 21, atol=1e-6)
    np.testing.assert_allclose(result.excess, 0, atol=1e-6)
    assert float(result.p_value.min()) > 0.05


def test_p_values_are_corrected_over_heads_and_types_are_the_unit():
    """Two hundred heads, each with likings for types that have nothing to do with counts, in every paragraph alike."""
    smallest = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, 40, size=(8, 10))
        likes = rng.normal(size=(200, 40)) * rng.lognormal(size=(200, 1))
        matched = np.moveaxis(likes[:, tokens], 0, 1)
        counts = rng.permutation(40).astype(float)
        matched = matched - matched.mean(0)
        values = shuffled_p_value(matched, tokens, counts, fraction=0.2, permutations=200, seed=seed)
        smallest.append(values.min())
    assert sum(p < 0.05 for p in smallest) <= 5
    # Not too careful either: the smallest of two hundred must roam over all of 0 to 1.
    assert np.median(smallest) < 0.75


def test_where_rare_types_stand_in_few_places_the_level_is_at_most_nominal():
    """Tokens drawn by counts that fall as in text: likings by chance are hardly ever found, one for rare tokens is."""
    chance, real = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        counts = np.ceil(20_000 / np.arange(1, 301))
        tokens = rng.choice(300, size=(24, 20), p=counts / counts.sum())
        likes = rng.normal(size=(24, 300))
        both = [likes, np.concatenate([likes[:1] - 0.5 * np.log(counts), likes[1:]])]
        for each, found in zip(both, (chance, real), strict=True):
            attention = np.exp(each[:, tokens]).swapaxes(0, 1)
            attention /= attention.sum(-1, keepdims=True)
            matched = attention - attention.mean(0)
            values = shuffled_p_value(matched, tokens, counts, fraction=0.1, permutations=99, seed=seed)
            found.append(values.min() if found is chance else values[0])
    assert sum(p <= 0.05 for p in chance) <= 5 and sum(p <= 0.05 for p in real) >= 20


def test_progress_seed_and_netcdf(tiny_model, paras, counts, tmp_path):
    seen: list[tuple[int, int]] = []
    one, two, three = (
        rare_token_attention(
            tiny_model, paras, counts, permutations=50, seed=s, batch_size=17, progress=lambda *d: seen.append(d)
        )
        for s in (0, 0, 1)
    )
    xr.testing.assert_identical(one, two)
    assert not np.array_equal(one.p_value, three.p_value)
    assert seen[:3] == [(17, 40), (34, 40), (40, 40)]
    one.to_netcdf(tmp_path / "rare.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "rare.nc", engine="h5netcdf"), one)
    assert one.attrs["query_pos"] == PREFIX and one.excess.attrs["higher"] == "attends more to rare tokens"


def test_patterns_are_those_of_the_heads_asked_for(tiny_model, paras):
    tokens = paras.tokens[:5]
    patterns = head_patterns(tiny_model, tokens, [(2, 0), (0, 1), (2, 2)])
    assert patterns.shape == (5, 3, 24, 24)
    _, cache = tiny_model.run_with_cache(tokens)
    for slot, (layer, head) in enumerate([(2, 0), (0, 1), (2, 2)]):
        assert torch.equal(patterns[:, slot], cache[f"blocks.{layer}.attn.hook_pattern"][:, head])
    assert not patterns.requires_grad
    with pytest.raises(InputError, match=r"got heads \[\(0, 3\)\]; need .*layer below 4 and head below 3"):
        head_patterns(tiny_model, tokens, [(0, 1), (0, 3)])
    with pytest.raises(InputError, match=r"got heads \[\]; need"):
        head_patterns(tiny_model, tokens, [])


def test_counts_are_any_array(tiny_model, paras, counts):
    expected = rare_token_attention(tiny_model, paras, counts, permutations=5)
    for kind in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.double, lambda c: xr.DataArray(c, dims="token")):
        xr.testing.assert_identical(rare_token_attention(tiny_model, paras, kind(counts), permutations=5), expected)


def test_what_cannot_be_used_is_refused(tiny_model, paras, counts):
    with pytest.raises(InputError, match=r"got counts of shape \[60\] for a vocabulary of 61"):
        rare_token_attention(tiny_model, paras, counts[:60])
    with pytest.raises(InputError, match="got 1 paragraph; need at least 2"):
        rare_token_attention(tiny_model, paras.select(np.array([0])), counts)
    with pytest.raises(InputError, match="got a count that is negative"):
        rare_token_attention(tiny_model, paras, -counts)


def test_a_bfloat16_forward_says_nearly_the_same_and_names_the_same_head():
    truth = real_planted()
    both = Paragraphs(torch.cat([truth.memorized.tokens, truth.other.tokens]), truth.memorized.prefix_len)
    exact, quick = (
        rare_token_attention(truth.model, both, truth.unigram_counts, permutations=50, dtype=dtype)
        for dtype in (None, torch.bfloat16)
    )
    assert not np.array_equal(exact.excess, quick.excess)
    np.testing.assert_allclose(quick.excess, exact.excess, atol=0.02)
    for result in (exact, quick):
        named = result.p_value.stack(head_of=("layer", "head"))
        # The silent decoy attends alike: circuits and ablation tell them apart.
        assert set(named.head_of.values[named.values < 0.05]) == {truth.head, truth.silent}
