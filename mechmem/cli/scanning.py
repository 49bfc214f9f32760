"""The options of `mechmem scan`: how text is read and cut, how it is scored, and the settings that they give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechmem.cli.choices import Precision, ScanMethod
from mechmem.data.bounds import Count, Proportion, Size

if TYPE_CHECKING:
    from mechmem.scan.scan_settings import ScanSettings

TEXT, WORK = "How text is read and cut", "How the work is done"


@dataclass(frozen=True)
class TextOptions:
    """How text is read and cut into paragraphs."""

    prefix_len: Annotated[
        Count | None,
        typer.Option(help="Tokens that are given; by default what a token file says, or 50.", rich_help_panel=TEXT),
    ] = None
    continuation_len: Annotated[
        Count | None,
        typer.Option(
            help="Tokens to continue; by default the rest of a token file's rows, or 50.", rich_help_panel=TEXT
        ),
    ] = None
    stride: Annotated[
        Count | None,
        typer.Option(help="Tokens from one window's start to the next; by default its length.", rich_help_panel=TEXT),
    ] = None
    min_distinct: Annotated[
        Proportion | None,
        typer.Option(
            help="Drop windows with a smaller share of distinct tokens; the paper's is 0.5.", rich_help_panel=TEXT
        ),
    ] = None
    paper_keywords: Annotated[
        bool, typer.Option(help="Drop windows that hold one of the paper's keywords.", rich_help_panel=TEXT)
    ] = False
    deduplicate: Annotated[bool, typer.Option(help="Score equal windows once.", rich_help_panel=TEXT)] = True
    strict: Annotated[
        bool, typer.Option(help="Stop at a record that cannot be read instead of counting it.", rich_help_panel=TEXT)
    ] = False
    column: Annotated[str, typer.Option(help="The field that holds the text.", rich_help_panel=TEXT)] = "text"
    split: Annotated[str, typer.Option(help="Of a dataset.", rich_help_panel=TEXT)] = "train"


@dataclass(frozen=True)
class ScoringOptions:
    """What is found, kept and written, and in which steps."""

    method: Annotated[
        ScanMethod,
        typer.Option(help="cascade stops where a paragraph is certainly not memorized.", rich_help_panel=WORK),
    ] = "full"
    precision: Annotated[
        Precision, typer.Option(help="bfloat16 is for the cascade, and confirmed in float32.", rich_help_panel=WORK)
    ] = "float32"
    edit_distance: Annotated[bool, typer.Option(help="Decode what is not memorized, for its edit distance.")] = True
    min_em: Annotated[Size, typer.Option(help="Write only paragraphs of at least this EM; all are counted.")] = 0
    spans: Annotated[bool, typer.Option(help="Document mode: find memorized spans at every offset.")] = False
    context: Annotated[Count | None, typer.Option(help="Tokens read at once in document mode.")] = None
    min_match: Annotated[
        Count | None,
        typer.Option(help="Predicted tokens for a closer look, in document mode; by default 9 of 10."),
    ] = None
    rows_per_file: Annotated[
        Count | None, typer.Option(help="Write a folder of files with so many rows each.", rich_help_panel=WORK)
    ] = None
    shard_tokens: Annotated[Count, typer.Option(help="Tokens of one part of the work.", rich_help_panel=WORK)] = 200_000
    batch_size: Annotated[Count | None, typer.Option(help="Paragraphs of one forward.", rich_help_panel=WORK)] = None


def scan_settings(
    text: TextOptions, scoring: ScoringOptions, *, model: str, corpus: Path | None, limit: int | None, seed: int
) -> ScanSettings:
    """The settings of a scan; a file of token rows decides lengths that are not given.

    Raises:
        InputError: options of document mode without it, or lengths that the file does not have.
    """
    from mechmem.data.errors import InputError
    from mechmem.data.filters import PAPER_KEYWORDS
    from mechmem.data.lengths import file_lengths, text_lengths
    from mechmem.data.token_tables import holds_table
    from mechmem.data.windows import WindowSettings
    from mechmem.scan.scan_settings import ScanSettings
    from mechmem.scan.spans import SpanSettings

    spans, context, min_match = scoring.spans, scoring.context, scoring.min_match
    if not spans and (min_match is not None or context is not None):
        raise InputError("got --min-match or --context without --spans; need --spans, the document mode, to use them")
    table = corpus if corpus is not None and holds_table(corpus) else None
    stated = None if table is None else file_lengths(table, text.prefix_len, text.continuation_len)
    given, continued = stated or text_lengths(text.prefix_len, text.continuation_len)
    length = given + continued
    lengths = {} if spans else {"length": length, "prefix_len": given}
    windows = WindowSettings(
        **lengths,
        stride=(WindowSettings().stride if spans else length) if text.stride is None else text.stride,
        min_distinct=text.min_distinct,
        keywords=PAPER_KEYWORDS if text.paper_keywords else (),
        deduplicate=text.deduplicate,
        limit=limit,
        seed=seed,
    )
    return ScanSettings(
        model=model,
        corpus=None if corpus is None else str(corpus),
        windows=windows,
        method=scoring.method,
        precision=scoring.precision,
        edit_distance=scoring.edit_distance,
        min_em=scoring.min_em,
        spans=SpanSettings(given, continued, min_match=min_match, context=context) if spans else None,
        run=min(ScanSettings().run, length),
        strict=text.strict,
        column=text.column,
        split=text.split,
        shard_tokens=scoring.shard_tokens,
        batch_size=scoring.batch_size,
    )


def check_plain(settings: ScanSettings, out: Path, *, local: bool) -> None:
    """Refuse options that the first stage of a study does not take.

    Args:
        settings: of the scan.
        out: the study's folder.
        local: whether neither Ray nor several files were asked for.

    Raises:
        InputError: there are such options.
    """
    from mechmem.data.errors import InputError
    from mechmem.data.windows import WindowSettings
    from mechmem.scan.scan_settings import ScanSettings

    given = settings.windows
    plain = WindowSettings(
        length=given.length, prefix_len=given.prefix_len, stride=given.length, limit=given.limit, seed=given.seed
    )
    of_a_study = ScanSettings(model=settings.model, corpus=settings.corpus, windows=plain, run=settings.run)
    if settings != of_a_study or not local:
        raise InputError(
            f"{out}: got options of a scan for a study's folder, whose first stage takes only model, corpus, "
            "seed, limit and lengths; name a .parquet with --out"
        )
