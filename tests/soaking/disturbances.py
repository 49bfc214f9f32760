"""Kills at random moments, rivals in one folder, a disk that fills up."""

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.soaking.commands import Reference, fresh, kill
from tests.soaking.comparison import differences

MOST_KILLS_A_ROUND = 4


@dataclass
class Outcome:
    """What a disturbance did to a command.

    Attributes:
        command: its name.
        disturbance: what was done.
        times: how often: kills, rivals, full disks.
        rounds: how often the command ended, and its results were compared.
        identical: of these, how often they were those of the undisturbed command.
        seconds: of all processes together, those that were killed too.
        undisturbed: seconds that as many rounds take undisturbed.
        faults: what went wrong, one sentence each.
        notes: sentences of the command that show what it said.
    """

    command: str
    disturbance: str
    times: int = 0
    rounds: int = 0
    identical: int = 0
    seconds: float = 0.0
    undisturbed: float = 0.0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def compare(self, reference: Reference, folder: Path) -> None:
        """Count a round that ended."""
        found = differences(reference.folder, folder)
        self.rounds += 1
        self.undisturbed += reference.seconds
        self.identical += not found
        self.faults += found[:5]


def kills(reference: Reference, count: int, work: Path, rng: random.Random) -> Outcome:
    """Kill a command `count` times, each time at a random moment of what an undisturbed one takes, and start it again.

    The moments are uniform over the undisturbed time without its first tenth, in which Python starts. At most four
    kills hit one folder; then the command runs to its end and its results are compared.
    """
    outcome = Outcome(reference.command.name, "SIGKILL")
    while outcome.times < count:
        folder, hits = fresh(reference.command, work), 0
        while True:
            began = time.monotonic()
            process = reference.command.start(folder)
            moment = rng.uniform(0.1, 1.0) * reference.seconds
            more = outcome.times < count and hits < MOST_KILLS_A_ROUND
            try:
                _, said = process.communicate(timeout=moment if more else None)
                outcome.seconds += time.monotonic() - began
                break
            except subprocess.TimeoutExpired:
                kill(process)
                outcome.seconds += time.monotonic() - began
                outcome.times, hits = outcome.times + 1, hits + 1
        if process.returncode:
            outcome.faults.append(f"exit code {process.returncode} after {hits} kills: {said.strip()[-300:]}")
        outcome.compare(reference, folder)
    return outcome


def rivals(reference: Reference, work: Path, rng: random.Random) -> Outcome:
    """Start a command twice in one folder, a random time apart: one works, the other is refused in one sentence."""
    outcome = Outcome(reference.command.name, "two processes in one folder", times=1)
    folder = fresh(reference.command, work)
    began = time.monotonic()
    first = reference.command.start(folder)
    time.sleep(rng.uniform(0, 0.5) * reference.seconds)
    second = reference.command.start(folder)
    answers = [(process.communicate()[1], process.returncode) for process in (first, second)]
    outcome.seconds = time.monotonic() - began
    if sorted(code for _, code in answers) not in ([0, 2], [0, 0]):
        outcome.faults.append(f"exit codes {[code for _, code in answers]}: {[said[-200:] for said, _ in answers]}")
    for said, code in answers:
        if code:
            outcome.notes.append(_last_line(said))
            # A rival that comes when all is done is told that there is nothing left to do.
            if not _is_sentence(said) or not ("works there" in said or "holds an edit already" in said):
                outcome.faults.append(f"the rival was not refused by a sentence: {said.strip()[-300:]}")
    outcome.compare(reference, folder)
    return outcome


def full_disk(reference: Reference, shares: tuple[float, ...], work: Path) -> Outcome | None:
    """Run a command on a disk of a share of what it needs, then make room and run it again; None: cannot be mounted."""
    outcome = Outcome(reference.command.name, "full disk")
    needed = sum(path.stat().st_size for path in reference.folder.rglob("*") if path.is_file())
    for share in shares:
        with small_disk(work / "disk", int(share * needed)) as resize:
            if resize is None:
                return None
            try:
                folder = fresh(reference.command, work)
            except OSError:
                continue  # not even what the command begins with has room
            code, said, seconds = reference.command.finish(folder)
            outcome.seconds += seconds
            if code:
                outcome.times += 1
                outcome.notes.append(_last_line(said).replace(str(folder), "OUT"))
                if code != 2 or not _is_sentence(said):
                    outcome.faults.append(f"exit code {code} on a full disk: {said.strip()[-300:]}")
                # More than the results have: the checkpoints of an edit are gone when it ends.
                resize(4 * needed + 2**30)
                code, said, seconds = reference.command.finish(folder)
                outcome.seconds += seconds
                if code:
                    outcome.faults.append(f"exit code {code} when there was room again: {said.strip()[-300:]}")
            outcome.compare(reference, folder)
    return outcome


@contextmanager
def small_disk(place: Path, size: int) -> Iterator["Resize | None"]:
    """A tmpfs of a size, and how to change it; None where one cannot be mounted."""
    place.mkdir(parents=True, exist_ok=True)
    size = max(size, 2**12)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        yield None
        return
    try:
        yield Resize(place)
    finally:
        subprocess.run(["umount", str(place)], check=True)


@dataclass(frozen=True)
class Resize:
    """Changes the size of a mounted disk."""

    place: Path

    def __call__(self, size: int) -> None:
        """To so many bytes; what is there stays."""
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.place)], check=True)


def _is_sentence(said: str) -> bool:
    """Warnings, and then one line that begins with "error:"."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return bool(lines) and lines[-1].startswith("error: ") and "Traceback" not in said


def _last_line(said: str) -> str:
    return (said.strip().splitlines() or [""])[-1][:400]
