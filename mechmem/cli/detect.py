"""`mechmem detect`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mechmem.cli.choices import DetectMethod
from mechmem.cli.commands import command, console, wrote
from mechmem.cli.display import live_progress
from mechmem.cli.studies import StudyOptions, opened_study
from mechmem.data.bounds import Count, Level

if TYPE_CHECKING:
    import xarray as xr

    from mechmem.study.detection_settings import DetectionSettings


@dataclass(frozen=True)
class DetectorOptions:
    """What the detector reads, how it is trained and what it is judged on."""

    features: Annotated[str, typer.Option(help="What it reads at each step, of output, prefix, residual and lens.")] = (
        "output,prefix,residual"
    )
    method: Annotated[DetectMethod, typer.Option(help="auto: the better of both on held-out clusters.")] = "auto"
    trained: Annotated[Count, typer.Option(help="Most paragraphs of each set to train on.")] = 600
    evaluated: Annotated[Count, typer.Option(help="Most paragraphs of each set to judge on.")] = 500
    false_alarms: Annotated[Level, typer.Option(help="The alarm is raised in at most this share of other text.")] = 0.01

    def settings(self) -> DetectionSettings:
        """These options as the study takes them.

        Raises:
            InputError: a feature that there is not.
        """
        from mechmem.study.config import apply_settings
        from mechmem.study.detection_settings import DetectionSettings

        return apply_settings(
            DetectionSettings(),
            asdict(self) | {"features": tuple(part.strip() for part in self.features.split(","))},
        )


@command(goes_on=True)
def detect(study: StudyOptions, options: DetectorOptions) -> None:
    """Train a detector of recitation, and judge it beside free baselines; writes OUT/detector and OUT/detect.nc.

    It is trained on half of the study's clusters and judged on the other half; the report is written anew, with a
    section on it. Runs the scan of the study in OUT first, if it has none. Stop it at any time: the same command goes
    on.
    """
    settings, out = options.settings(), study.out
    opened = opened_study(out, study.settings(), device=study.device)
    with console.status("loading"):
        from mechmem.report.sections.detection import verdict
        from mechmem.report.study_report import write_report
        from mechmem.study.detection import RESULT, run_detection
        from mechmem.study.folder import DETECTOR
    with live_progress() as progress:
        found = run_detection(
            opened, settings, progress=lambda done, total: progress("training and judging", done, total)
        )
    _print(found)
    console.print(verdict(found), highlight=False, soft_wrap=True)
    wrote(out / DETECTOR, out / RESULT, write_report(out))


def _print(found: xr.Dataset) -> None:
    """What is found early, and what the alarm does."""
    from mechmem.report.sections.detection import alarm_rows, compared, moments, share_text
    from mechmem.show.charts.detection_figures import method_name

    table = Table("own tokens", "detector", "best baseline", "which", title="Recitations found at 1 % false alarms")
    for k in moments(found):
        ours, other = compared(found, k)
        rival = ("-", "-") if other is None else (share_text(other), method_name(other.method.item()))
        table.add_row(str(k), share_text(ours), *rival)
    if table.row_count:
        console.print(table)
    table = Table("over whole generations", "share or error (95 %)")
    for row in alarm_rows(found):
        table.add_row(*row)
    console.print(table)
