"""The command itself, what all of its commands take, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    help="What a language model memorized, where it sits, and what removing it does.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console, errors = Console(), Console(stderr=True)

Model = Annotated[str, typer.Option(help="Hub name, folder with an HF checkpoint, or 'bundled'.")]
Corpus = Annotated[
    Path | None,
    typer.Option(
        "--corpus",
        "--paragraphs",
        help="Text (.txt .jsonl, also .gz .zst, .parquet), ids (.npy, .parquet), a folder of these, or a dataset.",
    ),
]
Out = Annotated[Path, typer.Option(help="The study's folder.")]
Seed = Annotated[int, typer.Option(help="Chooses every sample and split.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default the GPU if there is one.")]
Limit = Annotated[int | None, typer.Option(help="Score no more paragraphs than this.")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Bad input ends with its sentence and exit code 2; Ctrl-C with a word on how to go on and 130."""
    from mechmem.data.errors import InputError

    try:
        yield
    except InputError as error:
        errors.print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on where it was", style="yellow")
        raise typer.Exit(130) from None
