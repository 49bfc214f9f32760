"""`mechmem localize`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from mechmem.cli.choices import Localizer
from mechmem.cli.commands import command, console, wrote
from mechmem.cli.display import live_progress
from mechmem.cli.studies import StudyOptions, run_until
from mechmem.data.bounds import Count, Share


@command()
def localize(
    options: StudyOptions,
    method: Annotated[Localizer, typer.Option(help="How to find the neurons.")] = "integrated",
    paragraph: Annotated[
        str | None, typer.Option(help="Id of one paragraph; by default memorized ones, one of each cluster.")
    ] = None,
    sample: Annotated[Count, typer.Option(help="Memorized paragraphs, and others, to compute it on.")] = 16,
    fraction: Annotated[Share, typer.Option(help="Share of the neurons that the mask holds.")] = 0.01,
) -> None:
    """Find the MLP neurons that memorized paragraphs depend on most.

    Writes OUT/neurons-METHOD.nc and OUT/neurons-METHOD-mask.safetensors.

    Runs the scan of the study in OUT first, if it has none.
    """
    from mechmem.data.errors import InputError

    settings, out = options.settings(), options.out
    run_until(out, settings, "scan", device=options.device)
    with console.status("loading"):
        import numpy as np

        from mechmem.data.netcdf import save_netcdf
        from mechmem.localize.neurons import localize_neurons, top_neurons
        from mechmem.study.folder import StudyFolder
        from mechmem.weights.masks import Mask

        study = StudyFolder(out, settings, options.device)
    if paragraph is None:
        chosen = study.subset("memorized", sample, distinct=True)
    else:
        chosen = study.paragraphs.select(study.paragraphs.ids.astype(str) == paragraph)
    keep = study.subset("other", sample, distinct=True)
    if not len(chosen) or not len(keep):
        what = "memorized paragraphs" if paragraph is None else f"paragraphs with the id {paragraph}"
        raise InputError(
            f"{out}: got {len(chosen)} {what} and {len(keep)} other ones; need at least one of both: scan more text"
        )
    with live_progress() as progress:
        scores = localize_neurons(
            study.model,
            chosen,
            keep,
            method=method,
            seed=settings.seed,
            progress=lambda done, total: progress(f"localizing by {method}", done, total),
        )
    top = top_neurons(scores, fraction)
    target, mask = out / f"neurons-{method}.nc", out / f"neurons-{method}-mask.safetensors"
    with study.writing(target.name, mask.name):
        save_netcdf(scores, target)
        Mask.neurons(study.model, top).save(mask)
    table = Table("neuron", "score", title=f"{len(chosen)} paragraphs, by {method}")
    for layer, neuron in top[:10]:
        table.add_row(f"L{layer} N{neuron}", f"{float(scores[layer, neuron]):.3g}")
    console.print(table)
    layers = np.bincount([layer for layer, _ in top], minlength=scores.sizes["layer"])
    console.print(f"The top {len(top)} by layer: {layers.tolist()}", highlight=False)
    wrote(target, mask)
