"""Every figure's script, run small on the bundled model: its files, and its numbers against a slower way to them."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from scipy.stats import spearmanr

import mechmem as mm
from mechmem.data.errors import InputError

# 60 candidates of this seed hold at least SEED_EACH clusters of every EM range.
SEED, CANDIDATES, SEED_EACH = 377, 60, 5


def run(module, model, out, **settings) -> xr.Dataset:
    """The result, after a look at what was written."""
    need = module.Settings(seed=SEED, candidates=CANDIDATES, out=out / "deep", **settings)
    result = module.main(need, model)
    assert {path.name for path in need.out.iterdir()} == {"result.nc", "figure.html"}
    with xr.open_dataset(need.out / "result.nc", engine="h5netcdf") as written:
        xr.testing.assert_identical(written.load(), result)
    assert json.loads(result.attrs["settings"]) == {
        **{name: getattr(need, name) for name in need.__dataclass_fields__},
        "out": str(need.out),
    }
    page = (need.out / "figure.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page
    assert "<script src=" not in page and "<link" not in page and page.count("plotly.js v") == 1
    return result


def rows(paragraphs, ids) -> mm.Paragraphs:
    """Paragraphs by id, in that order."""
    place = {int(number): row for row, number in enumerate(paragraphs.column("id"))}
    return paragraphs.select([place[int(number)] for number in np.ravel(ids)])


def distinct(paragraphs, ids) -> bool:
    return len(np.unique(rows(paragraphs, ids).column("cluster"))) == np.size(ids)


def flat(gradient) -> np.ndarray:
    return np.concatenate([gradient[name].double().numpy().ravel() for name in sorted(gradient)])


def test_gradients_by_em_are_those_of_the_paragraphs_named(script, model, paragraphs, tmp_path):
    module = script("parameter_gradients")
    result = run(module, model, tmp_path, each=SEED_EACH)
    assert distinct(paragraphs, result.paragraph_id)
    for name, (low, high) in module.RANGES.items():
        found = mm.score(model, rows(paragraphs, result.paragraph_id.sel(group=name))).em.values
        assert len(found) == SEED_EACH and (low <= found).all() and (found <= high).all()
        assert result.em.sel(group=name).values.tolist() == found.tolist()
    first, second = (rows(paragraphs, result.paragraph_id.sel(group=name)) for name in ("0-10", "50"))
    direct = mm.parameter_gradients(model, first)
    np.testing.assert_allclose(result.gradient.sel(group="0-10"), direct, rtol=1e-4)
    assert float(result.total.sel(group="0-10")) == pytest.approx(float(direct.sum()), rel=1e-4)
    np.testing.assert_allclose(result.layer_sum.sel(group="0-10"), direct.sum("component"), rtol=1e-4)
    np.testing.assert_allclose(result.share.sel(group="0-10"), direct.sum("component") / direct.sum(), rtol=1e-4)
    a, b = flat(mm.weight_gradients(model, first)), flat(mm.weight_gradients(model, second))
    angle = a @ b / np.sqrt((a @ a) * (b @ b))
    assert float(result.cosine.sel(group="0-10", other_group="50")) == pytest.approx(angle, abs=1e-4)
    np.testing.assert_allclose(np.diag(result.cosine), 1)
    a, b = (flat(mm.weight_gradients(model, second.select(half))) for half in ([0, 1], [2, 3, 4]))
    angle = a @ b / np.sqrt((a @ a) * (b @ b))
    assert float(result.half_cosine.sel(group="50")) == pytest.approx(angle, abs=1e-4)


def test_samples_hold_every_cluster_once(script, model, paragraphs):
    module = script("parameter_gradients")
    ranges = {"memorized": (50, 50)}
    found = module.by_em(model, paragraphs, ranges, candidates=CANDIDATES, each=CANDIDATES, seed=SEED)["memorized"]
    pool = paragraphs.select(np.random.default_rng(SEED).permutation(len(paragraphs))[:CANDIDATES])
    known = pool.column("cluster")[mm.score(model, pool).em.values == 50]
    assert len(set(known)) < len(known), "or the sample has nothing to leave out"
    assert sorted(found.column("cluster")) == sorted(set(known))


def test_an_empty_range_is_refused(script, model, paragraphs):
    module = script("parameter_gradients")
    with pytest.raises(InputError, match=r"set none \(EM 51-60\) among 3 candidates; need .* score more candidates"):
        module.by_em(model, paragraphs, {"none": (51, 60)}, candidates=3, each=1, seed=0)


def test_contrasts_and_their_masks_are_those_worked_out_paragraph_by_paragraph(script, model, paragraphs, tmp_path):
    result = run(script("contrastive_gradients"), model, tmp_path, each=3)
    assert distinct(paragraphs, result.paragraph_id) and result.sizes["paragraph"] == 3
    memorized, other = (rows(paragraphs, result.paragraph_id.sel(set=name)) for name in ("memorized", "other"))
    plain = flat(mm.weight_gradients(model, memorized))
    single = np.array([flat(mm.weight_gradients(model, other.select([row]))) for row in range(3)])
    root = np.sqrt((single**2).mean(0))
    scores = {
        "plain": np.abs(plain),
        "fisher": np.abs(plain) / (root + root.mean()),
        "difference": np.abs(plain - single.mean(0)),
    }
    count = round(0.001 * len(plain))
    tops = {name: set(np.argsort(-values, kind="stable")[:count].tolist()) for name, values in scores.items()}
    for name, top in tops.items():
        assert float(result.score.sel(contrast=name).max()) == pytest.approx(scores[name].max(), rel=1e-3)
        assert int(result.chosen.sel(contrast=name).sum()) == count
        for other_name, second in tops.items():
            found = float(result.overlap.sel(contrast=name, other_contrast=other_name))
            # A weight or two at the border may change sides by rounding.
            assert found == pytest.approx(len(top & second) / len(top | second), abs=2e-3)
    # By name W_K, W_O and W_Q of layer 0 stand before its W_V, and all are of one size.
    head = model.cfg.d_model * model.cfg.d_head
    start = (3 * model.cfg.n_heads + 4) * head
    fifth_head = len([place for place in tops["plain"] if start <= place < start + head])
    assert fifth_head > 10
    assert int(result.chosen.sel(contrast="plain", layer=0, component="V4")) == pytest.approx(fifth_head, abs=1)
    assert float(result.overlap_by_chance) == pytest.approx(0.001**2 / (0.002 - 0.001**2))


def test_activation_gradients_are_those_of_a_hook(script, model, paragraphs, tmp_path):
    result = run(script("activation_gradients"), model, tmp_path)
    paras = rows(paragraphs, [result.attrs["paragraph_id"]])
    assert int(mm.score(model, paras).em[0]) == 50
    layer, head, kept = result.attrs["strongest_layer"], result.attrs["strongest_head"], []

    def keep(value, hook):  # noqa: ARG001 - TransformerLens passes both
        kept.append(value.detach().requires_grad_())
        return kept[0]

    with torch.enable_grad():
        logits = model.run_with_hooks(paras.tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_v", keep)])
        loss = torch.nn.functional.cross_entropy(logits[0, 49:99], paras.tokens[0, 50:])
        (gradient,) = torch.autograd.grad(loss, kept)
    expected = gradient[0].abs().amax(-1).T.numpy()  # [head, pos]
    np.testing.assert_allclose(result.gradient.sel(layer=layer), expected, rtol=1e-3, atol=1e-9)
    assert float(result.largest.max()) == float(result.largest[layer, head]) == pytest.approx(expected.max(), rel=1e-3)
    assert int(result.strongest_pos[layer, head]) == expected[head].argmax()
    assert "".join(result.token.values) == paras.column("text")[0]


def test_attention_is_that_of_the_forward_pass(script, model, paragraphs, tmp_path):
    result = run(script("head_attention"), model, tmp_path, searched=4, shown=2, permutations=20)
    assert distinct(paragraphs, np.concatenate([result.paragraph_id, result.searched_id]))
    counts = mm.bundled_unigram_counts()
    searched, shown = (rows(paragraphs, result[name]) for name in ("searched_id", "paragraph_id"))
    assert (mm.score(model, shown).em == 50).all() and (len(searched), len(shown)) == (4, 2)
    rare = mm.rare_token_attention(model, searched, torch.as_tensor(counts), permutations=20, seed=SEED)
    layer, head = (int(place) for place in np.unravel_index(rare.excess.values.argmax(), rare.excess.shape))
    assert (result.attrs["layer"], result.attrs["head"]) == (layer, head)
    with torch.no_grad():
        _, cache = model.run_with_cache(shown.tokens)
    expected = cache[f"blocks.{layer}.attn.hook_pattern"][:, head, 50, :50]
    np.testing.assert_allclose(result.attention, expected, atol=1e-5)
    for number, tokens in enumerate(shown.prefix.tolist()):
        fifth = np.sort(counts[tokens])[4]
        weight = result.rarest.values[number]
        assert weight.sum() == pytest.approx(5) and (counts[tokens][weight > 0] <= fifth).all()
        assert result.token_count.values[number].tolist() == counts[tokens].tolist()
        assert "".join(result.token.values[number]) == model.tokenizer.decode(tokens)


def test_mean_attention_by_token_is_counted_place_by_place(script, model, paragraphs, tmp_path):
    result = run(script("rare_tokens"), model, tmp_path, each=10, permutations=20, resamples=20)
    assert distinct(paragraphs, np.concatenate([result.searched_id, result.measured_id]))
    paras, layer, head = rows(paragraphs, result.measured_id), result.attrs["layer"], result.attrs["head"]
    assert float(result.excess[layer, head]) == float(result.excess.max())
    with torch.no_grad():
        _, cache = model.run_with_cache(paras.tokens[:, :51])
    attention = cache[f"blocks.{layer}.attn.hook_pattern"][:, head, 50, :50].double().numpy()
    own: dict[int, list[float]] = {}
    elsewhere: dict[int, list[float]] = {}
    for number, tokens in enumerate(paras.prefix.tolist()):
        for place, token in enumerate(tokens):
            own.setdefault(token, []).append(attention[number, place])
            others = [attention[row, place] for row in range(len(paras)) if row != number]
            elsewhere.setdefault(token, []).append(float(np.mean(others)))
    assert result.token.values.tolist() == sorted(own)
    assert result.places.values.tolist() == [len(own[token]) for token in sorted(own)]
    np.testing.assert_allclose(result.attention, [np.mean(own[token]) for token in sorted(own)], atol=1e-6)
    np.testing.assert_allclose(result.expected, [np.mean(elsewhere[token]) for token in sorted(own)], atol=1e-6)
    counts = mm.bundled_unigram_counts()[sorted(own)]
    assert result.token_count.values.tolist() == counts.tolist()
    for quantity, values in (("attention", result.attention), ("excess", result.attention - result.expected)):
        direct = spearmanr(values.values, counts)[0]
        assert float(result.correlation.sel(quantity=quantity, coefficient="spearman")) == pytest.approx(direct)
    assert (result.correlation_low < result.correlation_high).all()


def test_patches_are_those_of_a_hook(script, model, paragraphs, tmp_path):
    result = run(script("patching"), model, tmp_path, pairs=3, fraction=0.2)
    assert distinct(paragraphs, result.paragraph)
    patched = result.effect.notnull().all("paragraph")
    assert (patched.sum(["layer", "head"]) == round(0.2 * 48)).all()
    assert (result.effect.notnull() == patched).all(), "a cell is patched for all pairs or for none"
    size = np.abs(result.estimate.mean("paragraph"))
    assert (size.where(patched).min(["layer", "head"]) >= size.where(~patched).max(["layer", "head"])).all()
    assert torch.equal(torch.as_tensor(result.clean.values), rows(paragraphs, result.paragraph).tokens)
    readings = {
        "memorized_own": ("clean", "corrupt", "clean"),
        "perturbed_own": ("corrupt", "clean", "corrupt"),
        "perturbed_memorized": ("corrupt", "clean", "clean"),
    }
    for reading, runs in readings.items():
        for site in ("q", "k", "v"):
            layer, head = (int(place[0]) for place in np.nonzero(patched.sel(reading=reading, site=site).values))
            for number in range(result.sizes["paragraph"]):
                pair = result.isel(paragraph=number)
                before, after = (
                    one_patch(model, pair, site, layer, head, *runs, patched=there) for there in (False, True)
                )
                found = float(pair.effect.sel(reading=reading, site=site)[layer, head])
                assert found == pytest.approx(after - before, abs=1e-4)
    mean = result.effect.mean("paragraph", skipna=False)
    assert (result.effect_low.notnull() == patched).all()
    assert ((result.effect_low <= mean) & (mean <= result.effect_high)).where(patched, True).all()
    # Three pairs of different clusters: no interval is narrower than Student's for three numbers.
    error = result.effect.std("paragraph", ddof=1) / 3**0.5
    narrowest = 2 * scipy.stats.t.ppf(0.975, 2) * error
    assert ((result.effect_high - result.effect_low) >= narrowest * (1 - 1e-5)).where(patched, True).all()
    ends = result[["base", "source"]]
    restoring = {"reading": "perturbed_memorized"}
    assert float(ends.base.sel(reading="memorized_own")) == pytest.approx(float(ends.source.sel(restoring)))
    assert float(ends.base.sel(restoring)) > float(ends.source.sel(restoring))


def one_patch(model, pair, site, layer, head, base, source, scored, *, patched) -> float:
    """NLL of one text's token at the first impacted position, the base run having one activation of the source's."""
    runs = {name: torch.as_tensor(pair[name].values)[None] for name in ("clean", "corrupt")}
    differs = (runs["clean"] != runs["corrupt"])[0].nonzero().flatten().tolist()
    place, impact = differs[0], next(position for position in differs if position >= 50)
    assert (place, impact) == (int(pair.perturbed_pos), int(pair.impact_pos))
    name = f"blocks.{layer}.attn.hook_{site}"

    def put(value, hook):  # noqa: ARG001 - TransformerLens passes both
        value[:, place, head] = cache[name][:, place, head]
        return value

    with torch.no_grad():
        _, cache = model.run_with_cache(runs[source], names_filter=name)
        logits = model.run_with_hooks(runs[base], fwd_hooks=[(name, put)] if patched else [])
    return -float(logits[0, impact - 1].log_softmax(-1)[runs[scored][0, impact]])


def test_the_scoreboard_says_what_its_boards_hold(script, model, tmp_path, monkeypatch):
    monkeypatch.setattr("mechmem.localize.scoreboard.CONTRASTS", ("plain",))
    module = script("scoreboard")
    heads = script("scoreboard_heads").HEAD_METHODS
    quick = ("ablate_heads, zero", "patch, denoising", "random")
    module.head_board.__globals__["HEAD_METHODS"] = {name: heads[name] for name in quick}
    settings = module.Settings(
        targets=2, others=4, keep=2, planted=1, methods=("gate_gradient", "random"), out=tmp_path / "r",
        page=tmp_path / "p.md",
    )  # fmt: skip
    pictures: list[Path] = []
    module.photograph = lambda _, path: pictures.append(path)
    result = module.main(settings, model)
    text = (tmp_path / "p.md").read_text()
    whole = result.sel(protocol="whole neurons")
    mean = float(100 * whole.recall.sel({"method": "gate_gradient", "fraction": 0.05}).mean())
    row = next(line for line in text.splitlines() if line.startswith("| gate_gradient |"))
    assert f"{mean:.1f} [" in row
    assert mean > 100 * float(whole.recall.sel({"method": "random", "fraction": 0.05}).mean())
    assert float(result.em.min()) == 50 and [path.name for path in pictures] == [
        "scoreboard-recall.png",
        "scoreboard-deletion.png",
    ]
    assert f"{mean:.1f} [" in row
    assert f"- **Neurons**: `gate_gradient` finds {mean:.1f} [" in text and "Neurons, quickly" not in text
    lost = result.target_accuracy.sel(dropped=0.005).mean("target")
    assert f"`{lost.method.values[lost.values.argmin()]}` costs the target most, {float(lost.min()):.1f} [" in text
    patched = 100 * float(result.head_recall.sel(head_method="patch, denoising", taken=1).mean())
    assert f"| patch, denoising | {patched:.1f}" in text and "into 3 random heads" in text
    assert float(result.head_em.min()) == 50
    assert patched > 100 * float(result.head_recall.sel(head_method="random", taken=1).mean())
    # What is there is not measured again: a run that was stopped goes on.
    module.injection_board = module.head_board = module.deletion_board = None
    module.truth_board = module.hand_set_heads = None
    (tmp_path / "r" / "result.nc").unlink()
    again = module.main(settings, model)
    assert again.identical(result) and (tmp_path / "p.md").read_text() == text
    tables = script("scoreboard_tables")
    low, high = tables.interval(np.array([1.0, 2.0, 4.0]), (0.0, None))[1:]
    assert low < 7 / 3 < high
    assert tables.interval(np.array([2.0, 2.0]), (0.0, None)) == (2.0, 2.0, 2.0)


def test_a_paragraph_injected_into_heads_is_judged_as_by_hand(script, model):
    module = script("scoreboard_heads")
    unseen = mm.bundled_paragraphs()
    unseen = unseen[unseen.column("seen") == "never seen"]
    target, keep = unseen[:1], unseen[1:4]
    module.HEAD_METHODS = {name: module.HEAD_METHODS[name] for name in ("ablate_heads, zero", "random")}
    module.CONTRASTS, module.corrupted = ("plain",), lambda *_: (target, keep[:1])
    board = module.head_board(model, target, keep, share=1 / 16, seed=3).squeeze("target")
    heads = [divmod(int(at), 8) for at in sorted(np.random.default_rng(3).choice(48, 3, replace=False))]
    assert module.random_heads(model, 1 / 16, 3) == heads
    edited, history = mm.inject(
        model, target, mm.Mask.heads(model, heads), training=mm.Training(steps=400, learning_rate=1e-3)
    )
    assert float(board.head_em) == float(history.em[-1]) == 50
    # Zero ablation once more, head by head, with TransformerLens' own hooks.
    rise = np.zeros((6, 8))
    for layer, head in np.ndindex(6, 8):

        def put(value, hook, head=head):  # noqa: ARG001 - TransformerLens passes both
            value[:, :, head] = 0
            return value

        with torch.no_grad():
            logits = edited.run_with_hooks(target.tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", put)])
        rise[layer, head] = -logits[:, 49:-1].log_softmax(-1).gather(-1, target.tokens[:, 50:, None]).mean()
    best = [divmod(int(at), 8) for at in np.argsort(-rise, axis=None)]
    ours = board.sel(head_method="ablate_heads, zero")
    for taken in (1, 2):
        assert float(ours.head_recall.sel(taken=taken)) == len({*best[: 3 * taken]} & {*heads}) / 3
    above = np.mean([rise[place] > rise[other] for place in heads for other in best if other not in heads])
    assert float(ours.head_auroc) == pytest.approx(above) and above > 0.9


def test_times_are_multiples_within_a_target_and_the_goal_needs_both(script):
    tables = script("scoreboard_tables")
    names = ["quick", "slow", "zero_out"]
    # By target: a machine that is busy while one target runs does not change a ratio.
    seconds = xr.DataArray([[1.0, 30.0], [5.0, 150.0], [20.0, 600.0]], {"method": names}, ("method", "target"))
    assert tables.times(seconds, "method", "zero_out") == ("time, zero_out = 1", ["0.05", "0.25", "1"])
    assert tables.times(seconds[:2], "method", "zero_out")[0] == "seconds"
    recall = xr.DataArray(
        [[[0.9, 0.95]], [[0.99, 0.99]], [[0.8, 0.8]]], {"method": names, "fraction": [0.05]},
        ("method", "fraction", "target"),
    )  # fmt: skip
    board = xr.Dataset({"recall": recall, "seconds": seconds})
    assert "time: quick (92.5 [" in tables.goal(board)[0] and "slow" not in tables.goal(board)[0]
    assert tables.goal(board.assign(recall=recall - 0.05))[0].endswith("time: no method.")
    assert tables.goal(board.isel(method=[0])) == []
    answer = script("scoreboard_answer")
    both = board.expand_dims(protocol=["whole neurons", "out-weights"])
    best, quick = answer.neurons(both.assign(seconds=both.seconds / xr.DataArray([5.5, 1.0, 1.0], dims="method")))
    assert best.startswith("- **Neurons**: `slow` finds 99.0 [99.0, 99.0] % of whole") and "takes 0.25 of" in best
    assert "`quick` finds 92.5 [" in quick and "takes 0.0091 of the time of zero_out, which finds 80.0 [" in quick


def test_steps_of_integrated_gradients_that_pass_over_a_threshold_turn_the_head_round():
    truth = mm.planted(mm.PlantedSettings(seed=0, n_layers=3, memories=4, others=8, d_mlp=256))
    few, many = (
        mm.activation_gradients(truth.model, truth.memorized, site="z", method="integrated", steps=steps).sum("pos")
        for steps in (8, 32)
    )
    layer, head = truth.head
    ablated = mm.ablate_heads(truth.model, truth.memorized, method="zero").nll_change.sel(layer=layer, head=head)
    assert float(few.sel(layer=layer, head=head)) == float(few.max()) > 0.5
    assert -float(many.sel(layer=layer, head=head)) == pytest.approx(float(ablated), rel=1e-3) and ablated > 5
