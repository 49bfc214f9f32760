"""`mechmem edit`."""

from __future__ import annotations

from typing import Annotated

import typer

from mechmem.cli.commands import command
from mechmem.cli.editing import EditOptions, Name, Steps, make
from mechmem.cli.studies import StudyOptions


@command(goes_on=True)
def edit(
    study: StudyOptions,
    options: EditOptions,
    name: Name = "edit",
    text: Annotated[
        str | None,
        typer.Option(help="The new continuation; by default what follows the prefix with its worst replacement."),
    ] = None,
    steps: Steps = 100,
) -> None:
    """Make the study's targets continue with another text; writes OUT/edits/NAME."""
    make(
        study,
        name,
        kind="edit",
        steps=steps,
        **options.values(),
        text=text,
    )
