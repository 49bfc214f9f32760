"""`mechmem localize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer
from rich.table import Table

from mechmem.cli.app import Corpus, Device, Limit, Model, Out, Seed, app, console, plain_errors
from mechmem.cli.display import live_progress


@app.command()
def localize(
    model: Model = "bundled",
    corpus: Corpus = None,
    out: Out = Path("study"),
    seed: Seed = 0,
    limit: Limit = None,
    method: Annotated[str, typer.Option(help="A localizer by name; an unknown one lists them all.")] = "integrated",
    paragraph: Annotated[
        str | None, typer.Option(help="Id of one paragraph; by default memorized ones, one of each cluster.")
    ] = None,
    sample: Annotated[int, typer.Option(help="Memorized paragraphs, and others, that are looked at.")] = 16,
    fraction: Annotated[float, typer.Option(help="Share of the neurons that the mask holds.")] = 0.01,
    device: Device = None,
) -> None:
    """Find the MLP neurons that memorized paragraphs depend on most; write OUT/neurons-METHOD.nc and a mask.

    Runs the scan of the study in OUT first, if it has none.
    """
    with plain_errors():
        with console.status("loading"):
            import numpy as np

            from mechmem.data.errors import InputError
            from mechmem.data.files import replacing
            from mechmem.localize.neurons import METHODS, NeuronMethod, localize_neurons, top_neurons
            from mechmem.study.folder import StudyFolder
            from mechmem.study.runner import run_study
            from mechmem.study.settings import Settings
            from mechmem.weights.masks import Mask
        # Refused before anything is computed.
        if method not in METHODS:
            raise InputError(f"method is {method!r}; need one of {', '.join(METHODS)}")
        if sample < 1 or not 0 < fraction <= 1:
            raise InputError(f"sample {sample} and fraction {fraction} came; need 1 or more, and 0 < fraction <= 1")
        settings = Settings(model=model, corpus=None if corpus is None else str(corpus), seed=seed, limit=limit)
        with live_progress() as progress:
            run_study(out, settings, device=device, until="scan", progress=progress)
            run = StudyFolder(out, settings, device)
            if paragraph is None:
                chosen = run.subset("memorized", sample, distinct=True)
            else:
                chosen = run.paragraphs.select(run.paragraphs.column("id").astype(str) == paragraph)
            keep = run.subset("other", sample, distinct=True)
            if not len(chosen) or not len(keep):
                what = "memorized paragraph" if paragraph is None else f"paragraph {paragraph}"
                raise InputError(
                    f"{out}: there are {len(chosen)} of the {what} asked for and {len(keep)} other ones; need at "
                    "least one of both: scan more text"
                )
            scores = localize_neurons(
                run.model,
                chosen,
                keep,
                method=cast(NeuronMethod, method),
                seed=seed,
                progress=lambda done, total: progress(f"localizing by {method}", done, total),
            )
        top = top_neurons(scores, fraction)
        target = out / f"neurons-{method}.nc"
        with replacing(target) as temporary:
            scores.to_netcdf(temporary, engine="h5netcdf")
        mask = out / f"neurons-{method}-mask.safetensors"
        Mask.neurons(run.model, top).save(mask)
        table = Table("neuron", "score", title=f"Of {len(chosen)} paragraphs, by {method}")
        for layer, neuron in top[:10]:
            table.add_row(f"L{layer} N{neuron}", f"{float(scores[layer, neuron]):.3g}")
        console.print(table)
        layers = np.bincount([layer for layer, _ in top], minlength=scores.sizes["layer"])
        console.print(f"The top {len(top)} by layer: {layers.tolist()}", highlight=False)
        for path in (target, mask):
            console.print(f"Wrote {path.resolve()}", soft_wrap=True, highlight=False)
