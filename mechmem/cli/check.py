"""`mechmem check`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from mechmem.cli.commands import command, console
from mechmem.cli.options import Device


def _cell(value: Any) -> str:
    """A table cell: differences with two digits, a dash where nothing was compared."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return "-" if value != value else f"{value:.1e}"
    return str(value)


@command()
def check(
    model: Annotated[str, typer.Argument(help="Hub name, folder or 'bundled'.")] = "bundled", device: Device = None
) -> None:
    """Compare a model with transformers' own: logits, NLL and gradients. Writes nothing; exit code 1 if they differ."""
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
