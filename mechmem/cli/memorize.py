"""`mechmem memorize`."""

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
def memorize(
    name: Name = "memorize",
    targets: Annotated[
        Path | None, typer.Option(help="Paragraphs to memorize (.parquet or .npy of ids); by default one other one.")
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
    steps: Steps = 200,
    rate: Rate = "auto",
    batch_size: BatchSize = None,
    weight_decay: Decay = None,
    max_norm: MaxNorm = None,
    keep_weight: KeepWeight = None,
    resume: Resume = False,  # noqa: ARG001
) -> None:
    """Train paragraphs that the model does not know into few weights; writes OUT/edits/NAME."""
    known_rate = learning_rate(rate)
    settings = study_settings(out, model=model, corpus=corpus, seed=seed, limit=limit, assignments=assignments)
    make(
        out,
        settings,
        name,
        device=device,
        kind="memorize",
        weights=weights,
        mask=None if mask is None else str(mask),
        fraction=fraction,
        steps=steps,
        learning_rate=known_rate,
        batch_size=batch_size,
        weight_decay=weight_decay,
        max_norm=max_norm,
        keep_weight=keep_weight,
        paragraphs=None if targets is None else str(targets),
    )
