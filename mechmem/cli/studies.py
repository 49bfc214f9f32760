"""What the commands of a study share: its settings from every source, and running the stages that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mechmem.cli.commands import console
from mechmem.cli.display import watch_study
from mechmem.cli.options import (
    Device,
    Out,
    Set,
    StudyContinuationLen,
    StudyCorpus,
    StudyLimit,
    StudyModel,
    StudyPrefixLen,
    StudySeed,
)

if TYPE_CHECKING:
    from mechmem.study.folder import StudyFolder
    from mechmem.study.settings import StudySettings


@dataclass(frozen=True)
class StudyOptions:
    """The options of commands that work in a study's folder."""

    model: StudyModel = None
    corpus: StudyCorpus = None
    out: Out = Path("study")
    seed: StudySeed = None
    prefix_len: StudyPrefixLen = None
    continuation_len: StudyContinuationLen = None
    limit: StudyLimit = None
    device: Device = None
    assignments: Set = None

    def settings(self, *, config: Path | None = None, full_size: bool = False) -> StudySettings:
        """As `study_settings`."""
        return study_settings(
            self.out,
            model=self.model,
            corpus=self.corpus,
            seed=self.seed,
            prefix_len=self.prefix_len,
            continuation_len=self.continuation_len,
            limit=self.limit,
            assignments=self.assignments,
            config=config,
            full_size=full_size,
        )

    def run_until(self, stage: str) -> dict[str, Any]:
        """As `run_until`, with these settings."""
        return run_until(self.out, self.settings(), stage, device=self.device)


def study_settings(
    out: Path,
    *,
    model: str | None = None,
    corpus: Path | None = None,
    seed: int | None = None,
    prefix_len: int | None = None,
    continuation_len: int | None = None,
    limit: int | None = None,
    assignments: Sequence[str] | None = None,
    config: Path | None = None,
    full_size: bool = False,
) -> StudySettings:
    """The settings of the study in OUT with what was given; in a new folder, the defaults with it.

    Raises:
        InputError: what was given cannot be read, or differs from what the study was begun with.
    """
    from mechmem.study.config import apply_settings, parse_assignments, read_config
    from mechmem.study.manifest import check_same_settings, manifest_settings, read_manifest
    from mechmem.study.settings import StudySettings, full

    manifest = read_manifest(out)
    settings = StudySettings() if manifest is None else manifest_settings(manifest)
    if full_size:
        settings = full(settings)
    if config is not None:
        settings = apply_settings(settings, read_config(config))
    options = {"model": model, "corpus": None if corpus is None else str(corpus), "seed": seed, "limit": limit}
    options |= {"prefix_len": prefix_len, "continuation_len": continuation_len}
    given = {name: value for name, value in options.items() if value is not None}
    settings = apply_settings(settings, given | parse_assignments(assignments or ()))
    if manifest is not None:
        check_same_settings(out, manifest, settings)
    return settings


def run_until(out: Path, settings: StudySettings, until: str, *, device: str | None) -> dict[str, Any]:
    """Run a stage and those that it needs and the folder lacks; say which and why, and at once if there is none."""
    from mechmem.study.manifest import missing_stages, read_manifest

    manifest = read_manifest(out)
    missing = missing_stages(out, manifest, until)
    if manifest is not None and not missing and not _corpus_changed(settings, manifest):
        return manifest
    needed = [stage.name for stage in missing if stage.name != until]
    if until != "report" and needed:
        console.print(
            f"{until} needs {', '.join(needed)}, which {out} does not hold yet: running first", highlight=False
        )
    with console.status("loading"):
        from mechmem.study.runner import run_study
    with watch_study() as watch:
        return run_study(out, settings, device=device, until=until, watch=watch)


def _corpus_changed(settings: StudySettings, manifest: dict[str, Any]) -> bool:
    """Whether the corpus has to be looked at by the run itself, which refuses one that changed."""
    if settings.corpus is None:
        return False
    from mechmem.data.source_digest import source_digest

    return len({source_digest(settings.corpus), manifest["corpus"]["sha256"]} - {None}) > 1


def opened_study(out: Path, settings: StudySettings, *, device: str | None) -> StudyFolder:
    """The study, scored; what edits it needs both sets.

    Raises:
        InputError: too few memorized or other paragraphs.
    """
    from mechmem.data.errors import InputError

    run_until(out, settings, "scan", device=device)
    with console.status("loading"):
        from mechmem.study.folder import StudyFolder

        study = StudyFolder(out, settings, device)
        if not study.comparable:
            raise InputError(
                f"{out}: the scan found too few memorized or other paragraphs; need two clusters of each: scan more"
            )
    return study


def print_findings(manifest: dict[str, Any]) -> None:
    """What every stage found, and how long it took."""
    table = Table("stage", "found", "seconds", "CPU seconds")
    for stage, finding in manifest["findings"].items():
        spent = manifest["timings"][stage]
        table.add_row(stage, finding, f"{spent['seconds']:.1f}", f"{spent['cpu_seconds']:.1f}")
    for stage, reason in manifest["skipped"].items():
        table.add_row(stage, f"left out: {reason}", "", "")
    if len(manifest["timings"]) > 1:
        table.add_section()
        totals = (sum(spent[name] for spent in manifest["timings"].values()) for name in ("seconds", "cpu_seconds"))
        table.add_row("all stages", "", *(f"{total:.1f}" for total in totals))
    console.print(table)
