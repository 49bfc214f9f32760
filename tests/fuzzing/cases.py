"""Case NUMBER of SEED: always the same damaged files of the same kind."""

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.fuzzing.byte_mutations import LARGEST, mutate_bytes
from tests.fuzzing.kinds import KINDS, Kind, choose
from tests.fuzzing.samples import FOLDER, TIME


@dataclass(frozen=True)
class Case:
    """A damaged input.

    Attributes:
        kind: what it is.
        damaged: the name of the damaged file.
        data: its bytes.
    """

    kind: Kind
    damaged: str
    data: bytes

    def write(self, folder: Path) -> None:
        """Write it, with the undamaged files beside it, into a folder that is emptied first."""
        shutil.rmtree(folder, ignore_errors=True)
        for name, data in {**self.kind.files(), self.damaged: self.data}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.replace(FOLDER, str(folder).encode()))
            # A corpus compares the times of its inputs.
            os.utime(path, ns=(TIME, TIME))

    def save(self, folder: Path, number: int, seed: int) -> None:
        """Keep the damaged file alone, in a file whose name says what it is."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{_plain(self.kind.name)}+{seed}-{number}+{self.damaged.replace('/', '@')}"
        (folder / name).write_bytes(self.data)


def make_case(number: int, seed: int = 0) -> Case:
    """One case: a kind, one of its files, one to three mutations of it."""
    rng = random.Random(f"{seed} {number}")
    kind = choose(rng)
    damaged = rng.choice(kind.candidates())
    data = rng.choice(kind.mutations)(kind.files()[damaged], rng)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        # What knows the format opens a sound file of it.
        again = kind.mutations if damaged.endswith(("json", "jsonl")) else (mutate_bytes,)
        data = rng.choice(again)(data, rng) if len(data) < LARGEST else data
    return Case(kind, damaged, data)


def kept_case(path: Path) -> Case:
    """A case that `Case.save` kept."""
    name, _, damaged = path.name.split("+")
    kind = next(kind for kind in KINDS if _plain(kind.name) == name)
    return Case(kind, damaged.replace("@", "/"), path.read_bytes())


def _plain(name: str) -> str:
    return name.replace("/", "-").replace(" ", "-")


def kind_of(number: int, seed: int = 0) -> str:
    """The kind of a case, without making it."""
    return choose(random.Random(f"{seed} {number}")).name
