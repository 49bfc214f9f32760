"""`mechmem unlearn`, `edit` and `memorize`: edits of a study's model, in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mechmem.cli.app import Corpus, Device, Limit, Model, Out, Seed, app, console, plain_errors
from mechmem.cli.display import live_progress
from mechmem.cli.study import study

Name = Annotated[str, typer.Option("--name", help="What to call it; it lies in OUT/edits/NAME.")]
Method = Annotated[str, typer.Option(help="How to unlearn; an unknown one lists them all.")]
Weights = Annotated[str, typer.Option(help="top (by gradient), fisher (gradient over the keep set's), random, all.")]
MaskFile = Annotated[Path | None, typer.Option("--mask", help="A mask file, instead of --weights.")]
Fraction = Annotated[float, typer.Option(help="Share of the attention and MLP weights that may move.")]
Steps = Annotated[int, typer.Option(help="At most this many updates.")]
Rate = Annotated[float, typer.Option("--learning-rate", help="Of AdamW.")]
Keep = Annotated[float, typer.Option("--keep-weight", help="Weight of the term that holds other text.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted edit.")]


def study_run(model: str, corpus: Path | None, out: Path, seed: int, limit: int | None, device: str | None) -> Any:
    """The study in a folder, its scan done first if it has none; for an edit it needs both sets."""
    from mechmem.data.errors import InputError
    from mechmem.study.folder import StudyFolder
    from mechmem.study.runner import run_study
    from mechmem.study.settings import Settings

    settings = Settings(model=model, corpus=None if corpus is None else str(corpus), seed=seed, limit=limit)
    with live_progress() as progress:
        run_study(out, settings, device=device, until="scan", progress=progress)
    run = StudyFolder(out, settings, device)
    if not run.comparable:
        raise InputError(
            f"{out}: the scan found too few memorized or other paragraphs (two clusters of each are needed); scan more"
        )
    return run


def make(run: Any, name: str, resume: bool, **settings: Any) -> None:
    """Make an edit and say what it did."""
    from mechmem.study.edits import EditSettings, edit_folder, make_edit

    chosen = EditSettings(**settings)
    with live_progress() as progress:
        history = make_edit(
            run,
            name,
            chosen,
            resume=resume,
            progress=lambda done, total: progress(f"{chosen.kind}, steps", done, total),
        )
    ended = {str(key).removeprefix("final_"): v for key, v in history.attrs.items() if str(key).startswith("final_")}
    table = Table("value", "at the end", title=f"Ended by: {history.attrs['ended']}")
    for key, value in ended.items():
        table.add_row(key, f"{float(value):.4g}")
    console.print(table)
    console.print(f"Wrote {edit_folder(run, name).resolve()}", soft_wrap=True, highlight=False)


@app.command()
def unlearn(
    model: Model = "bundled",
    corpus: Corpus = None,
    out: Out = Path("study"),
    seed: Seed = 0,
    limit: Limit = None,
    device: Device = None,
    name: Annotated[
        str | None, typer.Option(help="Make one edit of your own in OUT/edits/NAME; without it, the study's three.")
    ] = None,
    method: Method = "contrastive",
    weights: Weights = "top",
    mask: MaskFile = None,
    fraction: Fraction = 0.001,
    steps: Steps = 30,
    learning_rate: Rate = 1e-3,
    keep_weight: Keep = 1.0,
    target_em: Annotated[float | None, typer.Option(help="End when the targets' mean EM is as low as this.")] = None,
    keep_kl: Annotated[float | None, typer.Option(help="Budget of KL on kept text, nats a token.")] = None,
    resume: Resume = False,
) -> None:
    """Remove memories, measure the price; writes OUT/unlearn.nc and OUT/edited, or with --name OUT/edits/NAME."""
    if name is None:
        chosen = None if corpus is None else str(corpus)
        study("unlearn", out, device, model=model, corpus=chosen, seed=seed, limit=limit)
        return
    with plain_errors():
        make(
            study_run(model, corpus, out, seed, limit, device),
            name,
            resume,
            kind="unlearn",
            method=method,
            weights=weights,
            mask=None if mask is None else str(mask),
            fraction=fraction,
            steps=steps,
            learning_rate=learning_rate,
            keep_weight=keep_weight,
            seed=seed,
            target_em=target_em,
            keep_kl=keep_kl,
        )


@app.command()
def edit(
    model: Model = "bundled",
    corpus: Corpus = None,
    out: Out = Path("study"),
    seed: Seed = 0,
    limit: Limit = None,
    device: Device = None,
    name: Name = "edit",
    text: Annotated[
        str | None, typer.Option(help="What to say instead; by default what follows the worst perturbed prefix.")
    ] = None,
    weights: Weights = "top",
    mask: MaskFile = None,
    fraction: Fraction = 0.001,
    steps: Steps = 60,
    learning_rate: Rate = 3e-3,
    keep_weight: Keep = 1.0,
    resume: Resume = False,
) -> None:
    """Make the study's targets continue with another text; writes OUT/edits/NAME."""
    with plain_errors():
        make(
            study_run(model, corpus, out, seed, limit, device),
            name,
            resume,
            kind="edit",
            weights=weights,
            mask=None if mask is None else str(mask),
            fraction=fraction,
            steps=steps,
            learning_rate=learning_rate,
            keep_weight=keep_weight,
            seed=seed,
            text=text,
        )


@app.command()
def memorize(
    model: Model = "bundled",
    corpus: Corpus = None,
    out: Out = Path("study"),
    seed: Seed = 0,
    limit: Limit = None,
    device: Device = None,
    name: Name = "memorize",
    targets: Annotated[
        Path | None, typer.Option(help="Paragraphs to memorize (.parquet or .npy of ids); by default one other one.")
    ] = None,
    weights: Weights = "top",
    mask: MaskFile = None,
    fraction: Fraction = 0.001,
    steps: Steps = 200,
    learning_rate: Rate = 1e-3,
    keep_weight: Keep = 1.0,
    resume: Resume = False,
) -> None:
    """Write paragraphs that the model does not know into a few weights; writes OUT/edits/NAME."""
    with plain_errors():
        make(
            study_run(model, corpus, out, seed, limit, device),
            name,
            resume,
            kind="memorize",
            weights=weights,
            mask=None if mask is None else str(mask),
            fraction=fraction,
            steps=steps,
            learning_rate=learning_rate,
            keep_weight=keep_weight,
            seed=seed,
            paragraphs=None if targets is None else str(targets),
        )
