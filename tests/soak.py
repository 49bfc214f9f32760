"""Kill, rival and starve mechmem's commands, and see whether they end with the results of an undisturbed run.

make soak                                            # 20 kills, rivals, full disks; the table of docs/reliability.md
python -m tests.soak --kills 4 --out figures.json    # fewer kills, figures elsewhere
"""

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.soaking.commands import commands, undisturbed
from tests.soaking.disturbances import Outcome, full_disk, kills, rivals
from tests.soaking.page import figures, put_into_page


def main() -> int:
    """Run everything; 1 if a result differed or a command failed."""
    options = _options()
    rng, began = random.Random(options.seed), time.monotonic()
    work = options.work or Path(tempfile.mkdtemp(prefix="mechmem-soak-"))
    outcomes: list[Outcome] = []
    try:
        chosen = [command for command in commands(work) if command.name in options.commands]
        for number, command in enumerate(chosen):
            reference = undisturbed(command, work)
            _say(f"mechmem {command.name}: {reference.seconds:.0f} s undisturbed")
            share = options.kills // len(chosen) + (number < options.kills % len(chosen))
            outcomes.append(kills(reference, share, work, rng))
            outcomes.append(rivals(reference, work, rng))
            disk = full_disk(reference, (0.3, 0.7) if command.name == "run" else (0.9,), work)
            outcomes += [] if disk is None else [disk]
            for outcome in outcomes[-3:]:
                _say(
                    f"  {outcome.disturbance}: {outcome.times} times, {outcome.identical} of {outcome.rounds} identical"
                )
                for fault in outcome.faults:
                    _say(f"    {fault}")
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    result = figures([dataclasses.asdict(outcome) for outcome in outcomes], options.seed, time.monotonic() - began)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.page is not None:
        put_into_page(options.page, result)
    faults = sum(len(outcome.faults) for outcome in outcomes)
    _say(f"{sum(o.rounds for o in outcomes)} rounds in {result['minutes']} minutes; faults: {faults}")
    return 1 if faults else 0


def _say(text: str) -> None:
    print(text, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="in all, shared by the commands")
    parser.add_argument("--commands", nargs="+", default=["run", "scan", "unlearn", "memorize"])
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--work", type=Path, help="work here and leave everything; by default a temporary folder")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--page", type=Path, help="put the table into this page, between its marks")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
