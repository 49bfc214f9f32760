"""`mechmem export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechmem.cli.commands import command, wrote
from mechmem.cli.options import Device, Out, StudyCorpus, StudyModel
from mechmem.cli.studies import opened_study, study_settings


@command()
def export(
    edit: Annotated[str, typer.Argument(help="The edit's name: a folder of OUT/edits.")],
    folder: Annotated[Path, typer.Argument(help="Where to write; new or empty.")],
    out: Out = Path("study"),
    model: StudyModel = None,
    corpus: StudyCorpus = None,
    device: Device = None,
) -> None:
    """Write an edited model as a Hugging Face folder with a model card; transformers loads it."""
    study = opened_study(out, study_settings(out, model=model, corpus=corpus), device=device)
    from mechmem.study.edits import export_edit

    export_edit(study, edit, folder)
    wrote(folder)
