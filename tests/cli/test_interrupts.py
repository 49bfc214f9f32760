"""Ctrl-C at any moment: one line that is true."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mechmem
from mechmem.cli.commands import GOES_ON, STARTS_AGAIN
from mechmem.cli.interrupts import noting_interrupts

ROOT = Path(mechmem.__file__).parents[1]


def begin(folder: Path, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "mechmem.cli", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stop(process: subprocess.Popen) -> tuple[int, list[str]]:
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    # Python ends by the signal itself where it was within an `exec`; for a shell that is 130 as well.
    return 130 if process.returncode == -signal.SIGINT else process.returncode, said.decode().splitlines()


@pytest.mark.parametrize("seconds", [0.15, 0.25, 0.35, 0.45, 0.6, 0.8, 1.2, 2.0])
def test_one_line_says_that_the_command_can_be_repeated(seconds, tmp_path):
    process = begin(tmp_path, "unlearn", "--name", "x", "--limit", "40")
    # Python's own beginning is not ours: counted from when our first module is read.
    time.sleep(seconds)
    code, lines = stop(process)
    assert code == 130 and len(lines) == 1 and lines[0] in (GOES_ON, STARTS_AGAIN), lines


DROPPED = """
import os, signal, sys, time
from mechmem.cli.commands import GOES_ON, plain_endings

class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

with plain_endings(lambda: GOES_ON):
    held = Held()
    del held
    print("was dropped", flush=True)
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        time.sleep(0.01)
    print("reached the end", flush=True)
"""


@pytest.mark.parametrize("seconds", [0, 60])
def test_an_interrupt_that_a_destructor_drops_ends_the_command(seconds, tmp_path):
    """The command is stopped soon after; one that has nothing left to do ends in the same way."""
    (tmp_path / "main.py").write_text(
        "import typer\ntry:\n"
        + "".join(f"    {line}\n" for line in DROPPED.strip().splitlines())
        + "except typer.Exit as ended:\n    sys.exit(ended.exit_code)\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "main.py", str(seconds)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 130 and done.stderr.splitlines() == [GOES_ON], done.stderr
    assert done.stdout.splitlines()[0] == "was dropped" and time.monotonic() - started < 50
    assert seconds == 0 or "reached the end" not in done.stdout


def test_other_dropped_errors_are_told_as_before():
    class Bad:
        def __del__(self) -> None:
            raise ValueError("bad end")

    told: list[object] = []
    former, sys.unraisablehook = sys.unraisablehook, lambda unraisable: told.append(unraisable.exc_type)
    try:
        with noting_interrupts() as interrupted:
            Bad()
        assert told == [ValueError] and not interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        sys.unraisablehook = former


def test_what_does_not_go_on_does_not_say_so(tmp_path):
    process = begin(tmp_path, "localize")
    time.sleep(3)
    code, lines = stop(process)
    assert code == 130 and lines[-1] == STARTS_AGAIN and not list(tmp_path.iterdir())


def test_a_stopped_edit_goes_on_by_the_same_command(tmp_path):
    study = ["--out", "s", "--limit", "300", "--set", "targets=3", "--set", "evaluated=8", "--set", "decoded=0"]
    edit = ["unlearn", *study, "--name", "x", "--weights", "all", "--steps", "400", "--learning-rate", "1e-6"]
    process = begin(tmp_path, *edit, "--target-em", "0")
    checkpoint = tmp_path / "s" / "edits" / "x" / "checkpoint.safetensors"
    until = time.monotonic() + 240
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    code, lines = stop(process)
    assert code == 130 and lines[-1] == GOES_ON and checkpoint.exists()
    # With other settings it is another edit, and is refused before anything is overwritten.
    other = subprocess.run(
        [sys.executable, "-m", "mechmem.cli", *edit, "--target-em", "1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert other.returncode == 2 and "target_em was 0.0, now 1.0" in " ".join(other.stderr.split())
    process = begin(tmp_path, *edit, "--target-em", "0")
    while process.poll() is None and checkpoint.exists() and time.monotonic() < until + 60:
        before = checkpoint.stat().st_mtime_ns
        time.sleep(0.5)
        if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
            break
    code, lines = stop(process)
    assert code == 130 and lines[-1] == GOES_ON
