"""`mechmem gradients`."""

from __future__ import annotations

from mechmem.cli.commands import command, wrote
from mechmem.cli.studies import StudyOptions, print_findings


@command(goes_on=True)
def gradients(study: StudyOptions) -> None:
    """Compute parameter gradients by component; writes OUT/gradients.nc.

    Stages that it needs run first.
    """
    print_findings(study.run_until("gradients"))
    wrote(study.out / "gradients.nc")
