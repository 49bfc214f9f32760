"""The commands of a study: each runs it up to one stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mechmem.cli.app import Corpus, Device, Limit, Model, Out, Seed, app, console, plain_errors
from mechmem.cli.display import live_progress


def study(until: str, folder: Path, device: str | None, **settings: Any) -> None:
    """Run a study's stages and say what came of them."""
    with plain_errors():
        with console.status("loading"):
            from mechmem.study.runner import run_study
            from mechmem.study.settings import Settings
        with live_progress() as progress:
            manifest = run_study(folder, Settings(**settings), device=device, until=until, progress=progress)
        timings = Table("stage", "seconds", title="Where the time went")
        for stage, seconds in manifest["timings"].items():
            timings.add_row(stage, f"{seconds:.1f}")
        timings.add_section()
        timings.add_row("all stages", f"{sum(manifest['timings'].values()):.1f}")
        console.print(timings)
        result = folder / "report.html" if until == "report" else folder
        console.print(f"Wrote {result.resolve()}", soft_wrap=True, highlight=False)


STUDY_COMMANDS = {
    "run": (
        "report",
        "Run the whole study; writes OUT/report.html and, beside it, every number in it.\n\n"
        "Stop it at any time: the same command goes on without repeating finished stages.",
    ),
    "gradients": ("gradients", "Parameter gradients by component; writes OUT/gradients.nc, after the scan."),
    "heads": ("attention", "Ablate heads, look for rare tokens; writes OUT/heads.nc, rare.nc and attention.nc."),
    "patch": (
        "patch",
        "Patch memorized paragraphs with perturbed ones, position by position; writes OUT/patching.nc.",
    ),
}


def _add_study_command(name: str, until: str, text: str) -> None:
    """A command that runs the study up to one stage; all of them take the same options."""

    @app.command(name, help=text)
    def command(
        model: Model = "bundled",
        corpus: Corpus = None,
        out: Out = Path("study"),
        seed: Seed = 0,
        limit: Limit = None,
        device: Device = None,
    ) -> None:
        name = None if corpus is None else str(corpus)
        study(until, out, device, model=model, corpus=name, seed=seed, limit=limit)


for _name, (_until, _text) in STUDY_COMMANDS.items():
    _add_study_command(_name, _until, _text)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A study's folder.")] = Path("study")) -> None:
    """Write FOLDER/report.html anew from the folder's files."""
    with plain_errors():
        from mechmem.report.study_report import write_report

        console.print(f"Wrote {write_report(folder).resolve()}", soft_wrap=True, highlight=False)
