import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.ablation import ablate_greedily, ablate_heads, ablate_layers
from mechmem.truth.planted import Planted, planted


@pytest.fixture(scope="module")
def truth() -> Planted:
    return planted()


@pytest.fixture(scope="module")
def memorized(tiny_pair):
    """Nine paragraphs of 29 tokens whose continuation is mostly the model's own: EM differs between them."""
    generator = torch.Generator().manual_seed(4)
    prefix = torch.randint(0, 61, (9, 13), generator=generator)
    tokens = tiny_pair.reference.generate(
        prefix, attention_mask=torch.ones_like(prefix), do_sample=False, max_new_tokens=16
    )
    places = torch.tensor([13, 15, 18, 20, 21, 25])
    tokens[torch.arange(6), places] = (tokens[torch.arange(6), places] + 1) % 61
    return Paragraphs(tokens, 13)


def full_forward_scores(model, paragraphs: Paragraphs, hooks=()) -> tuple[float, float]:
    """Mean EM and NLL from the logits of every position."""
    logits = model.run_with_hooks(paragraphs.tokens, fwd_hooks=list(hooks))[:, paragraphs.prefix_len - 1 : -1].double()
    match = (logits.argmax(-1) == paragraphs.continuation).tolist()
    em = [(row + [False]).index(False) for row in match]
    nll = -logits.log_softmax(-1).gather(-1, paragraphs.continuation[..., None])
    return float(np.mean(em)), float(nll.mean())


def slow_ablation(model, paragraphs: Paragraphs, others: list[int] | None, method: str) -> np.ndarray:
    """One whole forward for each head, with the head's output replaced by a hook; [measure, layer, head]."""
    em, nll = full_forward_scores(model, paragraphs)
    result = np.zeros((2, model.cfg.n_layers, model.cfg.n_heads))
    for layer in range(model.cfg.n_layers):
        name = f"blocks.{layer}.attn.hook_z"
        _, cache = model.run_with_cache(paragraphs.tokens, names_filter=[name])
        for head in range(model.cfg.n_heads):

            def replace(z, hook, head=head, clean=cache[name]):  # noqa: ARG001
                z = z.clone()
                if method == "zero":
                    z[:, :, head] = 0
                elif method == "mean":
                    for position in range(z.shape[1]):
                        z[:, position, head] = sum(clean[p, position, head] for p in range(len(z))) / len(z)
                else:
                    for paragraph, other in enumerate(others or []):
                        z[paragraph, :, head] = clean[other, :, head]
                return z

            ablated_em, ablated_nll = full_forward_scores(model, paragraphs, [(name, replace)])
            result[:, layer, head] = ablated_em - em, ablated_nll - nll
    return result


