"""`mechmem config`."""

from __future__ import annotations

from typing import Annotated

import typer

from mechmem.cli.commands import command


@command()
def config(
    full: Annotated[bool, typer.Option("--full", help="The sizes of `mechmem run --full`.")] = False,
) -> None:
    """Print every setting of a study with its meaning, as a TOML file for `mechmem run --config`."""
    from mechmem.study.config import config_text
    from mechmem.study.settings import StudySettings
    from mechmem.study.settings import full as full_size

    typer.echo(config_text(full_size(StudySettings()) if full else StudySettings()), nl=False)
