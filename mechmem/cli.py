"""The `mechmem` command: arguments, progress and exit codes.

Science is imported inside the commands: the libraries take seconds, and `--help` must answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

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
        "--corpus", "--paragraphs", help="Text (.txt .jsonl .jsonl.zst .parquet) or token ids (.npy .parquet)."
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


@contextmanager
def live_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback (what, done, total) that draws one bar a task; plain lines where there is no terminal."""
    if not console.is_terminal:
        seen: set[str] = set()

        def line(what: str, done: int, total: int) -> None:  # noqa: ARG001
            if what not in seen:
                seen.add(what)
                console.print(f"{what} ...")

        yield line
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
    )
    with Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console) as bars:
        tasks: dict[str, Any] = {}

        def bar(what: str, done: int, total: int) -> None:
            for name, task in tasks.items():
                if name != what:
                    bars.update(task, completed=bars.tasks[task].total)
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield bar
        for task in tasks.values():
            bars.update(task, completed=bars.tasks[task].total)


def study(until: str, folder: Path, device: str | None, **settings: Any) -> None:
    """Run a study's stages and say what came of them."""
    with plain_errors():
        with console.status("loading"):
            from mechmem.stages import Settings
            from mechmem.study import run_study
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
    "scan": ("scan", "Score paragraphs; writes OUT/paragraphs.parquet with EM, NLL and the set of each."),
    "gradients": ("gradients", "Parameter gradients by component; writes OUT/gradients.nc, after the scan."),
    "heads": ("attention", "Ablate heads, look for rare tokens; writes OUT/heads.nc, rare.nc and attention.nc."),
    "unlearn": ("unlearn", "Remove memories, measure the price; writes OUT/unlearn.nc and OUT/edited."),
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


def _cell(value: Any) -> str:
    """A table cell: differences with two digits, a dash where nothing was compared."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return "-" if value != value else f"{value:.1e}"
    return str(value)


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="Hub name, folder or 'bundled'.")] = "bundled", device: Device = None
) -> None:
    """Compare a model with transformers' own: logits, NLL and gradients. Writes nothing; exit code 1 if they differ."""
    with plain_errors():
        with console.status(f"comparing {model} with transformers"):
            from mechmem.model.check import check_model

            result = check_model(model, device=device)
        rows = result.to_dataframe().reset_index().set_index(["processing", "text", "positions"]).reset_index()
        rows = rows.rename(columns={"processing": "weights", "positions": "tokens"})
        names = (str(name).removesuffix("_difference").replace("_", " ") for name in rows.columns)
        table = Table(*names, title=f"{model}: largest differences from transformers")
        for row in rows.itertuples(index=False):
            table.add_row(*map(_cell, row))
        console.print(table)
        console.print(str(result.attrs["verdict"]), highlight=False)
        if not bool(result.ok.all()):
            raise typer.Exit(1)


if __name__ == "__main__":
    app()
