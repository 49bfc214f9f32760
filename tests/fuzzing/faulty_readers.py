"""Readers with one fault each, to see that the fuzzer finds it; run as a program: prints kind -> outcome as JSON."""

import ctypes
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mechmem.data.errors import InputError
from tests.fuzzing import limits, worker
from tests.fuzzing.byte_mutations import mutate_bytes
from tests.fuzzing.cases import Case
from tests.fuzzing.kinds import Kind


def throws(folder: Path) -> None:  # noqa: ARG001
    raise KeyError("meta")


def spins(folder: Path) -> None:  # noqa: ARG001
    while True:
        try:
            time.process_time()
        except Exception:
            pass


def hangs(folder: Path) -> None:  # noqa: ARG001
    time.sleep(1000)


def fills_memory(folder: Path) -> list[np.ndarray]:  # noqa: ARG001
    return [np.empty(2**27) for _ in range(8)]


def crashes(folder: Path) -> None:  # noqa: ARG001
    ctypes.string_at(0)


def exits(folder: Path) -> None:  # noqa: ARG001
    os._exit(0)


def asks_the_network(folder: Path) -> None:  # noqa: ARG001
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    except OSError:
        pass


def writes_elsewhere(folder: Path) -> None:  # noqa: ARG001
    (Path(tempfile.gettempdir()) / "not-of-this-case").write_text("x")


def removes_elsewhere(folder: Path) -> None:
    (folder.parent.parent / "of-another").unlink(missing_ok=True)


def starts_a_program(folder: Path) -> None:  # noqa: ARG001
    os.system("true")


def says_two_lines(folder: Path) -> None:  # noqa: ARG001
    error = InputError("one")
    error.args = ("one\ntwo",)
    raise error


def refuses(folder: Path) -> None:  # noqa: ARG001
    raise InputError("got rubbish; need data: write it again")


def reads(folder: Path) -> bytes:
    return next(folder.iterdir()).read_bytes()


READERS: tuple[Callable[[Path], Any], ...] = (
    reads, throws, spins, hangs, refuses, fills_memory, crashes, exits, asks_the_network, writes_elsewhere,
    removes_elsewhere, starts_a_program, says_two_lines, reads,
)  # fmt: skip


def make(number: int) -> Case:
    """One case for each reader."""
    reader = READERS[number]
    return Case(Kind(reader.__name__, lambda: {"a.txt": b"text"}, ".txt", (mutate_bytes,), reader), "a.txt", b"text")


if __name__ == "__main__":
    limits.SECONDS, worker.MOST_SECONDS = 0.5, 5.0
    verdicts = worker.run_cases(range(len(READERS)), make)
    found = {READERS[number].__name__: verdict.outcome for number, verdict in verdicts}
    os.write(1, json.dumps(found).encode())
