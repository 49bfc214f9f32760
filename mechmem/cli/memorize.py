"""`mechmem memorize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechmem.cli.commands import command
from mechmem.cli.editing import EditOptions, Name, Steps, make
from mechmem.cli.studies import StudyOptions


@command(goes_on=True)
def memorize(
    study: StudyOptions,
    options: EditOptions,
    name: Name = "memorize",
    targets: Annotated[
        Path | None, typer.Option(help="Paragraphs to memorize (.parquet or .npy of ids); by default one other one.")
    ] = None,
    steps: Steps = 200,
) -> None:
    """Train paragraphs that the model does not know into few weights; writes OUT/edits/NAME."""
    make(
        study,
        name,
        kind="memorize",
        steps=steps,
        **options.values(),
        paragraphs=None if targets is None else str(targets),
    )
