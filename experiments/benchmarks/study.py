"""How long a study takes, by stage: seconds, CPU seconds and peak memory; writes docs/benchmarks/study.md.

python experiments/benchmarks/study.py              # the bundled model, default size
python experiments/benchmarks/study.py --full       # the default size and the full one
python experiments/benchmarks/study.py --planted 250 --work DIR --page docs/benchmarks/study-125m.md

The last one studies a hand-set model of GPT-Neo 125M's shape; started again with the same folder, it goes on.
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

import mechmem as mm
from mechmem.data.bounds import Count
from mechmem.truth.planted_settings import PlantedSettings


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        full: run `mechmem run --full` too.
        planted: not the bundled model, but one of GPT-Neo 125M's shape with so many memories, and as many other
            paragraphs; not set: the bundled model.
        work: folder for models and studies, kept; not set: a temporary one.
        change: settings of the study to change, NAME=VALUE, for a small trial.
        page: the table.
    """

    full: bool = False
    planted: Count | None = None
    work: Path | None = None
    change: tuple[str, ...] = ()
    page: Path = Path("docs/benchmarks/study.md")


def plant(folder: Path, memories: int) -> list[str]:
    """Write a planted model of GPT-Neo 125M's shape and its paragraphs; -> the arguments that name them."""
    model, corpus = folder / "model", folder / "paragraphs.parquet"
    if not corpus.exists():
        truth = mm.planted(PlantedSettings.gpt_neo_125m(memories=memories, others=memories))
        mm.export(truth.model, model)
        mm.Paragraphs(torch.cat([truth.memorized.tokens, truth.other.tokens]), truth.memorized.prefix_len).save(corpus)
    return ["--model", str(model), "--corpus", str(corpus)]


def rows(arguments: list[str], out: Path) -> list[str]:
    """Run a study in a process of its own, as a user does; -> the lines of its table."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "mechmem.cli", "run", "--out", str(out), *arguments], check=True)
    whole = time.monotonic() - began
    timings = json.loads((out / "study.json").read_text())["timings"]
    lines = [f"| {n} | {t['seconds']:.1f} | {t['cpu_seconds']:.1f} | {t['peak_mb']:,} |" for n, t in timings.items()]
    busy, peak = sum(t["cpu_seconds"] for t in timings.values()), max(t["peak_mb"] for t in timings.values())
    inside = sum(t["seconds"] for t in timings.values())
    if whole < inside:
        # Begun earlier and gone on with: only the stages' own times are known.
        return [*lines, f"| all stages, in several runs | {inside:.1f} | {busy:.1f} | {peak:,} |"]
    return [*lines, f"| the command, with imports and loading | {whole:.1f} | {busy:.1f} in stages | {peak:,} |"]


def main(settings: Settings) -> None:
    """Run each size and write the page."""
    changes = [word for change in settings.change for word in ("--set", change)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if settings.work is None else settings.work
        named = [] if settings.planted is None else plant(folder, settings.planted)
        text = ["# How long a study takes", "", "Peak memory is the largest of the process up to the end of the stage."]
        if settings.planted is not None:
            text[-1] += f" A planted model of GPT-Neo 125M's shape, {2 * settings.planted} paragraphs of 100 tokens."
        first = "Changed sizes" if settings.change else "Default size"
        for title, extra in ((first, []), ("Full size", ["--full"]))[: 1 + settings.full]:
            measured = rows([*named, *extra, *changes], folder / title.lower().replace(" ", "-"))
            table = ["| stage | seconds | CPU seconds | peak, MB |", "|---|---|---|---|", *measured]
            command = f"`mechmem run {' '.join([*extra, *changes])}`".replace(" `", "`")
            text += ["", f"## {title}", "", command, "", *table]
    card = f", on one {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    text += ["", f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, threads: {torch.get_num_threads()}{card}.", ""]
    settings.page.write_text("\n".join(text))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
