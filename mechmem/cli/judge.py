"""`mechmem evaluate` and `mechmem export`: what an edit cost, and how to ship it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mechmem.cli.app import Corpus, Device, Limit, Model, Out, Seed, app, console, plain_errors
from mechmem.cli.display import live_progress
from mechmem.cli.edits import study_run

Edit = Annotated[str, typer.Argument(help="The edit's name: a folder of OUT/edits.")]


@app.command()
def evaluate(
    edit: Edit,
    model: Model = "bundled",
    corpus: Corpus = None,
    out: Out = Path("study"),
    seed: Seed = 0,
    limit: Limit = None,
    device: Device = None,
    attacks: Annotated[bool, typer.Option(help="Also try to get the targets back.")] = True,
) -> None:
    """Measure what an edit cost on every set, and attack it; writes costs.nc and attacks.nc into OUT/edits/EDIT."""
    with plain_errors():
        from mechmem.intervene.card import cost_rows
        from mechmem.study.edits import edit_folder, evaluate_edit

        run = study_run(model, corpus, out, seed, limit, device)
        with live_progress() as progress:
            costs = evaluate_edit(
                run, edit, attacks=attacks, progress=lambda done, total: progress("attacks", done, total)
            )
        head, rows = cost_rows(costs)
        table = Table(*head, title=f"What {edit} cost")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(f"Wrote {edit_folder(run, edit).resolve()}", soft_wrap=True, highlight=False)


@app.command()
def export(
    edit: Edit,
    folder: Annotated[Path, typer.Argument(help="Where to write; new or empty.")],
    model: Model = "bundled",
    corpus: Corpus = None,
    out: Out = Path("study"),
    seed: Seed = 0,
    limit: Limit = None,
    device: Device = None,
) -> None:
    """Write an edited GPT-Neo as a Hugging Face folder with a model card; transformers loads it."""
    with plain_errors():
        from mechmem.study.edits import export_edit

        run = study_run(model, corpus, out, seed, limit, device)
        export_edit(run, edit, folder)
        console.print(f"Wrote {folder.resolve()}", soft_wrap=True, highlight=False)
