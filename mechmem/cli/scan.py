"""`mechmem scan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mechmem.cli.commands import command, console, errors, wrote
from mechmem.cli.display import live_progress
from mechmem.cli.options import Corpus, Model, Seed, WorkerOptions
from mechmem.cli.scanning import ScoringOptions, TextOptions, check_plain, scan_settings
from mechmem.cli.studies import print_findings, run_until, study_settings
from mechmem.data.bounds import Count


@command(goes_on=True)
def scan(
    model: Model = "bundled",
    corpus: Corpus = None,
    out: Annotated[
        Path, typer.Option(help="A .parquet file; or a study's folder, for the study's first stage.")
    ] = Path("paragraphs.parquet"),
    seed: Seed = 0,
    limit: Annotated[Count | None, typer.Option(help="Score a uniform random sample of this many.")] = None,
    *,
    text: TextOptions,
    scoring: ScoringOptions,
    work: WorkerOptions,
) -> None:
    """Find the memorized paragraphs of a corpus; writes OUT (parquet) and beside it a manifest (json).

    Each paragraph gets EM, NLL, match, edit distance, its count in the corpus and its cluster of near-duplicates.
    Stop it at any time: the same command continues, also with another --batch-size, --device or --engine.
    """
    with console.status("loading"):
        from mechmem.scan.scan import scan as run_scan
    settings = scan_settings(text, scoring, model=model, corpus=corpus, limit=limit, seed=seed)
    if out.suffix != ".parquet":
        local = work.engine == "local" and work.workers is None and scoring.rows_per_file is None
        check_plain(settings, out, local=local)
        chosen = study_settings(
            out,
            model=model,
            corpus=corpus,
            seed=seed,
            prefix_len=text.prefix_len,
            continuation_len=text.continuation_len,
            limit=limit,
        )
        print_findings(run_until(out, chosen, "scan", device=work.device))
        wrote(out)
        return
    with live_progress() as progress:
        manifest = run_scan(
            settings,
            out,
            device=work.device,
            engine=work.engine,
            workers=work.workers,
            rows_per_file=scoring.rows_per_file,
            progress=progress,
        )
    print_scan(manifest)
    wrote(out)
    if left_out := manifest["account"].get("corpus", {}).get("left_out"):
        from mechmem.data.corpora import left_out_sentence

        errors.print(left_out_sentence(left_out), style="bold red", markup=False, highlight=False, soft_wrap=True)


def print_scan(manifest: dict[str, Any]) -> None:
    """What was read, what was left out, and what was found."""
    account = manifest["account"]
    table = Table("what", "how many", title="The scan")
    corpus, windows = account.get("corpus"), account.get("windows")
    if corpus:
        table.add_row("records read", f"{corpus['records']:,}")
        for reason, count in corpus["skipped"].items():
            table.add_row(f"  skipped: {reason}", f"{count:,}")
        for path in corpus.get("left_out", ()):
            table.add_row("  nothing read from", path)
        table.add_row("documents", f"{corpus['documents']:,}")
    if windows:
        table.add_row("windows", f"{windows['windows']:,}")
        for reason, count in windows["dropped"].items():
            if count:
                table.add_row(f"  dropped: {reason}", f"{count:,}")
        table.add_row("  duplicates", f"{windows['duplicates']:,}")
        table.add_row("  not sampled", f"{windows['not_sampled']:,}")
    table.add_section()
    if "em" in manifest:
        em = manifest["em"]
        few = (len(em) - 1) // 5
        table.add_row("paragraphs scored", f"{sum(em):,}")
        table.add_row(f"  memorized (EM {len(em) - 1})", f"{em[-1]:,}")
        table.add_row(f"  other (EM at most {few})", f"{sum(em[: few + 1]):,}")
        table.add_row("rows written", f"{manifest['rows']:,}")
        table.add_row("paragraphs per second", f"{manifest['per_second']:,.1f}")
    else:
        for name, count in manifest["found"].items():
            table.add_row(f"memorized {name}" if name in ("windows", "spans") else name, f"{count:,}")
        for stride, missed in manifest["missed"].items():
            table.add_row(f"  spans that windows at {stride} miss", f"{missed['spans_missed']:,}")
            table.add_row("  tokens of spans that they miss", f"{missed['tokens_missed']:,} of {missed['tokens']:,}")
        table.add_row("tokens per second", f"{manifest['per_second']:,.0f}")
    console.print(table)
