"""`mechmem scan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mechmem.cli.choices import Engine, Precision, ScanMethod
from mechmem.cli.commands import command, console, errors, wrote
from mechmem.cli.display import live_progress
from mechmem.cli.options import Corpus, Device, Model, Seed
from mechmem.cli.studies import print_findings, run_until, study_settings
from mechmem.data.bounds import Count, Proportion, Size

TEXT, WORK = "How text is read and cut", "How the work is done"


@command(goes_on=True)
def scan(
    model: Model = "bundled",
    corpus: Corpus = None,
    out: Annotated[
        Path, typer.Option(help="A .parquet file; or a study's folder, for the study's first stage.")
    ] = Path("paragraphs.parquet"),
    seed: Seed = 0,
    limit: Annotated[Count | None, typer.Option(help="Score a uniform random sample of this many.")] = None,
    device: Device = None,
    prefix_len: Annotated[
        Count | None,
        typer.Option(help="Tokens that are given; by default what a token file says, or 50.", rich_help_panel=TEXT),
    ] = None,
    continuation_len: Annotated[
        Count | None,
        typer.Option(
            help="Tokens to continue; by default the rest of a token file's rows, or 50.", rich_help_panel=TEXT
        ),
    ] = None,
    stride: Annotated[
        Count | None,
        typer.Option(help="Tokens from one window's start to the next; by default its length.", rich_help_panel=TEXT),
    ] = None,
    min_distinct: Annotated[
        Proportion | None,
        typer.Option(
            help="Drop windows with a smaller share of distinct tokens; the paper's is 0.5.", rich_help_panel=TEXT
        ),
    ] = None,
    paper_keywords: Annotated[
        bool, typer.Option(help="Drop windows that hold one of the paper's keywords.", rich_help_panel=TEXT)
    ] = False,
    deduplicate: Annotated[bool, typer.Option(help="Score equal windows once.", rich_help_panel=TEXT)] = True,
    strict: Annotated[
        bool, typer.Option(help="Stop at a record that cannot be read instead of counting it.", rich_help_panel=TEXT)
    ] = False,
    column: Annotated[str, typer.Option(help="The field that holds the text.", rich_help_panel=TEXT)] = "text",
    split: Annotated[str, typer.Option(help="Of a dataset.", rich_help_panel=TEXT)] = "train",
    method: Annotated[
        ScanMethod,
        typer.Option(help="cascade stops where a paragraph is certainly not memorized.", rich_help_panel=WORK),
    ] = "full",
    precision: Annotated[
        Precision, typer.Option(help="bfloat16 is for the cascade, and confirmed in float32.", rich_help_panel=WORK)
    ] = "float32",
    edit_distance: Annotated[bool, typer.Option(help="Decode what is not memorized, for its edit distance.")] = True,
    min_em: Annotated[Size, typer.Option(help="Write only paragraphs of at least this EM; all are counted.")] = 0,
    spans: Annotated[bool, typer.Option(help="Document mode: find memorized spans at every offset.")] = False,
    context: Annotated[Count | None, typer.Option(help="Tokens read at once in document mode.")] = None,
    min_match: Annotated[
        Count | None,
        typer.Option(help="Predicted tokens for a closer look, in document mode; by default 9 of 10."),
    ] = None,
    rows_per_file: Annotated[
        Count | None, typer.Option(help="Write a folder of files with so many rows each.", rich_help_panel=WORK)
    ] = None,
    shard_tokens: Annotated[
        Count, typer.Option(help="Tokens of one part of the work.", rich_help_panel=WORK)
    ] = 200_000,
    batch_size: Annotated[Count | None, typer.Option(help="Paragraphs of one forward.", rich_help_panel=WORK)] = None,
    engine: Annotated[
        Engine, typer.Option(help="ray: workers of the cluster at RAY_ADDRESS.", rich_help_panel=WORK)
    ] = "local",
    workers: Annotated[Count | None, typer.Option(help="Of Ray; by default one a GPU.", rich_help_panel=WORK)] = None,
) -> None:
    """Find the memorized paragraphs of a corpus; writes OUT (parquet) and beside it a manifest (json).

    Each paragraph gets EM, NLL, match, edit distance, its count in the corpus and its cluster of near-duplicates.
    Stop it at any time: the same command continues, also with another --batch-size, --device or --engine.
    """
    with console.status("loading"):
        from mechmem.data.errors import InputError
        from mechmem.data.filters import PAPER_KEYWORDS
        from mechmem.data.lengths import file_lengths, text_lengths
        from mechmem.data.token_tables import holds_table
        from mechmem.data.windows import WindowSettings
        from mechmem.scan.scan import scan as run_scan
        from mechmem.scan.scan_settings import ScanSettings
        from mechmem.scan.spans import SpanSettings
    if not spans and (min_match is not None or context is not None):
        raise InputError("got --min-match or --context without --spans; need --spans, the document mode, to use them")
    source = None if corpus is None else str(corpus)
    table = corpus if corpus is not None and holds_table(corpus) else None
    stated = None if table is None else file_lengths(table, prefix_len, continuation_len)
    given, continued = stated or text_lengths(prefix_len, continuation_len)
    length = given + continued
    lengths = {} if spans else {"length": length, "prefix_len": given}
    windows = WindowSettings(
        **lengths,
        stride=(WindowSettings().stride if spans else length) if stride is None else stride,
        min_distinct=min_distinct,
        keywords=PAPER_KEYWORDS if paper_keywords else (),
        deduplicate=deduplicate,
        limit=limit,
        seed=seed,
    )
    settings = ScanSettings(
        model=model,
        corpus=source,
        windows=windows,
        method=method,
        precision=precision,
        edit_distance=edit_distance,
        min_em=min_em,
        spans=SpanSettings(given, continued, min_match=min_match, context=context) if spans else None,
        run=min(ScanSettings().run, length),
        strict=strict,
        column=column,
        split=split,
        shard_tokens=shard_tokens,
        batch_size=batch_size,
    )
    if out.suffix != ".parquet":
        plain = WindowSettings(length=length, prefix_len=given, stride=length, limit=limit, seed=seed)
        of_a_study = ScanSettings(model=model, corpus=source, windows=plain, run=settings.run)
        if settings != of_a_study or engine != "local" or workers or rows_per_file:
            raise InputError(
                f"{out}: got options of a scan for a study's folder, whose first stage takes only model, corpus, "
                "seed, limit and lengths; name a .parquet with --out"
            )
        chosen = study_settings(
            out,
            model=model,
            corpus=corpus,
            seed=seed,
            prefix_len=prefix_len,
            continuation_len=continuation_len,
            limit=limit,
        )
        print_findings(run_until(out, chosen, "scan", device=device))
        wrote(out)
        return
    with live_progress() as progress:
        manifest = run_scan(
            settings,
            out,
            device=device,
            engine=engine,
            workers=workers,
            rows_per_file=rows_per_file,
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
