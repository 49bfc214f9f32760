"""`mechmem patch`."""

from __future__ import annotations

from mechmem.cli.commands import command, wrote
from mechmem.cli.studies import StudyOptions, print_findings


@command(goes_on=True)
def patch(study: StudyOptions) -> None:
    """Patch memorized paragraphs with perturbed ones, position by position; writes OUT/patching.nc.

    Stages that it needs run first.
    """
    print_findings(study.run_until("patch"))
    wrote(study.out / "patching.nc")
