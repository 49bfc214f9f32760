"""Damaged, foreign and missing files of a study; rivals in its folder."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from mechmem.cli import app
from mechmem.data.checksums import SUMS, damaged, recorded
from mechmem.data.errors import InputError
from mechmem.data.folder_lock import only_writer
from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.report.study_contents import RESULTS
from mechmem.report.study_report import write_report
from mechmem.study.folder import Results, StudyFolder, open_study
from mechmem.study.manifest import read_manifest, settings_of
from mechmem.study.runner import run_study
from mechmem.study.settings import StudySettings

SHORT = StudySettings(limit=40, decoded=4, gradient_sample=2)
# A study of all stages has no detector: that is made by a command of its own.
STAGE_FILES = ["paragraphs.parquet", *(name for name in RESULTS if name != "detect.nc")]
OURS = ".mechmem-0123456789abcdef0123456789abcdef.partial"


@pytest.fixture
def study(small_study, tmp_path):
    """A copy of the small study that a test may damage."""
    folder = tmp_path / "study"
    shutil.copytree(small_study.folder, folder)
    return folder


def change_a_byte(path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0xFF
    path.write_bytes(data)


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_result_has_a_checksum(small_study):
    edits = {f"edits/{path.parent.name}/{path.name}" for path in (small_study.folder / "edits").glob("*/*")}
    assert set(recorded(small_study.folder)) == {*STAGE_FILES, *edits} and damaged(small_study.folder) == []


@pytest.mark.parametrize("name", STAGE_FILES)
def test_a_damaged_result_is_refused_before_it_is_opened_with_its_stage(study, name, monkeypatch):
    change_a_byte(study / name)
    monkeypatch.setattr("mechmem.report.study_contents.load_netcdf", None)
    monkeypatch.setattr(Paragraphs, "load", None)
    stage = RESULTS[name].stage if name in RESULTS else "scan"
    sentence = rf"{name}: was damaged or changed after it was written; run stage '{stage}' again: `mechmem run --out"
    opened = open_study(study)
    with pytest.raises(InputError, match=sentence):
        _ = Results(study)[name.removesuffix(".nc")] if name in RESULTS else opened.paragraphs
    monkeypatch.undo()
    with pytest.raises(InputError, match=sentence):
        write_report(study)


def test_run_computes_a_damaged_stage_again_and_says_so(study):
    before = contents(study)
    change_a_byte(study / "gradients.nc")
    (study / "attention.nc").write_bytes(b"")
    news = []
    run_study(study, watch=news.append)
    after = contents(study)
    assert {one.stage for one in news if one.finding is not None} == {"gradients", "attention", "report"}
    said = [one.finding for one in news if one.doing == "starting"]
    assert said[0] == "computing it again, since gradients.nc was damaged or changed after it was written"
    assert {name for name in before if before[name] != after[name]} <= {"study.json", "report.html"}
    assert before.keys() == after.keys()


def test_a_damaged_edit_of_the_study_is_made_again(study, tiny_model):
    before = contents(study)
    change_a_byte(study / "edits" / "npo-top" / "edit.safetensors")
    with pytest.raises(
        InputError, match=r"edit\.safetensors: was damaged or changed .*; remove .*npo-top and make the"
    ):
        open_study(study).edits["npo-top"].apply(tiny_model)
    run_study(study)
    after = contents(study)
    changed = {name for name in before if before[name] != after.get(name)}
    # Attacks report how long each took; the order of a safetensors file's metadata is drawn by chance.
    own = {f"edits/npo-top/{name}" for name in ("attacks.nc", "edit.safetensors")}
    assert changed <= {"study.json", "report.html", SUMS} | own and before.keys() == after.keys()
    assert damaged(study) == []


def test_damaged_costs_name_the_command_that_measures_them(study):
    change_a_byte(study / "edits" / "npo-all" / "costs.nc")
    saved = open_study(study).edits["npo-all"]
    with pytest.raises(InputError, match=r"costs\.nc: was damaged .*; run `mechmem evaluate npo-all --out .*` again"):
        _ = saved.costs
    assert saved.attacks is not None


def test_a_file_that_was_written_before_its_checksum_gets_one(study):
    lines = (study / SUMS).read_text().splitlines(keepends=True)
    (study / SUMS).write_text("".join(line for line in lines if "heads.nc" not in line))
    (study / "report.html").unlink()
    run_study(study)
    assert "heads.nc" in recorded(study) and damaged(study) == []


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("heads.nc", lambda result: result.drop_vars("em_change"), "has no variable 'em_change', as stage 'heads'"),
        ("heads.nc", lambda result: result.isel(layer=0, drop=True), "need \\['set', 'layer', 'head'\\]|no variable"),
        ("heads.nc", lambda result: result.drop_attrs(), "has no attribute 'method'"),
        ("gradients.nc", lambda result: result.astype(str), "'max_gradient' holds .*; need numbers"),
        ("unlearn.nc", lambda result: result.assign_coords(edit=range(4)), "'edit' holds int64; need text"),
    ],
)
def test_a_result_without_what_its_stage_writes_names_the_stage(study, name, change, sentence):
    save_netcdf(change(load_netcdf(study / name)), study / name)
    (study / SUMS).unlink()
    for read in (lambda: Results(study)[name.removesuffix(".nc")], lambda: write_report(study)):
        with pytest.raises(InputError, match=rf"{name}: .*({sentence}).* run stage '{RESULTS[name].stage}' again"):
            read()


@pytest.mark.parametrize("name", list(RESULTS))
def test_a_result_of_another_stage_is_refused(study, name):
    other = "rare.nc" if name != "rare.nc" else "heads.nc"
    shutil.copy(study / other, study / name)
    (study / SUMS).unlink()
    with pytest.raises(InputError, match=rf"{name}: .* run stage '{RESULTS[name].stage}' again"):
        write_report(study)


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("em", lambda n: ["many"] * n, "got 'em' as string; need numbers"),
        ("em", lambda n: np.full(n, 51), "column 'em' holds 51 to 51; need 0 to 50"),
        ("em", lambda n: np.full(n, -1), "column 'em' holds -1 to -1; need 0 to 50"),
        ("nll", lambda n: ["low"] * n, "got 'nll' as string; need numbers"),
        ("set", lambda n: np.arange(n), "column 'set' does not hold text"),
        ("cluster", lambda n: [None] * n, "column 'cluster' holds object; need numbers"),
    ],
)
def test_paragraphs_with_text_where_numbers_belong_name_the_scan(study, column, values, sentence):
    paragraphs = Paragraphs.load(study / "paragraphs.parquet")
    paragraphs.with_columns(**{column: values(len(paragraphs))}).save(study / "paragraphs.parquet")
    (study / SUMS).unlink()
    for read in (lambda: open_study(study).paragraphs, lambda: write_report(study)):
        with pytest.raises(InputError, match=rf"paragraphs\.parquet: {sentence}.* run stage 'scan' again"):
            read()


def broken_manifests(text: str):
    values = json.loads(text)
    yield text[: len(text) // 2], "not readable as JSON"
    yield "[]", "holds a list"
    yield text.replace('"seed": 0', '"seed": ' + "[" * 99 + "]" * 99), "nested too deeply"
    for name in ("model", "corpus", "settings", "timings", "findings", "skipped"):
        yield json.dumps({key: value for key, value in values.items() if key != name}), f"has no '{name}'"
        yield json.dumps(values | {name: 3}), f"'{name}' is a int"
        yield json.dumps(values | {name: None}), f"'{name}' is a NoneType"
    yield json.dumps(values | {"model": {}}), "has no 'weight_hash'"
    yield json.dumps(values | {"corpus": {"sha256": None}}), "has no 'paragraphs'"
    yield json.dumps(values | {"findings": {"scan": 3}}), "'scan' is a int"
    yield json.dumps(values | {"timings": {}}), "has no 'scan'"
    yield json.dumps(values | {"timings": values["timings"] | {"scan": {"seconds": "long"}}}), "'seconds' is a str"
    yield json.dumps(values | {"settings": {"pear": 1}}), "unknown setting 'pear'"
    yield json.dumps(values | {"settings": {"seed": "x"}}), "seed"
    yield json.dumps(values | {"format": {"a": "b" * 100}}), "got a study in format"
    yield json.dumps(values | {"format": 1, "versions": [3]}), "got a study in format 1"


def test_a_damaged_manifest_is_a_sentence_for_every_command(small_study, tmp_path):
    text = (small_study.folder / "study.json").read_text()
    folder = tmp_path / "study"
    folder.mkdir()
    for number, (broken, sentence) in enumerate(broken_manifests(text)):
        (folder / "study.json").write_text(broken)
        for read in (read_manifest, settings_of, open_study, run_study):
            with pytest.raises(InputError, match=sentence) as caught:
                read(folder)
            assert "study.json" in str(caught.value) and "\n" not in str(caught.value), number
        answer = CliRunner().invoke(app, ["heads", "--out", str(folder)])
        assert answer.exit_code == 2 and sentence in " ".join(answer.output.split())
    assert [path.name for path in folder.iterdir()] == ["study.json"]


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path):
    folder, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    for made in (folder, elsewhere, folder / ".cut.partial", folder / OURS):
        made.mkdir()
    for path in (folder / ".video.partial.mp4", folder / ".cut.partial" / "a", folder / OURS / "b", elsewhere / "c"):
        path.write_text("mine")
    (folder / ".link.partial").symlink_to(elsewhere)
    (folder / f"{OURS}.nc").symlink_to(elsewhere / "c")
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(InputError, match=r"is not empty and holds no study\.json \(it holds \.cut\.partial\)"):
        run_study(folder, SHORT)
    assert CliRunner().invoke(app, ["run", "--out", str(folder)]).exit_code == 2
    assert sorted(path.name for path in folder.rglob("*")) == before and (elsewhere / "c").read_text() == "mine"


def test_in_a_study_only_our_own_partials_are_removed(tmp_path):
    folder, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    run_study(folder, SHORT, until="scan")
    (folder / "edits" / "mine" / OURS).mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / OURS).write_text("theirs")
    (folder / "edits" / "link").symlink_to(elsewhere)
    (folder / ".video.partial.mp4").write_text("mine")
    (folder / OURS).write_text("left by a killed process")
    run_study(folder, until="gradients")
    assert (folder / ".video.partial.mp4").read_text() == "mine" and (elsewhere / OURS).read_text() == "theirs"
    assert not (folder / OURS).exists() and not (folder / "edits" / "mine" / OURS).exists()


def test_a_second_run_in_a_folder_is_told_who_works_there(tmp_path):
    folder = tmp_path / "s"
    code = f"""if True:
        from mechmem.study.settings import StudySettings
        from mechmem.study.runner import run_study
        run_study({str(folder)!r}, {replace(SHORT, limit=600)!r}, until="heads")"""
    first = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    deadline = time.monotonic() + 200
    while not (folder / "study.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(InputError, match=rf"process {first.pid} on .* since 2.* works there"):
        run_study(folder, until="heads")
    answer = CliRunner().invoke(app, ["gradients", "--out", str(folder)])
    assert answer.exit_code == 2 and f"process {first.pid}" in " ".join(answer.output.split())
    assert first.wait(300) == 0
    assert {path.name for path in folder.iterdir()} == {"study.json", "paragraphs.parquet", "heads.nc", SUMS}


def test_whatever_writes_in_a_study_s_folder_needs_its_lock(study):
    from threading import Thread

    from mechmem.study.edit_making import make_edit
    from mechmem.study.edit_settings import EditSettings
    from mechmem.study.edits import attack_edit, evaluate_edit

    opened, refused = open_study(study), []
    (study / "gradients.nc").unlink()

    def attempt():
        for write in (
            lambda: run_study(study),
            lambda: write_report(study),
            lambda: make_edit(opened, "new", EditSettings()),
            lambda: evaluate_edit(opened, "npo-all"),
            lambda: attack_edit(opened, "npo-all"),
            lambda: opened.save(xr.Dataset(), "x.nc"),
        ):
            with pytest.raises(InputError, match="works there"):
                write()
            refused.append(write)

    with only_writer(study):
        thread = Thread(target=attempt)
        thread.start()
        thread.join()
    assert len(refused) == 6 and damaged(study) == []


def test_a_finished_study_that_nobody_may_write_is_still_read(study):
    mounted = subprocess.run(["mount", "--bind", study, study], capture_output=True)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", study], check=True)
        assert run_study(study)["finished"]
        answer = CliRunner().invoke(app, ["run", "--out", str(study)])
        assert answer.exit_code == 0 and "nothing to run" in " ".join(answer.output.split())
        assert StudyFolder(study, settings_of(study)).comparable and "heads" in open_study(study).results
        with pytest.raises(InputError, match="cannot be written"):
            write_report(study)
    finally:
        subprocess.run(["umount", study], check=True)
