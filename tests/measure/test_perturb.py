from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from jaxtyping import TypeCheckError

from mechmem.data.assets import bundled_paragraphs
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.decode import edit_distances
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.replacements import allowed_ids, replacements
from mechmem.measure.worst_pairs import compare_pairs, worst_perturbations
from mechmem.model.load import load_model
from mechmem.stats.bootstrap import cluster_bootstrap

PAIRS = Path(__file__).parents[3] / "shared/data/pile-gpt-neo-125m"
PREFIX, LENGTH = 13, 23


class Tokens:
    """As much of a tokenizer as is asked here."""

    padding_side = "right"

    def __init__(self, count: int, special: list[int], end: int | None):
        self.count, self.all_special_ids, self.eos_token_id = count, special, end

    def __len__(self) -> int:
        return self.count


def greedy(model, prefix: torch.Tensor, count: int) -> torch.Tensor:
    """Token by token, the whole text anew each time."""
    text = prefix[None]
    with torch.no_grad():
        for _ in range(count):
            text = torch.cat([text, model(text, padding_side="right")[:, -1].argmax(-1, keepdim=True)], 1)
    return text[0, len(prefix) :]


def slow_nll(model, row: torch.Tensor, prefix_len: int) -> torch.Tensor:
    with torch.no_grad():
        logits = model(row[None], padding_side="right")[0].double().log_softmax(-1)
    return -logits[prefix_len - 1 : -1].gather(-1, row[prefix_len:, None])[:, 0]


def leading(said: torch.Tensor, true: torch.Tensor) -> int:
    wrong = (said != true).nonzero()
    return len(true) if len(wrong) == 0 else int(wrong[0])


@pytest.fixture(scope="module")
def memorized(tiny_model) -> Paragraphs:
    """Five random prefixes with the model's own text, one of them spoilt; two of one cluster."""
    prefix = torch.randint(1, 61, (5, PREFIX), generator=torch.Generator().manual_seed(3))
    tokens = torch.stack([torch.cat([row, greedy(tiny_model, row, LENGTH - PREFIX)]) for row in prefix])
    tokens[4, PREFIX + 4] = (tokens[4, PREFIX + 4] + 1) % 61
    return Paragraphs(tokens, PREFIX).with_columns(cluster=np.array([0, 0, 1, 2, 3]))


@pytest.fixture(scope="module")
def perturbed(tiny_model, memorized) -> xr.Dataset:
    return perturb_prefix(tiny_model, memorized, samples=2, edit_distance=True, seed=1, batch_size=2)


@pytest.mark.parametrize("scope", ["token", "rest"])
def test_every_number_is_that_of_replacing_and_decoding_one_by_one(tiny_model, memorized, scope):
    result = perturb_prefix(tiny_model, memorized, scope=scope, samples=2, edit_distance=True, seed=1, batch_size=2)
    assert result.em.dims == ("paragraph", "pos") and result.sizes["pos"] == PREFIX
    rise, gained, distances = np.zeros((PREFIX, 10)), np.zeros((PREFIX, 10)), np.zeros((5, PREFIX))
    for row in range(5):
        text = memorized.tokens[row]
        true = text[PREFIX:]
        clean_nll = slow_nll(tiny_model, text, PREFIX)
        clean_match = torch.stack([greedy(tiny_model, text[:stop], 1)[0] for stop in range(PREFIX, LENGTH)])
        assert int(result.clean_em[row]) == leading(greedy(tiny_model, text[:PREFIX], 10), true) == [10, 4][row == 4]
        for place in range(PREFIX):
            for sample in range(2):
                here = {"paragraph": row, "sample": sample, "pos": place}
                changed = text.clone()
                stop = place + 1 if scope == "token" else PREFIX
                drawn = result.replacement.isel(paragraph=row, sample=sample).values
                changed[place:stop] = torch.from_numpy(drawn[place:stop])
                said = greedy(tiny_model, changed[:PREFIX], 10)
                assert int(result.sample_em.isel(here)) == leading(said, true)
                nll = slow_nll(tiny_model, changed, PREFIX)
                np.testing.assert_allclose(result.sample_nll.isel(here), nll.mean(), rtol=1e-4)
                argmax = torch.stack([greedy(tiny_model, changed[:end], 1)[0] for end in range(PREFIX, LENGTH)])
                different = np.flatnonzero((argmax != clean_match).numpy())
                assert int(result.impact.isel(here)) == (PREFIX + different[0] if len(different) else -1)
                rise[place] += (nll - clean_nll).numpy()
                gained[place] += (argmax == true).long().numpy() - (clean_match == true).long().numpy()
                distances[row, place] += edit_distances(said[None].numpy(), true[None].numpy())[0] / 2
    np.testing.assert_allclose(result.nll_profile, rise / 10, atol=2e-4)
    np.testing.assert_allclose(result.match_profile, gained / 10, atol=1e-9)
    np.testing.assert_allclose(result.edit_distance, distances, atol=1e-9)
    np.testing.assert_allclose(result.em_change, result.sample_em.mean("sample") - result.clean_em)
    np.testing.assert_allclose(result.nll_change, result.sample_nll.mean("sample") - result.clean_nll)
    assert float(result.em_change.min()) < 0 and (result.em_change.isel(pos=0) != 0).any()
    assert result.paragraph.values.tolist() == memorized.ids.tolist()


