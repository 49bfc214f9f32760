"""The scripts of interventions, run small on the bundled model: what their pages say is what was measured."""

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.descent_methods import OBJECTIVES
from mechmem.measure.exact import ExactScorer
from mechmem.measure.own_text import own_continuations
from mechmem.model.sites import editable_parameters

ROWS = ("contrastive, all", "paper's recipe", "paper's recipe, decay everywhere")


@pytest.mark.filterwarnings("ignore:the edit (taught|removed) nothing:RuntimeWarning")
def test_the_unlearning_leaderboard_says_what_was_measured(script, model, tmp_path):
    module = script("unlearning")
    pictures: list[Path] = []
    module.photograph = lambda _, path: pictures.append(path)
    module.FURTHER, measures = 0, script("unlearning_measures")

    def measure(models, edited, sets, settings, seed):
        """All of it for one row, since attacks take seconds; costs for every row."""
        if edited is models.oracle:
            return measures.measure(models, edited, sets, settings, seed)
        return measures.costs(models, edited, sets)

    module.measure = measure
    oracle = copy.deepcopy(model)
    with torch.no_grad():
        oracle.blocks[2].mlp.get_parameter("W_out").zero_()
    mm.export(oracle, tmp_path / "oracle")
    settings = module.Settings(
        seeds=(0,),
        all_seeds=(0,),
        clusters_each=4,
        candidates=200,
        targets=3,
        held=3,
        tuning_targets=2,
        steps=1,
        relearning=2,
        own_steps=2,
        rows=ROWS,
        oracle=tmp_path / "oracle",
        other_seed=None,
        out=tmp_path / "r",
        page=tmp_path / "p.md",
    )
    results = module.main(settings, model)
    text = (tmp_path / "p.md").read_text()
    run = results["contrastive, all"]["0"]
    row = next(line for line in text.split("## Costs")[1].splitlines() if line.startswith("| contrastive, all |"))
    assert f"| {run['targets EM']:.1f} |" in row and f"| {run['other KL']:.3f} |" in row
    before, beside = results["before"]["0"], results["oracle"]["0"]
    assert before["targets EM"] == 50 and before["weights"] == 0 and before["memorized neighbours EM"] == 50
    assert before["targets KL to the oracle"] > 1e-3 and beside["targets CKA with the original"] < 0.999
    assert beside["targets KL to the oracle"] == 0 and beside["forget quality"] == 1
    assert beside["targets CKA with the oracle"] == pytest.approx(1) and "targets distance" not in before
    assert f"| oracle | {0:.3f} | {0:.3f} |" in text.split("## Costs")[0], "without another seed there is no unit"
    # The paper's decay moves weights outside its mask; ours does not.
    sparse, everywhere = (results[name]["0"]["weights"] for name in ROWS[1:])
    assert sparse <= 0.001 * 4_718_592 + 1 and everywhere > 0.99 * 4_718_592
    assert [path.name for path in pictures] == ["unlearning.png"]
    # It goes on where it was: nothing is run again.
    module.run = None
    assert module.main(settings, model) == results


