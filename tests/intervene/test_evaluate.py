import copy
import functools
import math
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.baseline import Baseline
from mechmem.intervene.cost_sets import cost_sets
from mechmem.intervene.evaluate import evaluate, paragraph_costs
from mechmem.intervene.noise import add_noise
from mechmem.localize.gradients import weight_gradients
from mechmem.measure.scores import kl, score
from mechmem.model.hooks import with_hooks
from mechmem.model.lean.model import LeanModel
from mechmem.stats.bootstrap import cluster_bootstrap
from mechmem.weights.masks import Mask

# Of nine tokens; the control in tests/stats/test_ranges.py has intervals that reach beyond.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("em", "edit_distance"), (0, 9)),
    **dict.fromkeys(("nll", "kl"), (0, math.inf)),
    **dict.fromkeys(("match_fraction", "exact_fraction", "changed_top1"), (0, 1)),
    "em_change": (-9, 9),
}
MEANS = {"em": "em", "match_fraction": "match_fraction", "edit_distance": "edit_distance", "exact_fraction": "exact"}


@pytest.fixture(scope="module")
def sets(tiny_model):
    """Six paragraphs that the model says by itself, in three clusters; one with another last token; random ones."""
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (14, 17), generator=torch.Generator().manual_seed(1))
    for pos in range(8, 17):
        with torch.no_grad():
            tokens[:6, pos] = tiny_model(tokens[:6, :pos])[:, -1].argmax(-1)
    tokens[6] = torch.cat([tokens[0, :-1], (tokens[0, -1:] + 1) % tiny_model.cfg.d_vocab])
    table = datasets.Dataset.from_dict({"cluster": [4, 4, 4, 9, 9, 2]})
    return {"targets": Paragraphs(tokens[:6], 8, table), "other": Paragraphs(tokens[6:], 8)}


@pytest.fixture(scope="module")
def edited(tiny_model, sets):
    mask = Mask.top(weight_gradients(tiny_model, sets["targets"]), fraction=0.01)
    return add_noise(tiny_model, mask, scale=0.6, seed=0)


