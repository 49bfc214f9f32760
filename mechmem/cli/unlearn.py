"""`mechmem unlearn`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mechmem.cli.choices import UnlearnMethod
from mechmem.cli.commands import command, wrote
from mechmem.cli.editing import EditOptions, Steps, make
from mechmem.cli.studies import StudyOptions, print_findings
from mechmem.data.bounds import Amount
from mechmem.data.errors import InputError
from mechmem.study.edit_settings import EditSettings


@command(goes_on=True)
def unlearn(
    study: StudyOptions,
    options: EditOptions,
    name: Annotated[
        str | None, typer.Option(help="Make one edit in OUT/edits/NAME; without it, run the study's own edits.")
    ] = None,
    method: Annotated[UnlearnMethod, typer.Option(help="How to unlearn.")] = "npo",
    target_em: Annotated[
        Amount | None,
        typer.Option(help="End when the targets' mean EM is as low as this; by default a fifth of the continuation."),
    ] = None,
    keep_kl: Annotated[
        Amount | None, typer.Option(help="End before KL on kept text passes this, in nats per token.")
    ] = None,
    steps: Steps = 100,
) -> None:
    """Remove memories and measure the cost; writes OUT/unlearn.nc and OUT/edited, or with --name OUT/edits/NAME."""
    values = {"method": method, "steps": steps, "target_em": target_em, "keep_kl": keep_kl} | options.values()
    if name is not None:
        make(study, name, **values)
        return
    _check_unused(values)
    print_findings(study.run_until("unlearn"))
    wrote(study.out / "unlearn.nc")


def _check_unused(options: dict[str, Any]) -> None:
    """Refuse options of one edit where the study's own edits are made, which its settings decide.

    Raises:
        InputError: an option that would be ignored.
    """
    unused = [option for option, value in options.items() if value != getattr(EditSettings(), option)]
    if unused:
        flags = " and ".join(f"--{option.replace('_', '-')}" for option in unused)
        raise InputError(
            f"got {flags} without --name; need --name NAME to make one edit with it, or --set edits=... and other "
            "settings of the study (`mechmem config` lists them)"
        )
