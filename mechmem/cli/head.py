"""`mechmem head`."""

from __future__ import annotations

import re
from typing import Annotated

import typer
from rich.table import Table

from mechmem.cli.commands import command, console, wrote
from mechmem.cli.display import live_progress
from mechmem.cli.studies import StudyOptions, opened_study
from mechmem.data.bounds import Count


@command()
def head(
    options: StudyOptions,
    name: Annotated[str, typer.Argument(metavar="HEAD", help="A head such as L1H2, or all: the strongest.")] = "all",
    sample: Annotated[Count, typer.Option(help="Memorized paragraphs, and others, to look at.")] = 64,
    examples: Annotated[Count, typer.Option(help="Paragraphs of each set whose attention is shown.")] = 2,
) -> None:
    """Report on one attention head: does it attend to rare tokens, does it matter; writes OUT/head-HEAD.nc, .html.

    With HEAD all, every head is screened in one pass, and the report is on the one that attends to rare tokens and
    whose removal costs most. The page shows its attention on memorized, perturbed and other paragraphs.
    Runs the scan of the study in OUT first, if it has none.
    """
    from mechmem.data.errors import InputError

    if name != "all" and not re.fullmatch(r"L\d+H\d+", name):
        raise InputError(f"got the head {name!r}; need a name such as L1H2 (layer 1, head 2, both from zero), or all")
    settings, out = options.settings(), options.out
    study = opened_study(out, settings, device=options.device)
    with console.status("loading"):
        from mechmem.data.netcdf import save_netcdf
        from mechmem.localize.head_report import head_report
        from mechmem.report.head_page import head_page
        from mechmem.report.page import write_page
        from mechmem.study.perturbed_examples import perturbed_examples
        from mechmem.study.stages import token_frequencies
    memorized = study.subset("memorized", sample)
    with live_progress() as progress:
        found = head_report(
            study.model,
            memorized,
            study.subset("other", sample),
            head=name,
            counts=token_frequencies(study),
            perturbed=perturbed_examples(study, memorized, examples),
            examples=examples,
            seed=settings.seed,
            progress=lambda done, total: progress("looking at heads", done, total),
        )
    target, page = (out / f"head-{found.attrs['head']}.{suffix}" for suffix in ("nc", "html"))
    drawn = head_page(found)
    with study.writing(target.name, page.name):
        save_netcdf(found, target)
        write_page(page, drawn)
    table = Table("without", "NLL change", "95 %", "EM change", title=found.attrs["head"])
    for test in found.test.values:
        row = found.sel(test=test)
        interval = f"{float(row.nll_low):+.3f} to {float(row.nll_high):+.3f}"
        table.add_row(f"its {test}", f"{float(row.nll_mean):+.3f}", interval, f"{float(row.em_change.mean()):+.2f}")
    console.print(table)
    console.print(f"Ranks among {found.attrs['heads']} heads: {', '.join(found.attrs['ranks'])}", highlight=False)
    console.print(found.attrs["verdict"], highlight=False)
    if name == "all":
        attending = ", ".join(found.attrs["screened"]) or "none"
        said = f"Of {found.attrs['heads']} heads these attend to rare tokens (NLL change without each): {attending}"
        console.print(said, highlight=False)
    wrote(target, page)
