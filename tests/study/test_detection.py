"""A study's detector: trained and judged on clusters apart, written whole, and gone on with after a stop."""

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import mechmem.study.detection as detection
from mechmem.cli.choices import DetectMethod
from mechmem.data.checksums import damaged, recorded
from mechmem.data.errors import InputError
from mechmem.detect.training.candidates import DetectorMethod
from mechmem.report.page import View
from mechmem.report.sections.detection import detection_section
from mechmem.report.study_files import read_study
from mechmem.study.config import apply_settings
from mechmem.study.detection import FILES, WORK, detection_sets, run_detection
from mechmem.study.detection_examples import EXAMPLES, example_rows
from mechmem.study.detection_settings import DetectionSettings
from mechmem.study.folder import StudyFolder, open_study


@pytest.fixture
def copied(detected_study, tmp_path):
    """A study with a detector, to change."""
    shutil.copytree(detected_study.folder, tmp_path / "study")
    return open_study(tmp_path / "study")


def never(*_, **__):
    raise AssertionError("this was done already")


def test_both_sets_are_on_both_sides_and_no_cluster_is(detected_study):
    study = open_study(detected_study.folder)
    memorized, other, judged = detection_sets(study, detected_study.settings)
    assert set(memorized.column("set")) == {"memorized"} and set(other.column("set")) == {"other"}
    assert set(judged.column("set")) == {"memorized", "other"}
    trained = set(memorized.clusters.tolist()) | set(other.clusters.tolist())
    assert not trained & set(judged.clusters.tolist())
    few = replace(detected_study.settings, trained=3, evaluated=2)
    assert [len(each) for each in detection_sets(study, few)] == [3, 3, 4]


def test_the_folder_holds_the_detector_its_judgement_and_checksums(detected_study):
    study = open_study(detected_study.folder)
    found = study.results["detect"]
    assert set(FILES) <= set(recorded(study.folder)) and damaged(study.folder) == []
    assert not (study.folder / WORK).exists()
    assert study.detector.online and study.detector.generation_len == study.paragraphs.continuation_len
    assert json.loads(found.attrs["settings"])["trained"] == detected_study.settings.trained
    assert {"detector", "baseline"} == set(found.kind.values.tolist())
    judged = detection_sets(study, detected_study.settings)[2]
    assert set(found.paragraph.values.tolist()) <= set(judged.ids.tolist())


def test_examples_show_what_was_said_and_the_scores_that_were_given(detected_study):
    study = open_study(detected_study.folder)
    found, prefix = study.results["detect"], study.paragraphs.prefix_len
    row_of = {identity: row for row, identity in enumerate(found.paragraph.values.tolist())}
    decode = study.model.tokenizer.decode  # pyright: ignore[reportOptionalMemberAccess]
    for place, identity in enumerate(found.example_id.values.tolist()):
        row, score = row_of[identity], found.example_score.values[place]
        assert np.isnan(score[:prefix]).all()
        np.testing.assert_allclose(score[prefix + found.step.values], found.score.values[row], rtol=1e-6)
        said = "".join(str(text) for text in found.example_text.values[place, prefix:])
        assert said.replace("↵", "\n").replace("·", " ").split() == str(decode(found.said.values[row].tolist())).split()
        flag = int(found.first_flag[row])
        assert int(found.example_alarm[place]) == (-1 if flag < 0 else prefix + flag)
        recites = str(found.example_kind.values[place]).startswith("recitation")
        assert recites == (int(found.label[row]) == 1)


def test_examples_are_of_each_kind_and_fill_up():
    # What lies between, -1, is no example.
    label = np.array([1] * 8 + [0] * 8 + [-1] * 8)
    flag = np.array([3, 3, 3, 3, 3, -1, -1, 0] + [5, -1, -1, -1, -1, -1, -1, -1] + [4, -1] * 4)
    rows, kinds = example_rows(label, flag, seed=0)
    assert kinds == [
        "recitation, flagged", "recitation, flagged", "recitation, missed", "no recitation, false alarm",
        "no recitation, no alarm", "no recitation, no alarm",
    ]  # fmt: skip
    assert len(set(rows)) == EXAMPLES
    assert label[rows].tolist() == [int(kind.startswith("recitation")) for kind in kinds]
    assert example_rows(label, flag, seed=0) == (rows, kinds) != example_rows(label, flag, seed=1)
    # Without misses and false alarms the others take their places.
    _, kinds = example_rows(np.array([1] * 4 + [0] * 4), np.array([0] * 4 + [-1] * 4), seed=0)
    assert kinds == ["recitation, flagged"] * 2 + ["no recitation, no alarm"] * 4
    _, kinds = example_rows(np.array([1, 1, 1]), np.array([0, 0, -1]), seed=0)
    assert kinds == ["recitation, flagged"] * 2 + ["recitation, missed"]


