"""The command itself, the options that its commands share, and how they end."""

from __future__ import annotations

import warnings
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

CORPUS = "Text (.txt .jsonl, also .gz .zst, .parquet), ids (.npy, .parquet), a folder of these, or a dataset."
# Of commands that work without a study.
Model = Annotated[str, typer.Option(help="Hub name, folder with an HF checkpoint, or 'bundled'.")]
Corpus = Annotated[Path | None, typer.Option("--corpus", "--paragraphs", help=CORPUS)]
Seed = Annotated[int, typer.Option(help="Decides every sample and split.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default the GPU if there is one.")]
# Of commands that work in a study's folder, which holds model, corpus, seed and limit already.
STUDY = "The study"
Out = Annotated[Path, typer.Option(help="The study's folder.", rich_help_panel=STUDY)]
StudyModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Hub name, folder with an HF checkpoint, or 'bundled'; by default that of the study in OUT, or 'bundled'.",
        rich_help_panel=STUDY,
    ),
]
StudyCorpus = Annotated[
    Path | None,
    typer.Option("--corpus", "--paragraphs", help=f"{CORPUS} By default that of the study.", rich_help_panel=STUDY),
]
StudySeed = Annotated[
    int | None,
    typer.Option("--seed", help="Decides every sample and split; by default the study's, or 0.", rich_help_panel=STUDY),
]
StudyLimit = Annotated[
    int | None,
    typer.Option("--limit", help="Score at most this many paragraphs; by default the study's.", rich_help_panel=STUDY),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any setting of the study, such as pairs=24; `mechmem config` lists them. Repeatable.",
        rich_help_panel=STUDY,
    ),
]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Bad input ends with its sentence and exit code 2; Ctrl-C with how to continue and 130; warnings are sentences."""
    from mechmem.data.errors import InputError

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, RuntimeWarning | UserWarning):
            errors.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        for category in (RuntimeWarning, UserWarning):
            warnings.simplefilter("default", category)
        try:
            yield
        except InputError as error:
            errors.print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            errors.print("stopped; the same command continues from here", style="yellow")
            raise typer.Exit(130) from None


def wrote(*paths: Path) -> None:
    """Say which files or folders were written."""
    for path in paths:
        console.print(f"Wrote {path.resolve()}", soft_wrap=True, highlight=False)
