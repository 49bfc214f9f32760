"""The commands that are disturbed, small enough to be run many times, and their undisturbed results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUDY = (
    "limit=200", "decoded=8", "gradient_sample=8", "ablation_sample=2", "pairs=2", "targets=4", "evaluated=6",
    "steps=6", "attack_prefixes=2", "attack_samples=4", "relearning_steps=2", 'edits=["npo all", "npo top"]',
)  # fmt: skip
SETTINGS = [word for text in STUDY for word in ("--set", text)]


@dataclass(frozen=True)
class Command:
    """A command of mechmem in a folder of its own.

    Attributes:
        name: of the command.
        arguments: what follows `mechmem`; the command works in the folder.
        prepare: fills the folder before the command is run for the first time.
        program: what is started; of a test, another one.
    """

    name: str
    arguments: tuple[str, ...]
    prepare: Callable[[Path], None]
    program: tuple[str, ...] = (sys.executable, "-m", "mechmem.cli")

    def start(self, folder: Path) -> subprocess.Popen[str]:
        """Start it in a folder, in a process group of its own."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}
        return subprocess.Popen(
            [*self.program, *self.arguments],
            cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def finish(self, folder: Path) -> tuple[int, str, float]:
        """Run it to its end: exit code, what it said of errors, seconds."""
        began = time.monotonic()
        process = self.start(folder)
        _, said = process.communicate()
        return process.returncode, said, time.monotonic() - began


@dataclass(frozen=True)
class Reference:
    """What a command does when nothing disturbs it.

    Attributes:
        command: the command.
        folder: where its results lie.
        seconds: how long it took.
    """

    command: Command
    folder: Path
    seconds: float


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a command and whatever it started; nothing of it can clean up."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def undisturbed(command: Command, work: Path) -> Reference:
    """Run a command once to its end.

    Raises:
        RuntimeError: it failed.
    """
    folder = fresh(command, work)
    code, said, seconds = command.finish(folder)
    if code:
        raise RuntimeError(f"mechmem {command.name} failed undisturbed with exit code {code}: {said}")
    return Reference(command, folder.rename(work / f"{command.name}-undisturbed"), seconds)


def fresh(command: Command, work: Path) -> Path:
    """The folder as the command finds it for the first time; always the same one, since results name their inputs."""
    folder = work / "disk" / "place"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command.prepare(folder)
    return folder


def commands(work: Path) -> list[Command]:
    """Run, scan, unlearn and memorize; the last two begin with a study that was scanned once."""
    scanned = work / "scanned"
    _scan_study(scanned / "study")
    edit = ("--out", "study", "--steps", "12", "--learning-rate", "1e-4", "--weights", "all")

    def from_study(folder: Path) -> None:
        shutil.copytree(scanned, folder, dirs_exist_ok=True)

    return [
        Command("run", ("run", "--out", "study", *SETTINGS), lambda _: None),
        Command(
            "scan",
            ("scan", "--corpus", "corpus.jsonl", "--out", "found.parquet", "--shard-tokens", "3000"),
            _write_corpus,
        ),
        Command("unlearn", ("unlearn", "--name", "gone", "--target-em", "0", *edit), from_study),
        Command("memorize", ("memorize", "--name", "known", *edit), from_study),
    ]


def _scan_study(folder: Path) -> None:
    """The first stage of the study that `run` makes."""
    import mechmem as mm
    from mechmem.study.config import apply_settings, parse_assignments

    mm.run_study(folder, apply_settings(mm.StudySettings(), parse_assignments(STUDY)), until="scan")


def _write_corpus(folder: Path) -> None:
    """Twenty documents of several paragraphs each, always the same."""
    import mechmem as mm

    texts = mm.bundled_paragraphs().column("text")[:160]
    rows = [{"text": " ".join(map(str, texts[i : i + 8]))} for i in range(0, len(texts), 8)]
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    os.utime(path, ns=(10**18, 10**18))
