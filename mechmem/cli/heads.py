"""`mechmem heads`."""

from __future__ import annotations

from mechmem.cli.commands import command, wrote
from mechmem.cli.studies import StudyOptions, print_findings


@command(goes_on=True)
def heads(study: StudyOptions) -> None:
    """Ablate heads and measure attention to rare tokens; writes OUT/heads.nc, rare.nc and attention.nc.

    Stages that it needs run first.
    """
    print_findings(study.run_until("attention"))
    wrote(study.out / "heads.nc", study.out / "rare.nc", study.out / "attention.nc")
