from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.study.paper.model_check import PROBE, PROBE_IDS, SHAPE, ModelCheck, compared
from mechmem.study.paper.paper_sets import GROUPS, group_names, read_sets
from mechmem.study.paper.paper_settings import PaperSettings
from tests.study.paper.conftest import SMALL


def test_groups_are_those_of_the_study_and_shares_of_other_lengths():
    em = np.array([0, 10, 11, 29, 30, 49, 50])
    assert group_names(em, 50).tolist() == ["0-10", "0-10", "11-29", "11-29", "30-49", "30-49", "50"]
    assert group_names(np.array([6, 7, 19, 20, 31, 32]), 32).tolist() == [
        "0-10", "11-29", "11-29", "30-49", "30-49", "50",
    ]  # fmt: skip


def test_a_corpus_is_scored_and_grouped(bundled_model, bundled):
    sets = read_sets(replace(SMALL, limit=60), bundled_model)
    em = mm.score(bundled_model, bundled[:60]).em.values
    assert np.array_equal(sets.scored.column("em"), em)
    assert len(sets.memorized) == (em == 50).sum() and len(sets.other) == (em <= 10).sum()
    assert sum(map(len, sets.groups.values())) == 60 and not sets.scored.column("own_text").any()
    assert not sets.check.applies and any("do not apply" in sentence for sentence in sets.check.sentences)


def test_scores_of_a_scan_are_used_and_those_of_another_model_are_not(bundled_model, bundled, tmp_path):
    scores = mm.score(bundled_model, bundled[:40])
    scanned = bundled[:40].with_columns(em=scores.em.values, nll=scores.nll.values)
    scanned.save(tmp_path / "scan.parquet")
    settings = replace(SMALL, corpus=str(tmp_path / "scan.parquet"), limit=None)
    told = []
    found = read_sets(settings, bundled_model, lambda *state: told.append(state))
    assert np.array_equal(found.scored.column("nll"), scores.nll.values.astype(float)) and not told
    scanned.with_columns(em=np.full(40, 50), nll=np.zeros(40)).save(tmp_path / "scan.parquet")
    with pytest.warns(UserWarning, match="scores of another model; scoring it again"):
        again = read_sets(settings, bundled_model)
    assert np.array_equal(again.scored.column("em"), scores.em.values)


def test_the_study_s_files_are_grouped_again_by_another_model(bundled_model, published_folder):
    sets = read_sets(replace(SMALL, corpus=str(published_folder()), limit=None), bundled_model)
    em = mm.score(bundled_model, mm.bundled_paragraphs()[:12]).em.values
    assert len(sets.scored) == 12 and len(sets.memorized) == (em == 50).sum() and sets.pairs is None
    assert "grouped again" in sets.source


def test_the_study_s_files_keep_their_groups_for_the_study_s_model(bundled_model, published_folder, monkeypatch):
    monkeypatch.setattr("mechmem.study.paper.paper_sets.check_paper_model", lambda *_: ModelCheck(True, ()))
    sets = read_sets(replace(SMALL, corpus=str(published_folder()), limit=None), bundled_model)
    own = sets.scored.column("own_text")
    assert own.tolist() == [False] * 12 + [True] * 10
    assert sets.scored.column("group")[own].tolist() == ["30-49"] * 4 + ["11-29"] * 6
    assert sets.pairs is not None and len(sets.pairs[0]) == 4


def test_others_are_added_and_cut(bundled_model, bundled, published_folder, tmp_path):
    long = torch.cat([bundled.tokens[100:130], bundled.tokens[100:130]], 1)
    np.save(tmp_path / "others.npy", long.numpy())
    settings = replace(SMALL, corpus=str(published_folder()), others=str(tmp_path / "others.npy"))
    sets = read_sets(settings, bundled_model)
    assert len(sets.scored) == 42 and torch.equal(sets.scored.tokens[12:], bundled.tokens[100:130])
    np.save(tmp_path / "others.npy", long[:, :90].numpy())
    with pytest.raises(InputError, match="got others of 90 tokens for paragraphs of 100; need at least as many"):
        read_sets(settings, bundled_model)


def test_text_that_the_model_does_not_know_is_a_sentence(bundled_model, tmp_path):
    tokens = torch.randint(5, 900, (6, 100), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "random.npy", tokens.numpy())
    with pytest.raises(InputError, match=r"reproduces none of 6 paragraphs exactly \(the highest EM is \d+\); need"):
        read_sets(replace(SMALL, corpus=str(tmp_path / "random.npy")), bundled_model)
    with pytest.raises(InputError, match="got no corpus for x; name the folder of the study's public files"):
        read_sets(PaperSettings(model="x"), bundled_model)


def check(memorized, em, **changed):
    """The check of GPT-Neo 125M's own configuration and tokenizer, or with changes."""
    shape = SHAPE | {"original_architecture": "GPTNeoForCausalLM"}
    tokenizer = SimpleNamespace(
        eos_token_id=changed.pop("eos", 50_256), encode=lambda text, **_: PROBE_IDS if text == PROBE else [0] * 100
    )
    return compared(SimpleNamespace(**shape | changed), tokenizer, memorized, em)


def test_the_study_s_model_is_known_by_shape_tokenizer_and_em():
    memorized = mm.Paragraphs(torch.zeros((40, 100), dtype=torch.long)).with_columns(text=["a"] * 40)
    em = np.full(40, 50)
    em[0] = 49
    found = check(memorized, em)
    assert found.applies and found.sentences[0].startswith("the model reproduces 39 of the study's 40")
    assert check(None, None).applies
    for changed, said in (
        ({"n_layers": 11}, "n_layers 11 instead of 12"),
        ({"original_architecture": "GPT2LMHeadModel"}, "GPT2LMHeadModel"),
        ({"eos": 0}, "not GPT-2's"),
    ):
        found = check(memorized, em, **changed)
        assert not found.applies and said in found.sentences[0]
        assert found.sentences[-1] == "the published numbers do not apply to this model"
    em[:3] = 12
    found = check(memorized, em)
    assert not found.applies and "reproduces 37 of the study's 40" in found.sentences[0]


def test_the_study_s_tokenizer_gives_the_study_s_ids():
    ids = torch.ones((40, 100), dtype=torch.long)
    memorized = mm.Paragraphs(ids).with_columns(text=["a"] * 40)
    found = check(memorized, np.full(40, 50))
    assert not found.applies and "gives 0 of 32 of the study's texts the study's ids" in found.sentences[0]


def test_groups_have_one_order():
    assert GROUPS == ("0-10", "11-29", "30-49", "50")
