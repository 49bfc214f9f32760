"""Damage what mechmem reads, 10,000 times; each is read or refused in one sentence, in 10 seconds and 2 GB.

python -m tests.fuzz                       # cases 0 to 9,999 of seed 0, one process
python -m tests.fuzz --kind parquet        # of these the ones of some kinds
python -m tests.fuzz --case 1234           # one case, with its traceback; --keep FOLDER leaves its files there
python -m tests.fuzz --files tests/fuzzing/regressions     # the inputs that failed once
python -m tests.fuzz --new --seconds 3600 --save FOLDER    # other cases for an hour; failing inputs are kept
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzzing.cases import kept_case, kind_of, make_case
from tests.fuzzing.limits import Watch
from tests.fuzzing.summary import Summary
from tests.fuzzing.verdicts import judge
from tests.fuzzing.worker import Make, prepare, run_cases, until


def main() -> int:
    """Run as the options say; 1 if something was found."""
    options = _options()
    seed = int(time.time()) if options.new else options.seed
    if options.case is not None:
        return _one(options.case, seed, options.keep)
    numbers, make = _chosen(options, seed)
    summary, new = Summary(seed), []
    for number, verdict in until(options.seconds, run_cases(numbers, make)):
        summary.add(number, verdict)
        if verdict.is_finding and summary.found[verdict.kind, verdict.outcome, verdict.where] == 1:
            print(f"case {number} of seed {seed}: {verdict.kind}: {verdict.outcome}: {verdict.where}", flush=True)
            new.append(number)
    if options.save is not None:
        # Not before: making a case starts threads, and a process with threads cannot be forked safely.
        for number in new:
            make(number).save(options.save, number, seed)
    print(summary.text())
    if options.json is not None:
        options.json.write_text(json.dumps(summary.figures(), indent=1) + "\n")
    return 1 if summary.found else 0


def _chosen(options: argparse.Namespace, seed: int) -> tuple[Sequence[int], Make]:
    """Numbers of cases, and what makes a case of a number."""
    if options.files is not None:
        kept = sorted(options.files.iterdir())
        return range(len(kept)), lambda number: kept_case(kept[number])
    numbers = range(options.first, options.first + options.cases)
    if options.kind is not None:
        numbers = [number for number in numbers if options.kind in kind_of(number, seed)]
    return numbers, lambda number: make_case(number, seed)


def _one(number: int, seed: int, keep: Path | None) -> int:
    prepare()
    case = make_case(number, seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (keep or Path(temporary)) / f"case-{seed}-{number}"
        verdict = judge(case, folder, Watch())
    print(f"case {number} of seed {seed}: {case.kind.name}, damaged: {case.damaged} ({len(case.data)} bytes)")
    print(f"{verdict.outcome} in {verdict.seconds:.2f} s of CPU\n{verdict.detail}")
    return 1 if verdict.is_finding else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="decides all cases")
    parser.add_argument("--new", action="store_true", help="a seed made of the time")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=10_000, help="at most this many")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after this long")
    parser.add_argument("--case", type=int, help="this one alone, in this process")
    parser.add_argument("--kind", help="of the cases only those whose kind's name holds this text")
    parser.add_argument("--files", type=Path, help="instead of making cases, the ones kept in this folder")
    parser.add_argument("--keep", type=Path, help="leave the files of --case here")
    parser.add_argument("--save", type=Path, help="write the failing inputs into this folder")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
