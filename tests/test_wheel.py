"""The wheel as a user installs it: all files, the command, a small run, without the developers' tools."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

HOUSE = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
# Importing these fails in the environment of the wheel, as where the extras are not installed.
EXTRAS = ("ray", "pytest", "_pytest", "xdist", "ruff", "pyright")


def run(*command: str | Path, cwd: Path) -> str:
    # A PYTHONPATH would put this checkout before the wheel.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "200"}
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=clean, timeout=600)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(HOUSE / "mechmem", source / "mechmem", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HOUSE / name, source)
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel) -> Path:
    """A new environment with the wheel, which sees this one's packages but not its mechmem."""
    clean = wheel.parent / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", clean, cwd=wheel.parent)
    run(*PIP, "--python", clean / "bin/python", "install", "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    (packages,) = clean.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched; .pth files in it, such as an editable mechmem's, are not read.
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))"
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{blocked}\n")
    return clean


def test_the_wheel_holds_every_file_and_the_licence(wheel):
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    here = {str(f.relative_to(HOUSE)) for f in (HOUSE / "mechmem").rglob("*") if f.is_file()}
    assert {name for name in here if "__pycache__" not in name} == {n for n in names if n.startswith("mechmem/")}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Dist: transformers<6,>=5" in metadata


def test_the_installed_command_and_library_work(environment, tmp_path):
    assert "unlearn" in run(environment / "bin/mechmem", "--help", cwd=tmp_path)
    code = (
        "import mechmem as mm\n"
        "print(mm.__file__)\n"
        "scores = mm.score(mm.load_model('bundled'), mm.bundled_paragraphs()[:2])\n"
        "print(len(scores.nll), len(mm.bundled_unigram_counts()))"
    )
    where, sizes = run(environment / "bin/python", "-c", code, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(environment)
    assert sizes == "2 4096"


def test_the_installed_command_runs_a_small_study(environment, tmp_path):
    if "--set" not in run(environment / "bin/mechmem", "run", "--help", cwd=tmp_path):
        pytest.skip("mechmem run has no --set to make a study small")
    small = {"gradient_sample": 2, "ablation_sample": 2, "pairs": 1, "targets": 2, "evaluated": 4, "decoded": 0}
    small |= {"steps": 3, "attack_prefixes": 2, "attack_samples": 2, "relearning_steps": 2, "edits": '["npo top"]'}
    settings = [argument for name, value in small.items() for argument in ("--set", f"{name}={value}")]
    said = run(environment / "bin/mechmem", "run", "--out", "study", "--limit", "300", *settings, cwd=tmp_path)
    assert (tmp_path / "study/report.html").stat().st_size > 100_000, said
    assert (tmp_path / "study/edits/npo-top").is_dir()
