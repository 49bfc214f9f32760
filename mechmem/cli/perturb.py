"""`mechmem perturb`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mechmem.cli.choices import Replacement, Scope
from mechmem.cli.commands import command, console, wrote
from mechmem.cli.display import live_progress
from mechmem.cli.options import Corpus, Model, Seed, WorkerOptions
from mechmem.data.bounds import Count, Size

# Paragraphs of one part: those of one forward.
PART = 16


@dataclass(frozen=True)
class ReplacementOptions:
    """What is replaced, by what, and what is measured of it: arguments of `perturb_prefix`."""

    replacement: Annotated[Replacement, typer.Option(help="runner-up: the model's second choice.")] = "random"
    scope: Annotated[Scope, typer.Option(help="rest: a token and all after it; prefix: all at once.")] = "token"
    samples: Annotated[Count, typer.Option(help="Random replacements of each token.")] = 1
    edit_distance: Annotated[bool, typer.Option(help="Decode, for the edit distance.")] = False


@command(goes_on=True)
def perturb(
    model: Model = "bundled",
    corpus: Corpus = None,
    out: Annotated[Path, typer.Option(help="A netCDF file; its pairs are written beside it.")] = Path(
        "perturbation.nc"
    ),
    seed: Seed = 0,
    limit: Annotated[Count, typer.Option(help="Perturb a random sample of this many paragraphs.")] = 90,
    min_em: Annotated[
        Size | None, typer.Option(help="Only paragraphs of at least this EM; by default memorized.")
    ] = None,
    *,
    change: ReplacementOptions,
    work: WorkerOptions,
) -> None:
    """Replace every prefix token in turn and score again; writes OUT (netCDF).

    With scope token also OUT-clean.parquet and OUT-corrupt.parquet: each paragraph and its worst single
    replacement outside the last fifth of the prefix. Stop it at any time: the same command continues, also with another
    --engine.
    """
    with console.status("loading"):
        from mechmem.data.errors import InputError
        from mechmem.data.files import check_output
        from mechmem.localize.by_parts import by_parts
        from mechmem.measure.memorized_sample import memorized_sample
        from mechmem.measure.perturb import perturb_prefix
        from mechmem.measure.worst_pairs import worst_perturbations
        from mechmem.model.load import load_model
    if out.suffix != ".nc":
        raise InputError(f"got the output {out}; need a name that ends in .nc")
    pair_files = [out.with_name(f"{out.stem}-{name}.parquet") for name in ("clean", "corrupt")]
    for path in (out, *(pair_files if change.scope == "token" else ())):
        check_output(path)
    loaded = load_model(model, processing="raw", device=work.device)
    with live_progress() as progress:
        paragraphs = memorized_sample(
            loaded,
            None if corpus is None else str(corpus),
            limit=limit,
            min_em=min_em,
            seed=seed,
            progress=lambda done, total: progress("scoring paragraphs", done, total),
        )
        result = by_parts(
            perturb_prefix,
            loaded,
            paragraphs,
            out=out,
            part=PART,
            engine=work.engine,
            workers=work.workers,
            **asdict(change),
            seed=seed,
            progress=lambda done, total: progress("perturbing paragraphs", done, total),
        )
    written = [out]
    if change.scope == "token":
        try:
            clean, corrupt = worst_perturbations(loaded, paragraphs, result)
        except InputError as error:
            # Memories that no single replacement changes are a result, too.
            console.print(f"No pairs: {error}", highlight=False)
        else:
            for path, pairs in zip(pair_files, (clean, corrupt), strict=True):
                pairs.save(path)
            written += pair_files
    table = Table("position", "EM change", "95 %", title="Tokens that matter most")
    for place in result.em_change_mean.argsort().values[:10]:
        here = result.isel(pos=int(place))
        interval = f"{float(here.em_change_low):.1f} to {float(here.em_change_high):.1f}"
        table.add_row(str(int(here.pos)), f"{float(here.em_change_mean):.1f}", interval)
    console.print(table)
    mean = float(result.em_change.mean())
    said = f"EM changes by {mean:.2f} tokens: mean over {len(paragraphs)} paragraphs and all positions"
    console.print(said, highlight=False)
    wrote(*written)
