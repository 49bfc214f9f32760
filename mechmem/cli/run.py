"""`mechmem run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechmem.cli.commands import command, console, wrote
from mechmem.cli.studies import StudyOptions, print_findings, run_until


@command(goes_on=True)
def run(
    study: StudyOptions,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings from a TOML file (`mechmem config` prints one) or another study's study.json."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Larger samples and more edits: for reports, not for a first look.")
    ] = False,
) -> None:
    """Run the whole study; writes OUT/report.html and, beside it, every number in it.

    Stop it at any time: the same command continues without repeating finished stages.
    """
    from mechmem.study.manifest import missing_stages, read_manifest

    settings, out = study.settings(config=config, full_size=full), study.out
    manifest = read_manifest(out)
    if manifest is not None and not missing_stages(out, manifest):
        console.print(f"{out} holds this study, finished {manifest['finished']}; nothing to run", highlight=False)
    manifest = run_until(out, settings, "report", device=study.device)
    print_findings(manifest)
    wrote(out / "report.html")
