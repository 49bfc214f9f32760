"""The study of Stoehr et al. (2024) repeated: every published number beside the measured one, in two readings.

    python experiments/paper.py --corpus FOLDER --out results/paper

FOLDER holds the study's public files (`em50.npy` and others) or is any corpus that `read_corpus` reads. `mechmem paper`
is the same with progress and a table. Writes paper.html, one .nc and .json for each item and one SVG for each figure.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import tyro

from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.paper_page import paper_rows, verdicts
from mechmem.study.paper.paper_runner import run_paper
from mechmem.study.paper.paper_settings import PaperSettings
from mechmem.study.paper.paper_settings import full as full_size


@dataclass(frozen=True)
class Settings(PaperSettings):
    """What decides the numbers, and where to compute and write.

    Attributes:
        out: folder of the results.
        device: cpu, cuda, ...; None: a GPU if there is one.
        full: the study's own sizes.
    """

    out: Path = Path("results/paper")
    device: str | None = None
    full: bool = False


def main(settings: Settings) -> PaperFolder:
    """Measure what the folder lacks, and say how many published numbers hold."""
    sizes = PaperSettings(**{field.name: getattr(settings, field.name) for field in fields(PaperSettings)})
    sizes = full_size(sizes) if settings.full else sizes
    paper = run_paper(settings.out, sizes, device=settings.device, told=lambda item, said: print(f"{item}: {said}"))
    rows, applies = paper_rows(paper), paper.sets.check.applies
    for reading in ("as published", "corrected"):
        print(f"{reading}: {dict(verdicts(rows, applies=applies, reading=reading))}")
    return paper


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
