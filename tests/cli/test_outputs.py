"""What every command does where it cannot write: on a full disk, in a place that nobody can write, with any umask."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mechmem.cli import app
from mechmem.data.checksums import SUMS, damaged
from mechmem.data.paragraphs import Paragraphs
from mechmem.study.folder import open_study

# A page of room, for the lock and for the list of checksums.
ROOM = 16 << 10
# Command, words, what it writes and which is removed before, from the disk's root.
WRITING = {
    "patch": (["patch", "--out", "study", "--pos", "all", "--count", "2"], "study/patches/perturbed-z.nc"),
    "head": (["head", "L0H1", "--out", "study", "--sample", "2"], "study/head-L0H1.nc"),
    "report": (["report", "study"], "study/report.html"),
    "run": (["run", "--out", "study"], "study/unlearn.nc"),
    "localize": (["localize", "--out", "study", "--method", "gradient", "--sample", "2"], "study/neurons-gradient.nc"),
    "unlearn": (["unlearn", "--out", "study", "--name", "n", "--steps", "2"], "study/edits/n/edit.safetensors"),
    "edit": (["edit", "--out", "study", "--name", "n", "--steps", "1"], "study/edits/n/edit.safetensors"),
    "memorize": (["memorize", "--out", "study", "--name", "n", "--steps", "1"], "study/edits/n/edit.safetensors"),
    "evaluate": (["evaluate", "npo-all", "--out", "study", "--no-attacks"], "study/edits/npo-all/costs.nc"),
    "export": (["export", "npo-all", "exported", "--out", "study"], "exported/model.safetensors"),
    "detect": (
        [
            "detect",
            "--out",
            "study",
            "--features",
            "output",
            "--method",
            "logistic",
            "--trained",
            "30",
            "--evaluated",
            "20",
        ],
        "study/detect.nc",
    ),
    "perturb": (["perturb", "--out", "p.nc", "--limit", "2", "--corpus", "few.parquet"], "p.nc"),
    "ladder": (["ladder", "--models", "bundled", "--out", "l.nc", "--limit", "4", "--prefix-len", "20"], "l.nc"),
    "scan": (["scan", "--out", "p.parquet", "--limit", "60"], "p.parquet"),
    "scan of a study": (["scan", "--out", "new", "--limit", "60"], "new/paragraphs.parquet"),
}


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk of 150 MiB with nothing on it, the current folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    monkeypatch.chdir(folder)
    yield folder
    monkeypatch.chdir(tmp_path)
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, room: int) -> Path:
    filler = folder / "filler"
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - room)))
    return filler


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said_by(words: list[str], code: int) -> str:
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == code, answer.output + repr(answer.exception)
    return " ".join(answer.output.split())


@pytest.mark.parametrize("command", WRITING)
def test_on_a_full_disk_every_command_leaves_what_was_there_and_goes_on_later(small_study, disk, command):
    words, written = WRITING[command]
    if "study" in words:
        shutil.copytree(small_study.folder, disk / "study")
        # Removed when a stage runs, which would make room.
        (disk / "study" / "report.html").unlink()
    if "few.parquet" in words:
        Paragraphs.load(small_study.folder / "paragraphs.parquet").save(disk / "few.parquet")
    (disk / written).unlink(missing_ok=True)
    before = contents(disk)
    filler = fill(disk, ROOM)
    said = said_by(words, 2)
    assert "the disk is full (" in said and "free some space and run the same command again" in said
    filler.unlink()
    after = contents(disk)
    # A study's account of itself and its checksums may change; what was begun may lie beside what was there.
    kept = {name: data for name, data in before.items() if Path(name).name not in ("study.json", SUMS)}
    assert {name: after.get(name) for name in kept} == kept
    assert not [name for name in after if ".partial" in name and "scan/" not in name]
    said_by(words, 0)
    assert (disk / written).is_file() and (not (disk / "study").exists() or damaged(disk / "study") == [])


def commands_with_an_output(out: str) -> list[list[str]]:
    of_a_study = [
        ["run"],
        ["head"],
        ["heads"],
        ["patch"],
        ["gradients"],
        ["localize"],
        ["detect"],
        ["unlearn"],
        ["edit"],
        ["memorize"],
        ["paper", "--model", "bundled"],
    ]
    return [
        *([*words, "--out", out] for words in of_a_study),
        ["evaluate", "x", "--out", out],
        ["scan", "--out", out],
        ["scan", "--out", f"{out}.parquet"],
        ["perturb", "--out", f"{out}.nc"],
        ["ladder", "--models", "bundled", "--out", f"{out}.nc"],
    ]


@pytest.mark.parametrize("kind", ["file", "below a file", "loop", "long", "far too long", "read-only"])
def test_an_output_that_cannot_be_written_is_found_before_any_work(tmp_path, request, monkeypatch, kind):
    place = request.getfixturevalue("disk") if kind == "read-only" else tmp_path
    for name in ("file", "file.nc", "file.parquet"):
        (tmp_path / name).write_text("x")
    for suffix in ("", ".nc", ".parquet"):
        (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    if kind == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    out = {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file" / "below",
        "loop": tmp_path / "loop",
        "long": tmp_path / ("x" * 256),
        "far too long": tmp_path.joinpath(*["deep" * 50] * 30),
        "read-only": place / "out",
    }[kind]
    monkeypatch.setattr("mechmem.model.load.load_checkpoint", None, raising=False)
    before = sorted(tmp_path.rglob("*"))
    for words in commands_with_an_output(str(out)):
        if kind == "file" and Path(words[-1]).suffix:
            continue
        answer = CliRunner().invoke(app, words)
        assert answer.exit_code == 2 and "error:" in answer.output, (words, answer.output, answer.exception)
        assert "another" in answer.output or "need" in answer.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_file_has_the_mode_that_the_umask_gives(tmp_path, umask):
    study = tmp_path / "study"
    old = os.umask(umask)
    try:
        sizes = [word for name in ("targets=3", "evaluated=6", "gradient_sample=2") for word in ("--set", name)]
        said_by(["gradients", "--out", str(study), "--limit", "200", *sizes], 0)
        said_by(["unlearn", "--out", str(study), "--name", "n", "--steps", "1"], 0)
        said_by(["localize", "--out", str(study), "--method", "gradient", "--sample", "2"], 0)
        said_by(["export", "n", str(tmp_path / "exported"), "--out", str(study)], 0)
        said_by(["scan", "--out", str(tmp_path / "p.parquet"), "--limit", "40"], 0)
        said_by(
            ["perturb", "--out", str(tmp_path / "q.nc"), "--limit", "2", "--corpus", str(tmp_path / "p.parquet")], 0
        )
        said_by(["report", str(study)], 0)
    finally:
        os.umask(old)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert len(modes) > 20
    wrong = {
        str(path.relative_to(tmp_path)): oct(mode)
        for path, mode in modes.items()
        if mode != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert wrong == {}
    assert "n" in open_study(study).edits
