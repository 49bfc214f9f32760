"""`mechmem patch`."""

from __future__ import annotations

from pathlib import Path

from mechmem.cli.commands import command, wrote
from mechmem.cli.options import Device, Out, Set, StudyCorpus, StudyLimit, StudyModel, StudySeed
from mechmem.cli.studies import print_findings, run_until, study_settings


@command(goes_on=True)
def patch(
    model: StudyModel = None,
    corpus: StudyCorpus = None,
    out: Out = Path("study"),
    seed: StudySeed = None,
    limit: StudyLimit = None,
    device: Device = None,
    assignments: Set = None,
) -> None:
    """Patch memorized paragraphs with perturbed ones, position by position; writes OUT/patching.nc.

    Stages that it needs run first.
    """
    settings = study_settings(out, model=model, corpus=corpus, seed=seed, limit=limit, assignments=assignments)
    print_findings(run_until(out, settings, "patch", device=device))
    wrote(out / "patching.nc")