def test_the_same_settings_again_compute_nothing(copied, detected_study, monkeypatch):
    monkeypatch.setattr(detection, "train_detector", never)
    monkeypatch.setattr(detection, "evaluate_detector", never)
    before = {path: path.stat().st_mtime_ns for path in copied.folder.rglob("*")}
    found = run_detection(copied, detected_study.settings)
    assert found.identical(copied.results["detect"])
    # Folders too: a study can be read where nobody may write.
    assert {path: path.stat().st_mtime_ns for path in copied.folder.rglob("*")} == before


def test_another_detector_is_not_mixed_in(copied, detected_study):
    other = replace(detected_study.settings, method="boosting")
    with pytest.raises(InputError, match=r"detect.nc: .*method was 'logistic', now 'boosting'.*remove detect.nc"):
        run_detection(copied, other)


def test_a_call_that_was_stopped_while_judging_goes_on_with_the_same_numbers(copied, detected_study, monkeypatch):
    before = copied.results["detect"]
    for name in FILES:
        (copied.folder / name).unlink()

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(detection, "evaluate_detector", stopped)
        run_detection(copied, detected_study.settings)
    assert (copied.folder / WORK).is_dir() and not (copied.folder / "detect.nc").exists()
    with pytest.raises(InputError, match=r"detector-work: .*features was .*'output'.*, now .*'lens'"):
        run_detection(copied, replace(detected_study.settings, features=("lens",)))
    with monkeypatch.context() as patched:
        patched.setattr(detection, "train_detector", never)
        after = run_detection(copied, detected_study.settings)
    assert after.identical(before) and not (copied.folder / WORK).exists()


def test_a_damaged_file_is_made_again(copied, detected_study, monkeypatch):
    path = copied.folder / "detector" / "detector.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(detection, "train_detector", lambda *_, **__: open_study(detected_study.folder).detector)
    run_detection(copied, detected_study.settings)
    assert damaged(copied.folder) == [] and copied.detector.method == "logistic"


def test_too_few_clusters_are_said_before_anything_is_written(detected_study, tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    whole = open_study(detected_study.folder)
    paragraphs = whole.paragraphs
    kept = np.flatnonzero(paragraphs.column("set") == "memorized")[:1]
    other = np.flatnonzero(paragraphs.column("set") == "other")
    paragraphs.select(np.concatenate([kept, other])).save(folder / "paragraphs.parquet")
    study = StudyFolder(folder, whole.settings)
    with pytest.raises(InputError, match="clusters of memorized paragraphs; need at least 2 to train a detector"):
        run_detection(study, detected_study.settings)
    assert [path.name for path in folder.iterdir()] == ["paragraphs.parquet"]
    with pytest.raises(InputError, match="has no detector yet; train one with `mechmem detect --out"):
        _ = study.detector


def test_the_report_of_a_real_study_has_the_section(detected_study):
    section = detection_section(read_study(detected_study.folder))
    assert section is not None and all("nan" not in sentence for sentence in section.answer)
    assert any(isinstance(block, View) for block in section.blocks)
    assert "Can it be noticed while decoding?" in (detected_study.folder / "report.html").read_text()


def test_settings_are_checked_and_their_choices_are_the_library_s():
    assert DetectMethod == DetectorMethod
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"features": ("heads",)}, r"got features\[0\] 'heads'; need one of output, prefix, residual, lens"),
        ({"features": ()}, "got the features"),
        ({"features": ("output", "output")}, "each once"),
        ({"false_alarms": 1.0}, "got 1.0 as false_alarms"),
        ({"trained": 0}, "got 0 as trained"),
    )
    for values, said in wrong:
        with pytest.raises(InputError, match=said):
            apply_settings(DetectionSettings(), values)
