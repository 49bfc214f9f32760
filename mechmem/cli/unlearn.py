"""`mechmem unlearn`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
from mechmem.data.errors import InputError
from mechmem.study.edit_settings import EditSettings


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
    options = {
        "method": method,
        "weights": weights,
        "mask": None if mask is None else str(mask),
        "fraction": fraction,
        "steps": steps,
        "learning_rate": learning_rate(rate),
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "max_norm": max_norm,
        "keep_weight": keep_weight,
        "target_em": target_em,
        "keep_kl": keep_kl,
    }
    settings = study_settings(out, model=model, corpus=corpus, seed=seed, limit=limit, assignments=assignments)
    if name is not None:
        make(out, settings, name, device=device, **options)
        return
    _check_unused(options)
    print_findings(run_until(out, settings, "unlearn", device=device))
    wrote(out / "unlearn.nc")


def _check_unused(options: dict[str, Any]) -> None:
    """Refuse options of one edit where the study's own edits are made, which its settings decide.

    Raises:
        InputError: an option that would be ignored.
    """
    unused = [option for option, value in options.items() if value != getattr(EditSettings(), option)]
    if unused:
        flags = " and ".join(f"--{option.replace('_', '-')}" for option in unused)
        raise InputError(
            f"got {flags} without --name; need --name NAME to make one edit with it, or --set edits=... and other "
            "settings of the study (`mechmem config` lists them)"
        )
