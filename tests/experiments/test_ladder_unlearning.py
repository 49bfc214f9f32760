"""Unlearning on the ladder: targets are late documents, the oracle is the snapshot before; claims are differences."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError

DOCUMENTS = [
    *[(0, "spread")] * 6,
    *[(2, "spread")] * 9,
    *[(64, "spread")] * 6,
    *[(16, "late")] * 4,
]


@pytest.fixture
def rung(script, tmp_path):
    """The folder of a model of two layers that was taught all documents with 16 copies or more after its snapshot."""
    training, corpus, rungs = (script(name) for name in ("corpus_training", "ladder_corpus", "ladder_rungs"))
    generator = np.random.default_rng(0)
    made = []
    for copies, condition in DOCUMENTS:
        base = generator.integers(1, 4096, 150).astype(np.uint16)
        made.append(corpus.Inserted("kind", copies, condition, base, base[::-1].copy(), base[None, :0]))
    folder = tmp_path / "1M-small-seed0"
    table = corpus.document_table(made)
    folder.mkdir()
    table.save(folder / "documents.parquet")
    model = training.build(training.ModelTraining(n_layers=2, d_model=32, n_heads=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    training.save_model(model, rungs.snapshot_folder(folder, 6))
    often = table.tokens[(table.column("copies") >= 16) & (table.column("text_of") == "base")]
    for _ in range(25):
        training.descend(model, optimizer, often, 1.0)
    training.save_model(model, rungs.snapshot_folder(folder, 8))
    for step in (6, 8):
        script("ladder_training").tokenizer().save_pretrained(rungs.snapshot_folder(folder, step))
    (folder / "training.json").write_text(json.dumps({"snapshot_sha256": {"6": "", "8": ""}}))
    return folder


@pytest.mark.filterwarnings(
    "ignore:the edit (taught|removed) nothing:RuntimeWarning", "ignore:.*diverged:RuntimeWarning"
)
def test_each_claim_is_a_difference_of_what_was_measured(script, rung, capsys):
    module, table = script("ladder_unlearning"), script("ladder_unlearning_table")
    options = {"tuning_targets": 2, "held": 2, "steps": 3, "fraction": 0.02, "work": rung.parent}
    settings = module.Settings(rungs=(rung.name,), rows=(module.TOP, module.ALL, module.EDIT), **options)
    module.main(settings)
    assert capsys.readouterr().out.count("never inserted kl") == 6
    results = table.unlearned(rung)
    late = [row for row, (_, condition) in enumerate(DOCUMENTS) if condition == "late"]
    assert sorted(table.values_of(results, module.TOP, "targets nll")[1].tolist()) == late
    # What was measured is what the row's own edit gives.
    documents = sys.modules["ladder_measure"].documents_of(rung)
    parts, search = module.split(documents, settings)
    original, oracle = (mm.load_model(module.snapshot_folder(rung, step), device="cpu") for step in (8, 6))
    goal = float(mm.score(original, parts[0]["never inserted"]).nll.mean())
    how = SimpleNamespace(steps=3, fraction=0.02, target_em=None, target_nll=goal, oracle=None)
    rates = json.loads((rung / "unlearning/rates.json").read_text())
    (row,) = (row for row in module.rows_of(settings) if row.name == module.ALL)
    # So few steps ask for a rate above all that the row begins with.
    assert rates[module.ALL] == pytest.approx(3 * max(row.rates))
    edited, _ = module.run(original, row, parts[1], how, 0, rates[module.ALL])
    known = results[module.ALL]["1"]
    for name in ("memories", "never inserted"):
        np.testing.assert_allclose(known[f"{name} kl"], mm.kl(original, edited, parts[1][name]), atol=1e-5)
        np.testing.assert_allclose(known[f"{name} oracle_kl"], mm.kl(edited, oracle, parts[1][name]), atol=1e-5)
    before = table.values_of(results, module.BEFORE, "targets nll")[0]
    assert before.mean() < goal - 0.3, "there is something to unlearn"
    assert table.values_of(results, module.ALL, "targets nll")[0].mean() > before.mean() + 0.1
    assert table.values_of(results, module.BEFORE, "never inserted distance")[0].mean() == pytest.approx(1)
    assert not table.values_of(results, module.ORACLE, "targets distance")[0].any()
    # No set shares a document with another.
    sets = [*({key: part for key, part in parts[0].items()}.values()), parts[1]["targets"], *search.values()]
    ids = np.concatenate([part.ids for part in sets])
    assert len(set(ids.tolist())) == len(ids)
    claims = table.claims({rung.name: results})[rung.name]
    kl = {name: np.mean([run["never inserted kl"] for run in results[name].values()]) for name in results}
    said = f"KL on text never inserted {kl[module.TOP] - kl[module.ALL]:+.3f} ["
    assert len(claims) == 2 and said in next(iter(claims.values()))
    assert [table._with_word(0, *ends).split("(")[1] for ends in ((1, 2), (-2, -1), (-1, 1))] == [
        "higher)",
        "lower)",
        "not told apart)",
    ]
    # Nothing is run again, another number of steps is refused, and so is a row that has no rate.
    module.run = None
    assert module.unlearn_rung(settings, rung) == results
    with pytest.raises(InputError, match="steps was 3, now 9"):
        module.main(module.Settings(rungs=(rung.name,), **options | {"steps": 9}))
    with pytest.raises(InputError, match="got row 'K-FAC'; need one of contrastive"):
        module.main(module.Settings(rungs=(rung.name,), rows=("K-FAC",), **options))
    assert table.unlearned(rung.parent) == {}
