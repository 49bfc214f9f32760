"""A process that judges one case after the other; a crash or a hang ends it, not the run."""

import json
import logging
import os
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.fuzzing.cases import Case, make_case
from tests.fuzzing.kinds import KINDS
from tests.fuzzing.limits import Watch
from tests.fuzzing.verdicts import Verdict, judge

# A fresh process after so many cases: what libraries keep would otherwise be taken for the reader's.
CASES_A_PROCESS = 1500
# Time for a case that uses no CPU or does not let Python's alarm through.
MOST_SECONDS = 45.0
# Exit status of a process in which the fuzzer itself failed, not a reader.
OWN_FAULT = 70
Make = Callable[[int], Case]


def run_cases(numbers: Sequence[int], make: Make = make_case) -> Iterator[tuple[int, Verdict]]:
    """Judge cases in a process of their own, again and again; yields each number with its verdict, in order."""
    done = 0
    while done < len(numbers):
        for number, verdict in _one_process(numbers[done : done + CASES_A_PROCESS], make):
            yield number, verdict
            done += 1


def _one_process(numbers: Sequence[int], make: Make) -> Iterator[tuple[int, Verdict]]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            _child(numbers, make, writing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(OWN_FAULT)
    os.close(writing)
    done, kind = 0, ""
    try:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            for line in _lines(pipe.fileno()):
                if line is None:
                    answer = f"no answer in {MOST_SECONDS:g} seconds"
                    yield numbers[done], Verdict(kind, "hangs", answer, answer)
                    return
                message = json.loads(line)
                if isinstance(message, str):
                    kind = message
                    continue
                yield numbers[done], Verdict(**message)
                done += 1
    finally:
        if done < len(numbers):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if done < len(numbers):
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == OWN_FAULT:
            raise RuntimeError(f"the fuzzer failed to make or judge case {numbers[done]}; its traceback is above")
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status >> 8}"
        yield numbers[done], Verdict(kind, "crash", name, name)


def _lines(pipe: int) -> Iterator[bytes | None]:
    """Whole lines until the end; None when none comes in time."""
    held, patience = b"", 4 * MOST_SECONDS  # the first case makes the undamaged files
    while select.select([pipe], [], [], patience)[0]:
        patience = MOST_SECONDS
        chunk = os.read(pipe, 2**16)
        if not chunk:
            return
        *whole, held = (held + chunk).split(b"\n")
        yield from whole
    yield None


def _child(numbers: Sequence[int], make: Make, pipe: int) -> None:
    prepare()
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="mechmem-fuzz-") as folder:
        for number in numbers:
            case = make(number)
            # The kind first: a case that ends the process says nothing more.
            os.write(pipe, json.dumps(case.kind.name).encode() + b"\n")
            line = json.dumps(asdict(judge(case, Path(folder) / "case", watch)))
            os.write(pipe, line.encode() + b"\n")
    os._exit(0)


def prepare() -> None:
    """Undamaged files are made before the first limit, and nothing is printed."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    # Half-opened files of HDF5 complain when they are collected.
    sys.unraisablehook = lambda _: None
    import datasets
    import torch
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    for kind in KINDS:
        assert kind.candidates(), f"no undamaged file of {kind.name} ends with {kind.damaged}"


def until(seconds: float, results: Iterator[tuple[int, Verdict]]) -> Iterator[tuple[int, Verdict]]:
    """The results that come in time."""
    ends = time.monotonic() + seconds
    for result in results:
        yield result
        if time.monotonic() > ends:
            return
