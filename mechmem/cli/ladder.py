"""`mechmem ladder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mechmem.cli.commands import command, console, wrote
from mechmem.cli.display import live_progress
from mechmem.cli.options import CORPUS, Device
from mechmem.data.bounds import Count


@command()
def ladder(
    more: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Further models.")] = None,
    models: Annotated[
        list[str] | None, typer.Option("--models", help="Hub names, folders or 'bundled', one after the other.")
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", "--paragraphs", help=f"With counts, as a scan writes them. {CORPUS}"),
    ] = None,
    out: Annotated[Path, typer.Option(help="A netCDF file.")] = Path("ladder.nc"),
    prefix_len: Annotated[
        list[Count] | None, typer.Option(help="Tokens of the prefix; repeatable; by default 10, 20, ... and all.")
    ] = None,
    limit: Annotated[Count | None, typer.Option(help="Score at most this many paragraphs, at random.")] = None,
    device: Device = None,
) -> None:
    """Compare what models of several sizes can be made to say, by counts and prefix lengths; writes OUT (netCDF).

    `mechmem ladder --models A B C --corpus scanned.parquet`: models of one tokenizer, in memory one after the other.
    """
    with console.status("loading"):
        import numpy as np

        from mechmem.data.assets import bundled_paragraphs
        from mechmem.data.errors import InputError
        from mechmem.data.files import check_output
        from mechmem.data.netcdf import save_netcdf
        from mechmem.data.paragraphs import Paragraphs
        from mechmem.measure.scaling import scaling
    names = [*(models or []), *(more or [])]
    if not names:
        raise InputError("got no model; need at least 1: name them after --models")
    if corpus is None and names != ["bundled"]:
        raise InputError(
            f"got no corpus for {', '.join(names)}; need paragraphs with counts: name a scan's file with --corpus"
        )
    if corpus is not None and corpus.suffix != ".parquet":
        raise InputError(
            f"got the corpus {corpus}; need paragraphs with their counts: scan it first "
            f"(mechmem scan --corpus {corpus} --out scanned.parquet)"
        )
    if out.suffix != ".nc":
        raise InputError(f"got the output {out}; need a name that ends in .nc")
    check_output(out)
    paragraphs = bundled_paragraphs() if corpus is None else Paragraphs.load(corpus)
    if limit is not None and limit < len(paragraphs):
        paragraphs = paragraphs.select(np.sort(np.random.default_rng(0).permutation(len(paragraphs))[:limit]))
    with live_progress() as progress:
        result = scaling(
            names,
            paragraphs,
            prefix_lens=prefix_len or None,
            device=device,
            progress=lambda done, total: progress("scoring", done, total),
        )
    save_netcdf(result, out)
    longest = result.isel(prefix_len=-1)
    head = ["model", *(f"count {low}" for low in longest.count_range.values), "per doubling", "95 %"]
    table = Table(*head, title=f"Share extractable after {int(longest.prefix_len)} tokens")
    for name in names:
        one = longest.sel(model=name)
        law = (float(one[f"per_count_doubling{end}"]) for end in ("", "_low", "_high"))
        slope, low, high = law
        shares = (f"{float(share):.2f}" for share in one.share_extractable.values)
        table.add_row(name, *shares, f"{slope:.3f}", f"{low:.3f} to {high:.3f}")
    console.print(table)
    wrote(out)