@functools.cache
def distance(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    """Levenshtein, as its definition says."""
    if not one or not two:
        return len(one) + len(two)
    skip = distance(one[1:], two) + 1, distance(one, two[1:]) + 1
    return min(*skip, distance(one[1:], two[1:]) + (one[0] != two[0]))


def slow_costs(model, paras: Paragraphs, row: int) -> tuple[dict[str, float], torch.Tensor]:
    """One paragraph of one model: whole forwards of growing texts, numbers one at a time."""
    with torch.no_grad():
        tokens, length, start = paras.tokens[row].tolist(), paras.continuation_len, paras.prefix_len
        log_probs = model(torch.tensor([tokens]))[0].double().log_softmax(-1)[start - 1 : -1]
        text = tokens[:start]
        while len(text) < len(tokens):
            text = [*text, int(model(torch.tensor([text]))[0, -1].argmax())]
    said, true = text[start:], tokens[start:]
    em = next((i for i in range(length) if said[i] != true[i]), length)
    values = {
        "em": em,
        "match_fraction": sum(int(log_probs[i].argmax()) == true[i] for i in range(length)) / length,
        "edit_distance": distance(tuple(said), tuple(true)),
        "exact": em == length,
        "nll": -sum(log_probs[i, true[i]].item() for i in range(length)) / length,
    }
    return values, log_probs


@pytest.mark.parametrize("batch_size", [3, 32])
def test_costs_are_those_of_one_paragraph_at_a_time(tiny_model, edited, sets, batch_size):
    for paras in sets.values():
        costs = paragraph_costs(tiny_model, edited, paras, batch_size=batch_size)
        for row in range(len(paras)):
            (first, reference), (second, other) = (slow_costs(model, paras, row) for model in (tiny_model, edited))
            for name, model in (("before", first), ("after", second)):
                for metric, value in model.items():
                    found = costs[metric].sel(model=name).isel(paragraph=row).item()
                    assert found == pytest.approx(value, abs=1e-5), (metric, name)
            divergence = sum(
                math.exp(reference[i, v].item()) * (reference[i, v] - other[i, v]).item()
                for i in range(len(reference))
                for v in range(reference.shape[1])
            )
            assert costs.kl[row].item() == pytest.approx(divergence / len(reference), rel=1e-3, abs=1e-6)
            changed = sum(int(reference[i].argmax()) != int(other[i].argmax()) for i in range(len(reference)))
            assert costs.changed_top1[row].item() == pytest.approx(changed / len(reference))
    costs = paragraph_costs(tiny_model, edited, sets["targets"])
    assert costs.em.sel(model="before").values.tolist() == [9] * 6 and costs.em.sel(model="after").mean() < 8
    assert costs.edit_distance.sel(model="after").max() > 0 and costs.changed_top1.max() > 0 and costs.kl.min() > 0
    late = costs.sel(model="after")
    assert bool((late.match_fraction * 9 > late.em).any()), "nothing matches after the first mismatch"


def test_costs_agree_with_score_and_kl(tiny_model, edited, sets):
    for paras in sets.values():
        costs = paragraph_costs(tiny_model, edited, paras)
        for name, model in (("before", tiny_model), ("after", edited)):
            scored = score(model, paras)
            assert costs.em.sel(model=name).values.tolist() == scored.em.values.tolist()
            np.testing.assert_allclose(costs.nll.sel(model=name), scored.nll, rtol=1e-5)
        np.testing.assert_allclose(costs.kl, kl(tiny_model, edited, paras), rtol=1e-4, atol=1e-6)


def test_evaluate_gives_means_and_intervals_by_cluster(tiny_model, edited, sets):
    seen = []
    result = evaluate(tiny_model, edited, sets, progress=lambda *done: seen.append(done), batch_size=4)
    assert seen == [(4, 14), (6, 14), (10, 14), (14, 14)]
    for name, paras in sets.items():
        costs, found = paragraph_costs(tiny_model, edited, paras), result.sel(set=name)
        clusters = np.array([4, 4, 4, 9, 9, 2]) if name == "targets" else np.arange(8)
        assert (int(found.paragraphs), int(found.clusters)) == (len(paras), len(set(clusters.tolist())))
        series = {(m, model): costs[raw].sel(model=model) for m, raw in MEANS.items() for model in ("before", "after")}
        series |= {("nll", model): costs.nll.sel(model=model) for model in ("before", "after")}
        series |= {("kl", None): costs.kl, ("changed_top1", None): costs.changed_top1}
        change = costs.em.sel(model="after") - costs.em.sel(model="before")
        for (metric, model), values in (series | {("em_change", None): change}).items():
            here = found if model is None else found.sel(model=model)
            low, high = np.clip(cluster_bootstrap(values.values, clusters), *RANGES[metric])
            assert here[metric].item() == pytest.approx(values.values.mean(), rel=1e-5)
            assert [here[f"{metric}_{end}"].item() for end in ("low", "high")] == pytest.approx([low, high], rel=1e-5)
        assert found.perplexity.values.tolist() == pytest.approx([math.exp(x) for x in found.nll.values])
        assert found.perplexity_high.values.tolist() == pytest.approx([math.exp(x) for x in found.nll_high.values])
    assert result.em.dims == ("set", "model") and result.em_change.dims == ("set",)
    assert result.attrs["clusters"] == "column 'cluster'; each paragraph is its own in: other"


def test_arguments_without_effect_are_accepted_with_a_warning(tiny_model, edited, sets):
    with pytest.warns(DeprecationWarning, match="evaluate: (draws|seed) has no effect any more; omit it") as warned:
        old: dict[str, Any] = {"draws": 10, "seed": 3}
        found = evaluate(tiny_model, edited, sets, **old)
    assert len(warned) == 2
    xr.testing.assert_identical(found, evaluate(tiny_model, edited, sets))


def test_clusters_widen_the_interval(tiny_model, edited, sets):
    """Control: the same paragraphs without their clusters look surer than they are."""
    tokens = torch.cat([sets["targets"].tokens[[0, 3, 5]]] * 6)
    table = datasets.Dataset.from_dict({"cluster": [0, 1, 2] * 6})
    both = {"clustered": Paragraphs(tokens, 8, table), "alone": Paragraphs(tokens, 8)}
    result = evaluate(tiny_model, edited, both)
    width = result.nll_high - result.nll_low
    assert (width.sel(set="clustered", model="after") > 1.5 * width.sel(set="alone", model="after")).item()


def test_the_change_is_paired(tiny_model, sets):
    """What every paragraph loses alike has no interval, however much paragraphs differ from one another."""
    result = evaluate(tiny_model, tiny_model, sets)
    assert result.em.sel(set="other").mean() < result.em.sel(set="targets").mean() == 9
    for name in ("em_change", "em_change_low", "em_change_high", "kl", "changed_top1"):
        assert not result[name].any()
    assert result.weights_changed == 0 and result.change_norm == 0 and result.relative_norm == 0


def test_the_change_of_weights_is_measured(tiny_model, sets):
    moved = copy.deepcopy(tiny_model)
    with torch.no_grad():
        moved.blocks[1].mlp.W_in[3, 4] += 3.0
        moved.blocks[2].attn.W_V[1, 0, 2] -= 4.0
    result = evaluate(tiny_model, moved, sets)
    whole = math.sqrt(sum(float(p.detach().double().pow(2).sum()) for p in tiny_model.parameters()))
    assert result.weights_changed == 2 and result.change_norm.item() == pytest.approx(5.0, rel=1e-6)
    assert result.relative_norm.item() == pytest.approx(5.0 / whole, rel=1e-6)


def test_forwards_are_shared(tiny_model, edited, sets, monkeypatch):
    calls: Counter[tuple[int, ...]] = Counter()
    forward = LeanModel.forward

    def counted(self, tokens, *rest, **settings):
        calls[tuple(tokens.shape)] += 1
        return forward(self, tokens, *rest, **settings)

    monkeypatch.setattr(LeanModel, "forward", counted)
    evaluate(tiny_model, edited, {"other": sets["other"]})
    # The whole text once a model; then decoding: what is known, and one token at a time.
    assert calls.pop((8, 17)) == 2
    assert sum(rows * columns for (rows, columns), n in calls.items() for _ in range(n)) <= 2 * 8 * 17


def test_many_logits_are_taken_in_parts(tiny_model, edited, sets, monkeypatch):
    whole = paragraph_costs(tiny_model, edited, sets["other"])
    monkeypatch.setattr("mechmem.intervene.costs._LOGITS_AT_ONCE", 3 * 9 * 61)
    xr.testing.assert_allclose(whole, paragraph_costs(tiny_model, edited, sets["other"]), rtol=1e-5)


def test_models_are_left_as_they_are(tiny_model, edited, sets):
    both = tiny_model, edited
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in both]
    evaluate(*both, sets)
    for model, kept in zip(both, before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_broken_model_is_refused_and_gives_no_numbers(tiny_model, sets):
    broken = copy.deepcopy(tiny_model)
    with torch.no_grad():
        broken.blocks[3].mlp.W_out.fill_(torch.nan)
    with pytest.raises(InputError, match="layer 3 gives NaN or infinite values"):
        evaluate(tiny_model, broken, sets)


def test_bad_input_is_refused_before_any_work(tiny_model, small_model, edited, sets, monkeypatch):
    monkeypatch.setattr(LeanModel, "forward", lambda *_: pytest.fail("work was done"))
    with pytest.raises(InputError, match="got no set of paragraphs"):
        evaluate(tiny_model, edited, {})
    with pytest.raises(InputError, match="the set 'none' is empty"):
        evaluate(tiny_model, edited, sets | {"none": sets["other"].select(np.zeros(8, dtype=bool))})
    with pytest.raises(InputError, match="the two models have different tensors"):
        paragraph_costs(tiny_model, small_model(), sets["other"])
    with pytest.raises(InputError, match="got the token id 61"):
        evaluate(tiny_model, edited, {"other": Paragraphs(torch.full((2, 17), 61), 8)})
    gated = small_model(gated_mlp=True, n_ctx=17, d_vocab=61)
    with pytest.raises(InputError, match="need a GPT-Neo, GPT-2 or GPT-NeoX"):
        evaluate(gated, gated, sets)


def table(seed: int, *, seen: bool = True, rows: int = 400) -> Paragraphs:
    """Scored paragraphs in clusters of different sizes; some rows of a cluster are the same text."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, 90, rows)
    # Whole clusters tend to be memorized, with exceptions.
    em = np.where(rng.random(90)[cluster] < 0.3, 10, 0)
    em = np.where(rng.random(rows) < 0.3, rng.integers(0, 11, rows), em)
    tokens = rng.integers(0, 50, (rows, 30))
    for row in range(1, rows, 3):
        twin = np.flatnonzero(cluster == cluster[row])[0]
        tokens[row], em[row] = tokens[twin], em[twin]
    columns = {"em": em, "cluster": cluster, "row": np.arange(rows)}
    if seen:
        columns["seen"] = rng.choice(["trained", "never seen", "unseen variant"], rows, p=[0.8, 0.1, 0.1])
    return Paragraphs(torch.as_tensor(tokens), 20, datasets.Dataset.from_dict(columns))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("seen", [True, False])
def test_sets_are_what_their_names_say(seed, seen):
    scored = table(seed, seen=seen)
    em, cluster = scored.column("em"), scored.column("cluster")
    trained = scored.column("seen") == "trained" if seen else np.ones(len(scored), dtype=bool)
    sets, keep = cost_sets(scored, targets=12, evaluated=1000, seed=seed)
    rows = {name: paragraphs.column("row") for name, paragraphs in sets.items()}
    assert list(sets) == ["targets", "memorized", "near-duplicates", "other", *(["never seen"] if seen else [])]
    aimed, holding = cluster[rows["targets"]], {c for c, e in zip(cluster, em, strict=True) if e == 10}
    assert len(aimed) == len(set(aimed)) == 12 and (em[rows["targets"]] == 10).all()
    texts = {tuple(row) for row in sets["targets"].tokens.tolist()}
    need: dict[str, set[int]] = {"memorized": set(), "near-duplicates": set(), "outside": set(), "never seen": set()}
    for row in range(len(scored)):
        if cluster[row] in aimed:
            if tuple(scored.tokens[row].tolist()) not in texts:
                need["near-duplicates"].add(row)
        elif em[row] == 10:
            need["memorized"].add(row)
        elif em[row] <= 2 and cluster[row] not in holding:
            need["outside" if trained[row] else "never seen"].add(row)
    for name in ("memorized", "near-duplicates", *(["never seen"] if seen else [])):
        assert set(rows[name].tolist()) == need[name], name
    assert set(rows["other"].tolist()) | set(keep.column("row").tolist()) <= need["outside"]
    # Near-duplicates need not be memorized, and twins of targets exist that had to be left out.
    assert em[rows["near-duplicates"]].min() < 10
    assert sum(tuple(row) in texts for row in scored.tokens.tolist()) > 12
    everywhere = set(cluster[np.concatenate(list(rows.values()))].tolist())
    assert len(keep) > 5 and not everywhere & set(keep.column("cluster").tolist())
    assert all(len(set(each.tolist())) == len(each) for each in rows.values())


def test_counts_are_kept_and_a_seed_decides_the_draws():
    scored = table(0)
    sets, keep = cost_sets(scored, targets=5, evaluated=8, seed=1)
    assert {name: len(paragraphs) for name, paragraphs in sets.items()} | {"keep": len(keep)} == {
        "targets": 5, "memorized": 8, "near-duplicates": 8, "other": 8, "never seen": 8, "keep": 8
    }  # fmt: skip
    again, other = (cost_sets(scored, targets=5, evaluated=8, seed=seed) for seed in (1, 2))
    for name, paragraphs in {**sets, "keep": keep}.items():
        same, different = (dict(drawn, keep=held)[name] for drawn, held in (again, other))
        assert torch.equal(paragraphs.tokens, same.tokens) and not torch.equal(paragraphs.tokens, different.tokens)


def test_half_of_the_memorized_clusters_are_left_and_empty_sets_are_not_listed():
    def small(em: list[int], cluster: list[int]) -> tuple[dict[str, Paragraphs], Paragraphs]:
        columns = datasets.Dataset.from_dict({"em": em, "cluster": cluster})
        return cost_sets(Paragraphs(torch.arange(5 * len(em)).view(-1, 5), 1, columns), targets=50)

    sets, keep = small([4, 4, 4, 4], [1, 2, 3, 3])
    assert len(sets["targets"]) == 2 and len(keep) == 0 and "other" not in sets and "memorized" in sets
    sets, keep = small([4, 0], [1, 2])
    assert list(sets) == ["targets", "other"] and len(keep) == 0


def test_targets_can_be_named_and_what_should_go_is_no_measure_of_what_should_stay():
    scored = table(0)
    em, cluster = scored.column("em"), scored.column("cluster")
    named = scored.select(np.flatnonzero(em == 10)[4:20])
    going = np.unique(np.concatenate([named.column("cluster"), scored.column("cluster")[np.isin(
        [str(row) for row in scored.tokens.tolist()], [str(row) for row in named.tokens.tolist()])]]))  # fmt: skip
    sets, keep = cost_sets(scored, targets=3, targets_from=named, evaluated=1000)
    texts = set(map(tuple, named.tokens.tolist()))
    assert len(sets["targets"]) == 3 and set(map(tuple, sets["targets"].tokens.tolist())) <= texts
    assert len(cost_sets(scored, targets=500, targets_from=named)[0]["targets"]) == len(np.unique(cluster[
        [tuple(row) in texts for row in scored.tokens.tolist()] & (em == 10)]))  # fmt: skip
    for part in (sets["memorized"], sets["other"], sets["never seen"], keep):
        assert len(part) and not np.isin(part.column("cluster"), going).any()
    # Without the argument some of these clusters are kept: the check above can fail.
    plain = cost_sets(scored, targets=3, evaluated=1000)[0]
    assert np.isin(plain["memorized"].column("cluster"), going).any()
    with pytest.raises(InputError, match=r"targets_from with \d of the scored paragraphs, none of them memorized"):
        cost_sets(scored, targets_from=scored.select(np.flatnonzero(em < 10)[:3]))
    with pytest.raises(InputError, match=r"none of them among the \d+ of the corpus"):
        cost_sets(scored, targets_from=Paragraphs(torch.full((2, scored.tokens.shape[1]), 1), scored.prefix_len))
    with pytest.raises(InputError, match="got targets_from of"):
        cost_sets(scored, targets_from=Paragraphs(scored.tokens, scored.prefix_len - 1))


def test_tables_that_sets_cannot_be_made_of_are_refused():
    scored = table(0)
    with pytest.raises(InputError, match="got 0 as targets; need a whole number of at least 1"):
        cost_sets(scored, targets=0)
    with pytest.raises(InputError, match="none of .* paragraphs has EM 10, so there is nothing to target"):
        cost_sets(scored.select(scored.column("em") < 10))
    with pytest.raises(InputError, match="no column 'em'"):
        cost_sets(Paragraphs(scored.tokens, 20))


def test_a_baseline_changes_nothing_and_is_computed_once(tiny_model, edited, sets, monkeypatch):
    baseline, forwards = Baseline(tiny_model), []
    original = LeanModel.forward

    def counting(self, *arguments, **options):
        forwards.append(self)
        return original(self, *arguments, **options)

    alone = evaluate(tiny_model, edited, sets)
    monkeypatch.setattr(LeanModel, "forward", counting)
    first = evaluate(tiny_model, edited, sets, baseline=baseline)
    once = len(forwards)
    second = evaluate(tiny_model, edited, sets, baseline=baseline)
    assert len(forwards) - once < once
    xr.testing.assert_identical(first, second)
    xr.testing.assert_identical(first, alone)
    with pytest.raises(InputError, match="baseline is of another model object"):
        evaluate(edited, tiny_model, sets, baseline=baseline)


def test_hooks_are_run(tiny_model, sets):
    """A hook that does what an edit of a bias does gives the edit's values, decoded text included."""
    shift = 0.5 * torch.randn(tiny_model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    moved = copy.deepcopy(tiny_model)
    with torch.no_grad():
        moved.blocks[1].mlp.get_parameter("b_out").add_(shift)
    need = paragraph_costs(tiny_model, moved, sets["targets"])
    with with_hooks(moved := copy.deepcopy(tiny_model), {"blocks.1.hook_mlp_out": lambda x, hook: x + shift}):  # noqa: ARG005
        found = paragraph_costs(tiny_model, moved, sets["targets"])
    assert float(abs(need.nll.diff("model")).max()) > 0.01 and float(need.edit_distance.max()) > 0
    xr.testing.assert_allclose(found, need, rtol=1e-4, atol=1e-4)