def test_every_mask_of_the_leaderboard_has_its_size_and_its_own_weights(script, tiny_model):
    """The localizers of neurons, too, and at a share that is no whole number of them."""
    module = script("unlearning_ways")
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (4, 16), generator=torch.Generator().manual_seed(1))
    paragraphs = Paragraphs(tokens, 10)
    memorized = own_continuations(ExactScorer(tiny_model, paragraphs), paragraphs[:2])
    sets = {"targets": memorized, "keep": paragraphs[2:]}
    found = {name: make(tiny_model, sets, 0.01, 0) for name, make in module.MASKS.items()}
    total = next(iter(found.values())).total
    # The oracle is the model itself but for one matrix: nothing else can be chosen.
    oracle = copy.deepcopy(tiny_model)
    with torch.no_grad():
        oracle.blocks[1].mlp.W_out += torch.randn(oracle.blocks[1].mlp.W_out.shape)  # pyright: ignore[reportAttributeAccessIssue]
    found["transplant"] = module.by_transplant(tiny_model, sets, 0.01, oracle)
    assert set(found["transplant"].indices) == {"blocks.1.mlp.W_out"}
    row = module.ORACLE_ROWS[0]
    with pytest.raises(InputError, match="needs a model that never read the targets"):
        module.chosen_weights(tiny_model, row, sets, SimpleNamespace(fraction=0.01, oracle=None), 0)
    assert {mask.count for mask in found.values()} == {round(0.01 * total)}
    assert all(found[a].overlap(found[b]) < 1 for a in found for b in found if a < b)
    rows = *module.ROWS, *module.ORACLE_ROWS
    assert {row.weights for row in rows} == {"all", *found} and len({row.name for row in rows}) == len(rows)
    # Whatever takes a learning rate has some to choose from.
    assert all(bool(row.rates) == (row.method in {*OBJECTIVES, "edit"}) for row in rows)


def test_how_much_of_a_change_lies_in_few_weights(script, tiny_model):
    module, one, every = script("unlearning_measures"), copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    with torch.no_grad():
        one.blocks[0].mlp.W_in[0, 0] += 1  # pyright: ignore[reportIndexIssue]
        for value in editable_parameters(every).values():
            value.add_(0.5)
    key = "squared change in its top 0.1 %"
    assert module.concentration(tiny_model, one)[key] == pytest.approx(100)
    assert module.concentration(tiny_model, every)[key] == pytest.approx(0.1, rel=0.05)
    assert module.concentration(tiny_model, copy.deepcopy(tiny_model)) == {}


def test_no_set_holds_what_any_seed_forgets(script, bundled):
    module, sets = script("unlearning"), script("unlearning_sets")
    em = np.where(np.random.default_rng(0).random(len(bundled)) < 0.4, 50, 3)
    settings = module.Settings(seeds=(0, 3), targets=8, held=8)
    found, tuned = sets.splits(bundled, em, settings)
    known = set(bundled.clusters[em == 50].tolist())
    aimed = {c for some in script("target_sets").target_clusters(bundled, em, range(5), 32).values() for c in some}
    by_id = dict(zip(bundled.ids.tolist(), em.tolist(), strict=True))
    development = {cluster for part in tuned.values() for cluster in part.clusters.tolist()}
    assert not development & aimed and set(found) == {0, 3}
    for seed, parts in found.items():
        clusters = {name: set(part.clusters.tolist()) for name, part in parts.items()}
        assert len(parts["targets"]) == 8 and clusters["targets"] <= aimed
        assert clusters["near-duplicates"] <= clusters["targets"]
        outside = [name for name in parts if name not in ("targets", "near-duplicates")]
        assert set(outside) == {*sets.MEMORIZED, "keep", "other", "never seen"}
        for place, name in enumerate(outside):
            assert not clusters[name] & (aimed | development), (seed, name)
            assert not any(clusters[name] & clusters[other] for other in outside[place + 1 :])
            memorized = name in sets.MEMORIZED
            assert all((by_id[row] == 50) == memorized for row in parts[name].ids.tolist())
            assert memorized or not clusters[name] & known
        assert set(parts["never seen"].column("seen")) == {"never seen"}
        # Neighbours are of the targets' kinds.
        kinds = [sorted(parts[name].column("source").tolist()) for name in ("targets", "memorized neighbours")]
        assert kinds[0] == kinds[1]
    assert not set(found[0]["targets"].clusters.tolist()) & set(found[3]["targets"].clusters.tolist())
    # A seed's targets do not depend on which seeds are run.
    alone, _ = sets.splits(bundled, em, module.Settings(seeds=(3,), targets=8, held=8))
    assert alone[3]["targets"].ids.tolist() == found[3]["targets"].ids.tolist()
    with pytest.raises(InputError, match="got seeds .7. and 32 targets; need seeds among"):
        sets.splits(bundled, em, module.Settings(seeds=(7,)))
    with pytest.raises(InputError, match="and 40 targets; need"):
        sets.splits(bundled, em, module.Settings(targets=40))