def test_the_interval_is_that_of_the_clusters(perturbed, memorized):
    for place in (0, 7):
        within = (-memorized.continuation_len, memorized.continuation_len)
        low, high = cluster_bootstrap(perturbed.em_change.values[:, place], memorized.column("cluster"), within=within)
        found = float(perturbed.em_change_low[place]), float(perturbed.em_change_high[place])
        assert found == pytest.approx((low, high), abs=1e-12)
        assert low <= float(perturbed.em_change_mean[place]) <= high


def test_the_whole_prefix_is_the_rest_from_position_0(tiny_model, memorized):
    whole = perturb_prefix(tiny_model, memorized, scope="prefix", seed=4)
    rest = perturb_prefix(tiny_model, memorized, scope="rest", seed=4)
    assert whole.pos.values.tolist() == [0]
    for name in ("em", "nll", "impact"):
        np.testing.assert_allclose(whole[name].isel(pos=0), rest[name].isel(pos=0), rtol=1e-5)


def test_neither_batches_nor_hooks_nor_the_way_of_running_change_a_number(tiny_model, memorized, perturbed):
    names = ["sample_em", "sample_nll", "impact", "edit_distance", "replacement", "nll_profile", "match_profile"]
    one = perturb_prefix(tiny_model, memorized, samples=2, edit_distance=True, seed=1, batch_size=5)
    calls = []
    with tiny_model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: calls.append(hook.name) or value)]):
        whole = perturb_prefix(tiny_model, memorized, samples=2, edit_distance=True, seed=1, batch_size=2)
    assert calls
    for other in (one, whole):
        xr.testing.assert_allclose(other[names], perturbed[names], rtol=1e-4, atol=1e-4)
    with tiny_model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: value * 0)]):  # noqa: ARG005
        without = perturb_prefix(tiny_model, memorized, samples=2, seed=1)
    assert not np.allclose(without.sample_nll, perturbed.sample_nll, atol=0.1)


def test_a_replacement_equal_to_the_original_would_change_nothing(tiny_model, memorized, monkeypatch):
    same = memorized.prefix.numpy()[None]
    monkeypatch.setattr("mechmem.measure.perturb.replacements", lambda *_, **__: same)
    result = perturb_prefix(tiny_model, memorized)
    assert float(abs(result.em_change).max()) == 0 and int(result.impact.max()) == -1
    assert float(abs(result.nll_change).max()) < 1e-5


