"""The options that commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from mechmem.cli.choices import Engine
from mechmem.data import bounds
from mechmem.data.bounds import Count

CORPUS = "Text (.txt .jsonl, also .gz .zst, .parquet), ids (.npy, .parquet), a folder of these, or a dataset."
# Of commands that work without a study.
Model = Annotated[str, typer.Option(help="Hub name, folder with an HF checkpoint, or 'bundled'.")]
Corpus = Annotated[Path | None, typer.Option("--corpus", "--paragraphs", help=CORPUS)]
Seed = Annotated[bounds.Seed, typer.Option(help="Decides every sample and split.")]
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
    bounds.Seed | None,
    typer.Option("--seed", help="Decides every sample and split; by default the study's, or 0.", rich_help_panel=STUDY),
]
StudyLimit = Annotated[
    Count | None,
    typer.Option("--limit", help="Score at most this many paragraphs; by default the study's.", rich_help_panel=STUDY),
]
StudyPrefixLen = Annotated[
    Count | None,
    typer.Option(
        "--prefix-len",
        help="Tokens of a paragraph that the model is given; by default the study's, what a token file says, or 50.",
        rich_help_panel=STUDY,
    ),
]
StudyContinuationLen = Annotated[
    Count | None,
    typer.Option(
        "--continuation-len",
        help="Tokens to continue; by default the study's, the rest of a token file's rows, or 50.",
        rich_help_panel=STUDY,
    ),
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


@dataclass(frozen=True)
class WorkerOptions:
    """Where work on many paragraphs is done."""

    device: Device = None
    engine: Annotated[Engine, typer.Option(help="ray: workers of the cluster at RAY_ADDRESS.")] = "local"
    workers: Annotated[Count | None, typer.Option(help="Of Ray; by default one a GPU.")] = None
