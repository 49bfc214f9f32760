"""`mechmem unlearn`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechmem.cli.choices import UnlearnMethod
from mechmem.cli.commands import command, wrote
from mechmem.cli.editing import (
    BatchSize,
    Decay,
    Fraction,
    KeepWeight,
    MaskFile,
    MaxNorm,
    Rate,
    Resume,
    Steps,
    Weights,
    learning_rate,
    make,
)
from mechmem.cli.options import Device, Out, Set, StudyCorpus, StudyLimit, StudyModel, StudySeed
from mechmem.cli.studies import print_findings, run_until, study_settings
from mechmem.data.bounds import Amount


@command(goes_on=True)
def unlearn(
    name: Annotated[
        str | None, typer.Option(help="Make one edit in OUT/edits/NAME; without it, run the study's own edits.")
    ] = None,
    method: Annotated[UnlearnMethod, typer.Option(help="How to unlearn.")] = "npo",
    target_em: Annotated[Amount | None, typer.Option(help="End when the targets' mean EM is as low as this.")] = 10.0,
    keep_kl: Annotated[
        Amount | None, typer.Option(help="End before KL on kept text passes this, in nats per token.")
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
    """Remove memories and measure the cost; writes OUT/unlearn.nc and OUT/edited, or with --name OUT/edits/NAME."""
    known_rate = learning_rate(rate)
    settings = study_settings(out, model=model, corpus=corpus, seed=seed, limit=limit, assignments=assignments)
    if name is None:
        print_findings(run_until(out, settings, "unlearn", device=device))
        wrote(out / "unlearn.nc")
        return
    make(
        out,
        settings,
        name,
        device=device,
        kind="unlearn",
        method=method,
        weights=weights,
        mask=None if mask is None else str(mask),
        fraction=fraction,
        steps=steps,
        learning_rate=known_rate,
        batch_size=batch_size,
        weight_decay=weight_decay,
        max_norm=max_norm,
        keep_weight=keep_weight,
        target_em=target_em,
        keep_kl=keep_kl,
    )
