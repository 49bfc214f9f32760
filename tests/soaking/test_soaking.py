"""The soak would notice a command that does not survive: programs with one fault each, in seconds."""

import json
import random
import sys
from pathlib import Path

import pytest

from tests.soaking.commands import Command, undisturbed
from tests.soaking.comparison import differences
from tests.soaking.disturbances import Outcome, full_disk, kills, rivals
from tests.soaking.page import BEGIN, END, figures, put_into_page

# Three steps of a tenth of a second, each written once, whole.
SOUND = """
import pathlib, sys, time
for step in range(3):
    path = pathlib.Path(f"step-{step}")
    if not path.exists():
        time.sleep(0.1)
        pathlib.Path("temporary").write_text(str(step))
        pathlib.Path("temporary").rename(path)
"""
APPENDS = 'import time; f = open("log", "a"); f.write("x"); f.flush(); time.sleep(0.3); f.write("y")'
LEAVES = """
import os, time
name = f"temporary-{os.getpid()}"
open(name, "w").close(); time.sleep(0.3); os.unlink(name)
"""
NO_LOCK = """
import pathlib, sys, time
if pathlib.Path("busy").exists(): raise FileNotFoundError("lost a file")
pathlib.Path("busy").touch(); time.sleep(1); pathlib.Path("busy").unlink()
"""
FULL = """
for name in "ab":
    with open(name, "wb", buffering=0) as file:
        for _ in range(16):
            file.write(bytes(4096))
"""


def command(code: str, name: str = "fake") -> Command:
    return Command(name, ("-c", code), lambda _: None, (sys.executable, "-S"))


def killed(code: str, work: Path) -> Outcome:
    return kills(undisturbed(command(code), work), 4, work, random.Random(0))


def test_a_sound_program_passes(tmp_path):
    outcome = killed(SOUND, tmp_path)
    assert (outcome.times, outcome.faults) == (4, []) and outcome.identical == outcome.rounds >= 1
    assert outcome.seconds > 0 and outcome.undisturbed > 0


@pytest.mark.parametrize(("code", "fault"), [(APPENDS, "log differs"), (LEAVES, "was left behind")])
def test_what_a_kill_breaks_is_found(code, fault, tmp_path):
    outcome = killed(code, tmp_path)
    assert any(fault in each for each in outcome.faults) and outcome.identical < outcome.rounds


def test_a_rival_that_ends_with_a_traceback_is_found(tmp_path):
    reference = undisturbed(command(NO_LOCK), tmp_path)
    outcome = rivals(reference, tmp_path, random.Random(0))
    assert any("exit codes" in fault for fault in outcome.faults)
    assert any("not refused by a sentence" in fault for fault in outcome.faults)


def test_a_traceback_on_a_full_disk_is_found(tmp_path):
    reference = undisturbed(command(FULL), tmp_path)
    outcome = full_disk(reference, (0.6,), tmp_path)
    if outcome is None:
        pytest.skip("no tmpfs can be mounted here")
    assert outcome.times == 1 and "exit code 1 on a full disk" in outcome.faults[0]


def test_times_do_not_count_and_all_else_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "a.nc").write_bytes(b"same")
        (folder / "study.json").write_text(json.dumps({"finished": folder.name, "em": [{"seconds": folder.name}]}))
    assert differences(one, two) == []
    (two / "a.nc").write_bytes(b"samf")
    (two / "study.json").write_text(json.dumps({"finished": "x", "em": []}))
    (two / ".mechmem-0.partial").touch()
    (one / "b").touch()
    assert differences(one, two) == [
        "b is missing", ".mechmem-0.partial was left behind", "a.nc differs", "study.json differs",
    ]  # fmt: skip


def test_the_table_replaces_the_last_one(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    outcome = vars(Outcome("run", "SIGKILL", 5, 2, 1, 70.2, 31.0, ["heads.nc differs"]))
    put_into_page(page, figures([outcome], 3, 125.0))
    text = page.read_text()
    assert "old" not in text and text.startswith(f"before\n{BEGIN}\n| command") and text.endswith(f"{END}\nafter\n")
    assert "| `run` | SIGKILL | 5 | 2 | 1 | 70 | 31 |" in text and "seed 3: 5 kills, 2.1 minutes; faults: 1." in text
    assert "- fault: heads.nc differs" in text
    with pytest.raises(ValueError, match="need the marks"):
        put_into_page(_without_marks(tmp_path), figures([], 0, 0))


def _without_marks(folder: Path) -> Path:
    path = folder / "plain.md"
    path.write_text("nothing")
    return path