def test_a_random_token_is_any_but_the_original_and_the_special_ones(small_model):
    model = small_model(d_vocab=7)
    model.tokenizer = Tokens(6, [2, 6], 2)
    assert allowed_ids(model).tolist() == [0, 1, 3, 4, 5]
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 6]] * 3)
    drawn = replacements(model, Paragraphs(tokens, 7), "random", samples=400, seed=0)
    for place in range(7):
        found, counts = np.unique(drawn[:, :, place], return_counts=True)
        assert found.tolist() == [token for token in (0, 1, 3, 4, 5) if token != place]
        assert counts.min() > 0.75 * 1200 / len(found), "not uniform"
    again = replacements(model, Paragraphs(tokens, 7), "random", samples=400, seed=0)
    assert np.array_equal(drawn, again)
    assert not np.array_equal(drawn, replacements(model, Paragraphs(tokens, 7), "random", samples=400, seed=1))


def test_the_runner_up_is_the_best_other_token_after_the_true_ones(tiny_model, memorized, monkeypatch):
    monkeypatch.setattr(tiny_model, "tokenizer", Tokens(61, [0, 5], 0))
    found = replacements(tiny_model, memorized, "runner-up")
    assert found.shape == (1, 5, PREFIX)
    for row in range(5):
        for place in range(PREFIX):
            before = memorized.tokens[row, :place] if place else torch.tensor([0])
            logits = tiny_model(before[None], padding_side="right")[0, -1].detach().clone()
            logits[[0, 5, int(memorized.tokens[row, place])]] = -torch.inf
            assert found[0, row, place] == int(logits.argmax())


@pytest.mark.parametrize("before", [None, 30, "all"])
def test_on_the_bundled_model_a_replaced_token_costs_memorized_text(tmp_path, before):
    model, known = load_model("bundled"), bundled_paragraphs()
    assert model.tokenizer is not None
    paras = known.select(np.argsort(-known.column("count"), kind="stable")[:300:50])
    result = perturb_prefix(model, paras, seed=2)
    assert int(result.clean_em.min()) == 50 and -50 < float(result.em_change.mean()) < 0
    assert not np.isin(result.replacement, [0, *model.tokenizer.all_special_ids]).any()
    clean, corrupt = worst_perturbations(model, paras, result, before=before)
    stop = {None: 40, 30: 30, "all": 50}[before]
    assert clean.column("perturbed_pos").max() < stop
    assert clean.ids.tolist() == corrupt.ids.tolist() and set(clean.ids) <= set(paras.ids)
    assert paras.table is not None and all(corrupt.has(name) for name in paras.table.column_names)
    assert corrupt.tokenizer == paras.tokenizer is not None
    for row in range(len(clean)):
        source, impact = int(clean.column("perturbed_pos")[row]), int(clean.column("impact_pos")[row])
        changed = (clean.tokens[row] != corrupt.tokens[row]).nonzero()[:, 0].tolist()
        assert [place for place in changed if place < 50] == [source] and changed[1] == impact
        assert impact == 50 + 50 + clean.column("em_change")[row]
        here = result.sel(paragraph=clean.ids[row]).isel(sample=0)
        assert int(here.sample_em.isel(pos=source)) == int(here.sample_em[:stop].min())
        assert torch.equal(greedy(model, corrupt.tokens[row, :50], 50), corrupt.tokens[row, 50:])
        assert corrupt.column("text")[row] == model.tokenizer.decode(corrupt.tokens[row])
    clean.save(tmp_path / "clean.parquet")
    assert (
        Paragraphs.load(tmp_path / "clean.parquet").column("impact_pos").tolist() == clean.column("impact_pos").tolist()
    )


def test_some_of_the_paragraphs_in_another_order_give_the_same_pairs(tiny_model, memorized, perturbed):
    clean, corrupt = worst_perturbations(tiny_model, memorized, perturbed)
    some = memorized.select([3, 0, 2])
    less, changed = worst_perturbations(tiny_model, some, perturbed)
    assert less.ids.tolist() == [identity for identity in some.ids if identity in clean.ids]
    rows = [clean.ids.tolist().index(identity) for identity in less.ids]
    assert torch.equal(changed.tokens, corrupt.tokens[rows]) and len(rows) >= 2


def test_old_argument_names_are_taken_with_a_warning(tiny_model, memorized, perturbed):
    pairs = worst_perturbations(tiny_model, memorized, perturbed)
    with pytest.warns(DeprecationWarning, match="drop is called perturbation now"):
        old = worst_perturbations(tiny_model, memorized, drop=perturbed)  # pyright: ignore[reportCallIssue]
    assert torch.equal(old[1].tokens, pairs[1].tokens)


