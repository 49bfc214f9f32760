"""`mechmem edit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechmem.cli.commands import command
from mechmem.cli.editing import (
    BatchSize,
    Decay,
    Fraction,
    KeepWeight,
    MaskFile,
    MaxNorm,
    Name,
    Rate,
    Resume,
    Steps,
    Weights,
    learning_rate,
    make,
)
from mechmem.cli.options import Device, Out, Set, StudyCorpus, StudyLimit, StudyModel, StudySeed
from mechmem.cli.studies import study_settings


@command(goes_on=True)
def edit(
    name: Name = "edit",
    text: Annotated[
        str | None,
        typer.Option(help="The new continuation; by default what follows the prefix with its worst replacement."),
    ] = None,
    device: Device = None,
    model: StudyModel = None,
    corpus: StudyCorpus = None,
    out: Out = Path("study"),
    seed: StudySeed = None,
    limit: StudyLimit = None,
    assignments: Set = None,
    weights: Weights = "top",
    mask: MaskFile = None,
    fraction: Fraction = 0.001,
    steps: Steps = 100,
    rate: Rate = "auto",
    batch_size: BatchSize = None,
    weight_decay: Decay = None,
    max_norm: MaxNorm = None,
    keep_weight: KeepWeight = None,
    resume: Resume = False,  # noqa: ARG001
) -> None:
    """Make the study's targets continue with another text; writes OUT/edits/NAME."""
    known_rate = learning_rate(rate)
    settings = study_settings(out, model=model, corpus=corpus, seed=seed, limit=limit, assignments=assignments)
    make(
        out,
        settings,
        name,
        device=device,
        kind="edit",
        weights=weights,
        mask=None if mask is None else str(mask),
        fraction=fraction,
        steps=steps,
        learning_rate=known_rate,
        batch_size=batch_size,
        weight_decay=weight_decay,
        max_norm=max_norm,
        keep_weight=keep_weight,
        text=text,
    )
