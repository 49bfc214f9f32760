"""The scripts of interventions, run small on the bundled model: what their pages say is what was measured."""

import copy
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


@pytest.mark.filterwarnings("ignore:the edit (taught|removed) nothing:RuntimeWarning")
def test_the_unlearning_leaderboard_says_what_was_measured(script, model, tmp_path):
    module = script("unlearning")
    pictures: list[Path] = []
    module.photograph = lambda _, path: pictures.append(path)
    names = ("contrastive, all", "edit, top 0.1 %", "head drop", "paper's recipe", "paper's recipe, decay everywhere")
    settings = module.Settings(
        seeds=(0,),
        candidates=400,
        targets=3,
        held=4,
        steps=2,
        relearning=10,
        rows=names,
        out=tmp_path / "r",
        page=tmp_path / "p.md",
    )
    results = module.main(settings, model)
    text = (tmp_path / "p.md").read_text()
    run = results["contrastive, all"]["0"]
    row = next(line for line in text.splitlines() if line.startswith("| contrastive, all |"))
    assert f"{run['targets EM']:.1f} ± 0.0" in row and f"{run['other KL']:.3f}" in row
    assert results["before"]["0"]["targets EM"] == 50 and results["before"]["0"]["weights"] == 0
    # The paper's decay moves weights outside its mask; ours does not.
    sparse, everywhere = (results[name]["0"]["weights"] for name in names[3:])
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
    assert f"{values.mean():.1f} ±" in next(
        li for li in (tmp_path / "p.md").read_text().splitlines() if li.startswith("| 30 |")
    )
    found = module.by_em(model, paragraphs, module.MEMORIZED_OTHER, candidates=200, each=6, seed=0)["memorized"]
    change = mm.ablate_heads(model, found[: len(found) // 2], method="mean").em_change
    layer, head = np.unravel_index(change.values.argmin(), change.shape)
    assert result.attrs["head"] == f"L{layer}H{head}", "the head whose removal costs most gets the noise"
