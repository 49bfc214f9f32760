"""`mechmem paper`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mechmem.cli.commands import command, console, wrote
from mechmem.cli.display import live_progress
from mechmem.cli.options import CORPUS, Device, Seed
from mechmem.data.bounds import Count

if TYPE_CHECKING:
    from mechmem.study.paper.paper_folder import PaperFolder


@command(goes_on=True)
def paper(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("paper"),
    model: Annotated[
        str, typer.Option(help="Hub name, folder with an HF checkpoint, or 'bundled'.")
    ] = "EleutherAI/gpt-neo-125m",
    corpus: Annotated[
        Path | None,
        typer.Option(help=f"Folder of the study's public files (em50.npy and others), a scan's parquet, or: {CORPUS}"),
    ] = None,
    others: Annotated[
        Path | None, typer.Option(help="Text or ids to take paragraphs of EM 0 to 10 from; the public files have none.")
    ] = None,
    seed: Seed = 0,
    limit: Annotated[Count | None, typer.Option(help="Score at most this many paragraphs of a corpus.")] = None,
    device: Device = None,
    full: Annotated[bool, typer.Option("--full", help="The study's own sizes: hours on two cores.")] = False,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting, such as pairs=24: docs/paper.md. Repeatable."),
    ] = None,
) -> None:
    """Repeat the study of Stoehr et al. (2024): every published number beside the measured one; writes OUT/paper.html.

    Stop it at any time: the same command continues without repeating finished items.
    """
    from mechmem.study.config import apply_settings, parse_assignments
    from mechmem.study.paper.paper_settings import PaperSettings
    from mechmem.study.paper.paper_settings import full as full_size

    given = {
        "model": model,
        "corpus": None if corpus is None else str(corpus),
        "others": None if others is None else str(others),
        "seed": seed,
        "limit": limit,
    }
    settings = PaperSettings()
    settings = apply_settings(full_size(settings) if full else settings, given | parse_assignments(assignments or ()))
    with console.status("loading"):
        from mechmem.study.paper.paper_runner import run_paper
    with live_progress() as progress:
        found = run_paper(
            out,
            settings,
            device=device,
            progress=progress,
            told=lambda item, said: console.print(f"{item}: {said}", highlight=False, soft_wrap=True),
        )
    _print(found)
    wrote(out / "paper.html")


def _print(found: PaperFolder) -> None:
    """The published numbers beside the measured ones, without the sums by layer."""
    from mechmem.study.paper.paper_page import paper_rows
    from mechmem.study.paper.tables import headlines_and_layers, table_rows

    check = found.sets.check
    rows = [row for row in headlines_and_layers(paper_rows(found))[0] if row.published is not None]
    # A verdict that is the same everywhere is said once.
    shown = (0, 1, 2, 3, 4, 5) if check.applies else (0, 1, 2, 4)
    columns = ("quantity", "published", "as published", "verdict", "corrected", "verdict")
    table = Table(*(columns[place] for place in shown))
    for line in table_rows(rows, applies=check.applies):
        table.add_row(*(str(line[place]) for place in shown))
    console.print(table)
    for sentence in check.sentences:
        console.print(sentence, highlight=False, soft_wrap=True)