def test_pairs_of_the_study_are_read_as_they_are():
    if not PAIRS.is_dir():
        pytest.skip("the study's paragraphs are not at hand")
    clean, corrupt = (Paragraphs.load(PAIRS / f"pairs_{name}.npy") for name in ("memorized", "perturbed"))
    source, impact = compare_pairs(clean, corrupt)
    for row, (first, second) in enumerate(zip(clean.tokens.tolist(), corrupt.tokens.tolist(), strict=True)):
        places = [place for place in range(100) if first[place] != second[place]]
        assert places[0] == source[row] < 50 <= places[1] == impact[row]


def test_pairs_that_are_none_are_refused(memorized):
    two = memorized.tokens.clone()
    two[1, :2] = (two[1, :2] + 1) % 61
    with pytest.raises(InputError, match="pair 0 with 0 prefix tokens that differ"):
        compare_pairs(memorized, memorized)
    one = memorized.tokens.clone()
    one[:, 3] = (one[:, 3] + 1) % 61
    source, impact = compare_pairs(memorized, Paragraphs(one, PREFIX))
    assert source.tolist() == [3] * 5 and impact.tolist() == [-1] * 5
    one[1] = two[1]
    with pytest.raises(InputError, match="pair 1 with 2 prefix tokens that differ"):
        compare_pairs(memorized, Paragraphs(one, PREFIX))
    with pytest.raises(InputError, match="need the same shape and prefix of both"):
        compare_pairs(memorized, Paragraphs(one, PREFIX + 1))


def test_what_cannot_be_perturbed_is_refused(tiny_model, small_model, memorized, perturbed):
    refused: list[tuple[dict[str, Any], str]] = [
        ({"samples": 0}, "got 0 as samples"),
        ({"samples": 2, "replacement": "runner-up"}, "2 samples of 'runner-up'"),
        ({"batch_size": 0}, "got 0 as batch_size"),
    ]
    for arguments, sentence in refused:
        with pytest.raises(InputError, match=sentence):
            perturb_prefix(tiny_model, memorized, **arguments)
    with pytest.raises(InputError, match="got the token id 61"):
        perturb_prefix(tiny_model, Paragraphs(torch.full((2, 9), 61), 5))
    with pytest.raises(InputError, match="need at least 2"):
        allowed_ids(small_model(d_vocab=1))
    stranger = Paragraphs(torch.randint(1, 61, (2, LENGTH)), PREFIX)
    with pytest.raises(InputError, match="2 of 2 paragraphs are not in this result"):
        worst_perturbations(tiny_model, stranger, perturbed)
    with pytest.raises(InputError, match="perturbations of 13 prefix tokens for paragraphs with a prefix of 12"):
        worst_perturbations(tiny_model, Paragraphs(memorized.tokens, PREFIX - 1), perturbed)
    with pytest.raises((InputError, TypeCheckError)):
        perturb_prefix(tiny_model, memorized, scope="word")  # pyright: ignore[reportArgumentType]
    with pytest.raises((InputError, TypeCheckError)):
        perturb_prefix(tiny_model, memorized, replacement="best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="perturbation of scope 'rest'; need 'token'"):
        worst_perturbations(tiny_model, memorized, perturb_prefix(tiny_model, memorized, scope="rest"))
    for before in (0, 14):
        with pytest.raises(InputError, match=rf"got (before=)?{before!r}( as before)?; need"):
            worst_perturbations(tiny_model, memorized, perturbed, before=before)


def test_results_go_through_netcdf_and_say_what_they_mean(perturbed, tmp_path):
    perturbed.to_netcdf(tmp_path / "p.nc", engine="h5netcdf")
    read = xr.load_dataset(tmp_path / "p.nc", engine="h5netcdf")
    xr.testing.assert_identical(read, perturbed)
    for name in ("em", "nll", "em_change", "nll_change"):
        assert read[name].attrs["units"] and read[name].attrs["higher"]
