"""How long a study takes, by stage: seconds, CPU seconds and peak memory; writes docs/benchmarks/study.md.

python experiments/benchmarks/study.py              # the default size
python experiments/benchmarks/study.py --full       # the default size and the full one
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        full: run `mechmem run --full` too.
        change: settings of the study to change, NAME=VALUE, for a small trial.
        page: the table.
    """

    full: bool = False
    change: tuple[str, ...] = ()
    page: Path = Path("docs/benchmarks/study.md")


def rows(arguments: list[str]) -> list[str]:
    """Run a study in a process of its own, as a user does; -> the lines of its table."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "mechmem.cli", "run", "--out", f"{folder}/study", *arguments], check=True)
        whole = time.monotonic() - began
        timings = json.loads(Path(folder, "study", "study.json").read_text())["timings"]
    lines = [f"| {n} | {t['seconds']:.1f} | {t['cpu_seconds']:.1f} | {t['peak_mb']:,} |" for n, t in timings.items()]
    busy, peak = sum(t["cpu_seconds"] for t in timings.values()), max(t["peak_mb"] for t in timings.values())
    return [*lines, f"| the command, with imports and loading | {whole:.1f} | {busy:.1f} in stages | {peak:,} |"]


def main(settings: Settings) -> None:
    """Run each size and write the page."""
    changes = [word for change in settings.change for word in ("--set", change)]
    text = ["# How long a study takes", "", "Peak memory is the largest of the process up to the end of the stage."]
    for title, extra in (("Default size", []), ("Full size", ["--full"]))[: 1 + settings.full]:
        table = ["| stage | seconds | CPU seconds | peak, MB |", "|---|---|---|---|", *rows([*extra, *changes])]
        text += ["", f"## {title}", "", f"`mechmem run {' '.join([*extra, *changes])}`".replace(" `", "`"), "", *table]
    text += ["", f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} threads.", ""]
    settings.page.write_text("\n".join(text))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