def stands_in(count: int, seed: int) -> list[int]:
    """Each paragraph's successor on a random cycle: the rule, said once more."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    return [order[(order.index(i) + 1) % count] for i in range(count)]


@pytest.fixture
def hooked_model(tiny_model):
    """The same model with a hook on it that changes nothing: it takes the other path."""
    model = copy.deepcopy(tiny_model)
    model.add_hook("blocks.0.hook_resid_pre", lambda value, hook: value)  # noqa: ARG005
    return model


@torch.no_grad()
@pytest.mark.parametrize("method", ["mean", "zero", "resample"])
@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("engine", ["tiny_model", "hooked_model"])
def test_every_head_equals_the_slow_whole_forward(request, memorized, method, batch_size, engine):
    tiny_model = request.getfixturevalue(engine)
    result = ablate_heads(tiny_model, memorized, method=method, seed=3, batch_size=batch_size)
    em_change, nll_change = slow_ablation(tiny_model, memorized, stands_in(9, 3), method)
    np.testing.assert_allclose(result.em_change, em_change, atol=1e-9)
    np.testing.assert_allclose(result.nll_change, nll_change, atol=1e-4)
    assert result.em_change.dims == ("layer", "head") and float(abs(result.em_change).max()) > 1
    assert np.ptp(em_change) > 1 and np.ptp(nll_change) > 0.1, "the heads were to differ"


@torch.no_grad()
@pytest.mark.parametrize("site", ["z", "pattern", "v"])
@pytest.mark.parametrize("method", ["mean", "zero", "resample"])
def test_both_engines_agree_on_every_site_of_other_kinds_of_model(small_model, site, method):
    settings = {"init_mode": "gpt2", "initializer_range": 0.4, "d_mlp": 13, "n_layers": 3}
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True, "d_head": 6}
    paragraphs = Paragraphs(torch.randint(0, 17, (9, 13), generator=torch.Generator().manual_seed(1)), 6)
    for model in (small_model(**settings, normalization_type="LNPre"), small_model(**settings, **rotary)):
        options: dict[str, Any] = {"site": site, "method": method, "seed": 2}
        lean = ablate_heads(model, paragraphs, **options)
        model.add_hook("blocks.1.hook_resid_pre", lambda value, hook: value)  # noqa: ARG005
        xr.testing.assert_allclose(lean, ablate_heads(model, paragraphs, **options), rtol=1e-3, atol=1e-5)
        assert float(abs(lean.nll_change).max()) > 1e-3


def test_only_the_heads_that_are_named_run(tiny_model, memorized):
    whole = ablate_heads(tiny_model, memorized)
    seen: list[tuple[int, int]] = []
    some = ablate_heads(tiny_model, memorized, heads=["L2H0", (1, 2), "l1h2"], progress=lambda *done: seen.append(done))
    assert seen[-1] == (18, 18)
    asked = np.zeros((4, 3), dtype=bool)
    asked[[2, 1], [0, 2]] = True
    for name in ("em_change", "nll_change"):
        np.testing.assert_allclose(some[name].values[asked], whole[name].values[asked], atol=1e-6)
        assert np.isnan(some[name].values[~asked]).all()
    for heads in ([], ["L4H0"], ["head 3"], [(0, 3)]):
        with pytest.raises(InputError, match="got heads .*names .*layer below 4 and head below 3"):
            inspect.unwrap(ablate_heads)(tiny_model, memorized, heads=heads)  # pyright: ignore[reportArgumentType]


def test_changes_are_after_minus_before_and_say_so(tiny_model, memorized):
    result = ablate_heads(tiny_model, memorized, method="zero")
    assert float(result.em_change.min()) < 0 < float(result.nll_change.max())
    assert result.em_change.attrs["higher"] == "EM is higher without it"
    assert result.nll_change.attrs["higher"].startswith("the text is less likely without it")


def test_old_names_still_work_and_say_what_they_are_called(tiny_model, memorized):
    with pytest.warns(DeprecationWarning, match="ablate_heads: part is called site now"):
        old = ablate_heads(tiny_model, paragraphs=memorized, part="v")  # pyright: ignore[reportCallIssue]
    xr.testing.assert_identical(old, ablate_heads(tiny_model, memorized, site="v"))


@pytest.mark.parametrize("changes", [{"attn_only": True}, {"normalization_type": None}, {"parallel_attn_mlp": True}])
@torch.no_grad()
def test_other_blocks_equal_the_slow_whole_forward(small_model, changes):
    model = small_model(d_mlp=12, **changes)
    paragraphs = Paragraphs(torch.randint(0, 17, (5, 13), generator=torch.Generator().manual_seed(1)), 6)
    em_change, nll_change = slow_ablation(model, paragraphs, None, "mean")
    result = ablate_heads(model, paragraphs, method="mean")
    np.testing.assert_allclose(result.em_change, em_change, atol=1e-9)
    np.testing.assert_allclose(result.nll_change, nll_change, atol=1e-5)


@torch.no_grad()
def test_a_head_that_writes_nothing_costs_nothing_and_owners_hooks_count(tiny_model, memorized):
    model = copy.deepcopy(tiny_model)
    model.blocks[2].attn.W_O[1] = 0
    model.add_hook("blocks.2.hook_resid_pre", lambda activation, hook: activation * 1.1)  # noqa: ARG005
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = ablate_heads(model, memorized, method="zero")
    np.testing.assert_allclose(result.sel(layer=2, head=1).to_array(), 0, atol=1e-6)
    em_change, nll_change = slow_ablation(model, memorized, None, "zero")
    np.testing.assert_allclose(result.nll_change, nll_change, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [len(point.fwd_hooks) for point in model.hook_points() if point.fwd_hooks] == [1]


def test_equal_paragraphs_lose_nothing_by_another_ones_output(tiny_model, memorized):
    same = Paragraphs(memorized.tokens[:1].repeat(5, 1), 13)
    for method in ("mean", "resample"):
        result = ablate_heads(tiny_model, same, method=method)
        np.testing.assert_allclose(result.to_array(), 0, atol=1e-4)


def test_seed_decides_resampling_and_the_result_says_what_it_is(tiny_model, memorized, tmp_path):
    seen: list[tuple[int, int]] = []
    one, two, three = (
        ablate_heads(tiny_model, memorized, method="resample", seed=seed, progress=lambda *done: seen.append(done))
        for seed in (0, 0, 1)
    )
    xr.testing.assert_identical(one, two)
    assert not np.allclose(one.nll_change, three.nll_change, atol=1e-3)
    assert one.attrs == {"method": "resample", "site": "z", "seed": 0, "paragraphs": 9}
    per_run = len(seen) // 3
    assert seen[-1] == (108, 108) and seen[:per_run] * 3 == seen and sorted(set(seen)) == seen[:per_run]
    one.to_netcdf(tmp_path / "heads.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "heads.nc", engine="h5netcdf"), one)


def test_others_are_needed_unless_the_output_is_zero(tiny_model, memorized):
    alone = memorized.select(np.array([0]))
    for method in ("mean", "resample"):
        with pytest.raises(InputError, match=f"got 1 paragraph for method '{method}'.*need at least 2"):
            ablate_heads(tiny_model, alone, method=method)
    assert ablate_heads(tiny_model, alone, method="zero").em_change.shape == (4, 3)
    with pytest.raises(InputError, match="got method 'median'; need one of mean, zero, resample"):
        # Without the annotations' checks that the tests switch on, as a user meets it.
        inspect.unwrap(ablate_heads)(tiny_model, memorized, method="median")  # pyright: ignore[reportArgumentType]


def loss_without(model, paragraphs: Paragraphs, names: dict[str, list[int] | None]) -> tuple[float, float]:
    """Changes of EM and NLL of one whole forward with hook points (or some of their heads) set to the mean."""
    _, cache = model.run_with_cache(paragraphs.tokens, names_filter=list(names))

    def replace(value, hook):
        mean = cache[hook.name].mean(0, keepdim=True).expand_as(value)
        heads = names[hook.name]
        if heads is None:
            return mean
        value = value.clone()
        axis = 1 if "pattern" in hook.name else 2
        value.movedim(axis, 0)[heads] = mean.movedim(axis, 0)[heads]
        return value

    before = full_forward_scores(model, paragraphs)
    # The intact run's mean: a hook on a later layer must not see what an earlier ablation left.
    after = full_forward_scores(model, paragraphs, [(name, replace) for name in names])
    return after[0] - before[0], after[1] - before[1]


@torch.no_grad()
@pytest.mark.parametrize("part", ["pattern", "v"])
def test_pattern_and_values_alone_equal_the_slow_whole_forward(tiny_model, memorized, part):
    result = ablate_heads(tiny_model, memorized, site=part, batch_size=7)
    for layer in range(4):
        for head in range(3):
            em_change, nll_change = loss_without(tiny_model, memorized, {f"blocks.{layer}.attn.hook_{part}": [head]})
            ours = result.sel(layer=layer, head=head)
            assert float(ours.em_change) == pytest.approx(em_change) and float(ours.nll_change) == pytest.approx(
                nll_change, abs=1e-4
            )
    other = ablate_heads(tiny_model, memorized, site="z")
    assert not np.allclose(result.nll_change, other.nll_change, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("engine", ["tiny_model", "hooked_model"])
def test_whole_layers_equal_the_slow_whole_forward(request, memorized, engine):
    tiny_model = request.getfixturevalue(engine)
    result = ablate_layers(tiny_model, memorized, batch_size=7)
    for layer in range(4):
        for module, point in (("attention", "attn.hook_z"), ("mlp", "hook_mlp_out")):
            em_change, nll_change = loss_without(tiny_model, memorized, {f"blocks.{layer}.{point}": None})
            ours = result.sel(layer=layer, module=module)
            assert float(ours.em_change) == pytest.approx(em_change)
            assert float(ours.nll_change) == pytest.approx(nll_change, abs=1e-4)
    assert np.ptp(result.nll_change.values) > 0.1


@torch.no_grad()
def test_greedy_takes_the_worst_head_beside_those_gone(tiny_model, memorized):
    seen: list[tuple[int, int]] = []
    result = ablate_greedily(tiny_model, memorized, 3, progress=lambda *done: seen.append(done))
    gone: list[tuple[int, int]] = []
    for step in range(3):
        losses = {}
        for head in ((layer, head) for layer in range(4) for head in range(3)):
            if head in gone:
                continue
            names: dict[str, list[int] | None] = {}
            for layer, number in [*gone, head]:
                names[f"blocks.{layer}.attn.hook_z"] = [*(names.get(f"blocks.{layer}.attn.hook_z") or []), number]
            losses[head] = loss_without(tiny_model, memorized, names)
        best = max(losses, key=lambda head: losses[head][1])
        ours = result.isel(step=step)
        assert (int(ours.layer), int(ours["head"])) == best
        assert (float(ours.em_change), float(ours.nll_change)) == pytest.approx(losses[best], abs=1e-4)
        gone.append(best)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    everything = ablate_greedily(tiny_model, memorized, 12)
    assert len(set(zip(everything.layer.values.tolist(), everything["head"].values.tolist(), strict=True))) == 12
    with pytest.raises(InputError, match="got count 13; need 1 to 12"):
        ablate_greedily(tiny_model, memorized, 13)


@pytest.mark.parametrize("part", ["z", "pattern", "v"])
def test_only_the_planted_head_matters_by_pattern_and_by_values(truth, part):
    drop = -ablate_heads(truth.model, truth.memorized, site=part).em_change
    # The mean of eight memories' codes is none of them; a mean pattern looks at all triggers' places a little.
    assert float(drop.sel(layer=truth.head[0], head=truth.head[1])) > 25
    rest = drop.stack(place=("layer", "head")).drop_sel(place=truth.head)
    assert float(abs(rest).max()) == 0
    assert ablate_greedily(truth.model, truth.memorized, 1).layer.item() == truth.head[0]


def test_unknown_sites_are_refused(tiny_model, memorized):
    with pytest.raises(InputError, match="got site 'q'; need one of z, pattern, v"):
        inspect.unwrap(ablate_heads)(tiny_model, memorized, site="q")  # pyright: ignore[reportArgumentType]
