"""`mechmem report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechmem.cli.commands import command, wrote


@command()
def report(folder: Annotated[Path, typer.Argument(help="A study's folder.")] = Path("study")) -> None:
    """Write FOLDER/report.html anew from the folder's files, however many stages have run."""
    from mechmem.report.study_report import write_report

    wrote(write_report(folder))
