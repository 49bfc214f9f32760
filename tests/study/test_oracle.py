"""A study whose edits are compared with a model that never read their targets."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.model.export import export
from mechmem.report.sections.oracle import oracle_sentences
from mechmem.report.study_report import write_report
from mechmem.study.folder import StudyFolder
from mechmem.study.runner import run_study
from mechmem.study.sets import evaluation_sets
from mechmem.study.settings import StudySettings

SMALL = StudySettings(limit=300, targets=3, evaluated=6, decoded=0, edits=("npo all",), steps=2)


def moved(model, seed):
    """Another model of the same recipe: every matrix a little elsewhere."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.2 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return other


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A file of texts that should go, and two other models."""
    folder, model = tmp_path_factory.mktemp("models"), mm.load_model("bundled", processing="raw", device="cpu")
    for name, seed in (("oracle", 1), ("seed", 2)):
        export(moved(model, seed), folder / name)
    paragraphs = mm.bundled_paragraphs()[:300]
    em = mm.score(model, paragraphs).em.values
    rows = np.flatnonzero(em == paragraphs.continuation_len)[5:13]
    paragraphs.select(rows).save(folder / "unread.parquet")
    names = {"targets_from": "unread.parquet", "oracle": "oracle", "oracle_scale": "seed"}
    return replace(SMALL, **{name: str(folder / file) for name, file in names.items()})


@pytest.fixture(scope="module")
def study(tmp_path_factory, settings):
    folder = tmp_path_factory.mktemp("s") / "study"
    run_study(folder, settings, until="unlearn")
    write_report(folder)
    return StudyFolder(folder, settings)


def test_targets_are_of_the_texts_that_should_go(study, settings):
    named = mm.Paragraphs.load(settings.targets_from)
    texts = set(map(tuple, named.tokens.tolist()))
    targets = study.edits["npo-all"].targets
    assert len(targets) == 3 and set(map(tuple, targets.tokens.tolist())) <= texts
    sets, keep = evaluation_sets(study)
    for part in (sets["held-out memorized"], sets["other"], keep):
        assert not np.isin(part.clusters, named.clusters).any()


def test_its_results_and_report_say_how_near_each_edit_comes(study):
    found = study.results["unlearn"]
    edited = study.edits["npo-all"].apply(study.model)
    oracle, scale = study.beside
    sets = {"targets": study.edits["npo-all"].targets}
    alone = mm.evaluate(study.model, edited, sets, oracle=oracle, oracle_scale=scale)
    for name in ("oracle_kl", "oracle_distance"):
        for edit, row in (("original", "before"), ("NPO, all weights", "after")):
            kept, slow = (each[name].sel({"set": "targets"}) for each in (found, alone))
            assert float(kept.sel(edit=edit)) == pytest.approx(float(slow.sel(model=row)), rel=1e-4), name
    assert float(found.oracle_kl.sel({"set": "targets", "edit": "original"})) > 0
    own = float(alone.em.sel({"set": "targets", "model": "oracle"}))
    assert float(found.em_of_oracle.sel({"set": "targets"})) == own
    # The unit is no change of the original.
    assert (found.oracle_scale.values > 0).all()
    (first, second) = oracle_sentences(found)
    assert f"{float(found.oracle_distance.sel({'set': 'targets'})[1]):.2f}" in first and "are 1 apart" in second
    html = (study.folder / "report.html").read_text()
    assert "Beside a model that never read the targets" in html and "the oracle itself reproduces" in html


def test_bad_combinations_are_refused_before_anything_is_written(tmp_path, settings):
    with pytest.raises(InputError, match="without targets_from"):
        replace(settings, targets_from=None)
    with pytest.raises(InputError, match="oracle_scale without an oracle"):
        replace(settings, oracle=None)
    for wrong, said in (
        ({"oracle": "bundled"}, "got the original model as oracle"),
        ({"oracle": str(tmp_path / "nowhere")}, "nowhere"),
        ({"targets_from": str(tmp_path / "none.parquet")}, "no such file"),
    ):
        with pytest.raises(InputError, match=said):
            run_study(tmp_path / "study", replace(settings, **wrong))
        assert not (tmp_path / "study").exists()