def test_models_that_are_not_there_leave_their_columns_out(script, tmp_path):
    module = script("unlearning")
    folders = {"oracle": tmp_path / "oracle", "other_seed": tmp_path / "seed"}
    module.DEFAULT = folders
    found = module.with_models(module.Settings(**folders))
    assert found.oracle is None and found.other_seed is None
    with pytest.raises(InputError, match="elsewhere as oracle; need the folder of a model: train it"):
        module.with_models(module.Settings(oracle=tmp_path / "elsewhere"))


def test_the_noise_page_says_what_was_measured(script, model, paragraphs, tmp_path):
    module = script("noise")
    settings = module.Settings(
        candidates=200,
        each=3,
        draws=2,
        scales=(1.0, 30.0),
        fractions=(0.001, 0.05),
        out=tmp_path,
        page=tmp_path / "p.md",
    )
    result = module.main(settings, model)
    em = result.em.sel({"curve": "weights", "set": "memorized"})
    assert float(em.sel(mask="chosen", level=1).mean()) < float(em.sel(mask="chosen", level=0).mean()) + 1e-9
    values = em.sel(mask="random", level=1).values
    assert f"{values.mean():.1f} [" in next(
        li for li in (tmp_path / "p.md").read_text().splitlines() if li.startswith("| 30 |")
    )
    found = module.by_em(model, paragraphs, module.MEMORIZED_OTHER, candidates=200, each=6, seed=0)["memorized"]
    change = mm.ablate_heads(model, found[: len(found) // 2], method="mean").em_change
    layer, head = np.unravel_index(change.values.argmin(), change.shape)
    assert result.attrs["head"] == f"L{layer}H{head}", "the head whose removal costs most gets the noise"


def test_the_oracle_page_says_what_was_measured(script, model, tmp_path):
    module = script("oracle")
    for name, factor in (("oracle", 0.5), ("seed", 0.9)):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.blocks[2].mlp.get_parameter("W_out").mul_(factor)
        mm.export(other, tmp_path / name)
    settings = module.Settings(
        seeds=(0, 1),
        all_seeds=(0, 1),
        clusters_each=3,
        candidates=400,
        targets=3,
        held=4,
        tuning_targets=2,
        oracle=tmp_path / "oracle",
        other_seed=tmp_path / "seed",
        out=tmp_path / "r",
        page=tmp_path / "p.md",
    )
    results = module.main(settings, model)
    found = results["targets"]
    assert found["paragraphs"] == found["clusters"] == 6, "three of each seed"
    assert found["bundled EM"][0] == 50 and found["distance"] > 1, "the oracle is changed more than the other model"
    need = found["oracle NLL"][0] - found["bundled NLL"][0]
    assert found["oracle NLL change"][0] == pytest.approx(need, rel=1e-4)
    row = next(line for line in (tmp_path / "p.md").read_text().splitlines() if line.startswith("| targets |"))
    assert row.endswith(f"| {found['distance']:.2f} |") and f"| {found['unit'][0]:.3f} [" in row
    # What is missing is in one MLP: it brings everything back, alone or with its layer, and no other part does.
    parts = json.loads((tmp_path / "r" / "result.json").read_text())["parts"]
    shares = {part: one["share"] for part, one in parts.items()}
    assert shares["mlp2"] == pytest.approx(1, abs=1e-4) == shares["layer2"]
    assert max(abs(share) for part, share in shares.items() if part not in ("mlp2", "layer2")) < 1e-6
    with pytest.raises(InputError, match="got no model in .*nowhere; need both: train them"):
        module.main(dataclasses.replace(settings, oracle=tmp_path / "nowhere"), model)
