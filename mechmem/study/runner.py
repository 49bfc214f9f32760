"""A study: stages over one folder, which can be cut off at any point and go on."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mechmem.data.errors import InputError
from mechmem.data.files import check_output, foreign_entries
from mechmem.data.folder_lock import only_writer
from mechmem.data.progress import ProgressLike, reporting
from mechmem.data.source_digest import source_digest
from mechmem.intervene.cost_sets import rows_of
from mechmem.intervene.oracle_check import check_oracle
from mechmem.model.load import provenance
from mechmem.report.study_report import write_report
from mechmem.study.config import described
from mechmem.study.damage import prepare
from mechmem.study.folder import StudyFolder
from mechmem.study.manifest import (
    FORMAT,
    MANIFEST,
    check_same_settings,
    manifest_settings,
    missing_stages,
    now,
    read_manifest,
    write_manifest,
)
from mechmem.study.plan import NAMES, STAGES, Stage, required, stage_costs
from mechmem.study.sets import held_out
from mechmem.study.settings import StudySettings
from mechmem.study.stage_progress import TOTAL, StageNews, Watch
from mechmem.study.stages import attention_stage, gradient_stage, head_stage, patch_stage, scan_stage
from mechmem.study.unlearning import attack_stage, unlearn_stage

PACKAGES = ("mechmem", "torch", "transformer-lens", "transformers", "numpy", "scipy", "xarray", "datasets")


def report_stage(study: StudyFolder) -> str:
    """Write the report; -> report.html."""
    write_report(study.folder)
    return "report.html answers the five questions"


# What each stage does: it writes its files and returns a sentence on what it found.
WORK: dict[str, Callable[[StudyFolder], str]] = {
    "scan": scan_stage,
    "gradients": gradient_stage,
    "heads": head_stage,
    "attention": attention_stage,
    "patch": patch_stage,
    "unlearn": unlearn_stage,
    "attack": attack_stage,
    "report": report_stage,
}


def run_study(
    folder: str | Path,
    settings: StudySettings | None = None,
    *,
    device: str | None = None,
    until: str = "report",
    progress: ProgressLike = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Run a stage of a study, by default the report, and those it needs that the folder lacks; return the manifest.

    A stage is done when its file is there, and files are written whole or not at all: after a kill at any point the
    same call does the missing stages and ends with the same numbers. A stage whose file was damaged or changed after it
    was written (its checksum is in `SHA256SUMS`) runs again. The report is written anew whenever a stage ran. One
    process at a time works in a folder.

    Args:
        folder: made if missing. Holds `study.json`, `paragraphs.parquet`, one `.nc` for each stage, `edits/`,
            `edited/` and `report.html`.
        settings: what decides the numbers; must equal those that the folder was begun with. None: those of the folder,
            or the defaults for a new one.
        device: where to compute.
        until: the stage to run, by name; those that it needs run before it. "report" needs all.
        progress: called with (done, total) of the whole run.
        watch: called with a `StageNews` whenever there is something to tell.

    Returns:
        What `study.json` holds: model, corpus, settings, versions; `findings`, a sentence for each stage; `timings`,
        seconds, CPU seconds and peak memory (MB) of each stage; `skipped`, why a stage was left out.

    Raises:
        InputError: the folder holds another study or other files, another process works in it, it cannot be written,
            the disk is full, the stage is unknown, or the model or the corpus cannot be used.
    """
    required(until)
    folder = Path(folder)
    manifest = _manifest(folder, settings)
    if manifest is not None and not missing_stages(folder, manifest, until):
        # Nothing is written, so a study can be read where nobody may write.
        return _go_on(StudyFolder(folder, manifest_settings(manifest), device), manifest, until)
    with reporting(progress, "run_study") as call, only_writer(folder):
        # Another process may have ended meanwhile.
        manifest = _manifest(folder, settings)
        known = settings if manifest is None or settings is not None else manifest_settings(manifest)
        study = StudyFolder(folder, known or StudySettings(), device)
        manifest = _begin(study) if manifest is None else _go_on(study, manifest, until)
        _run_missing(study, manifest, until, call, watch)
    return manifest


def _manifest(folder: Path, settings: StudySettings | None) -> dict[str, Any] | None:
    """The manifest of a study with these settings; None for a new or empty folder, which is left as it is."""
    manifest = read_manifest(folder)
    if manifest is not None and settings is not None:
        check_same_settings(folder, manifest, settings)
    if manifest is None:
        check_output(folder, "folder")
    if manifest is None and folder.is_dir() and (found := foreign_entries(folder)):
        raise InputError(
            f"{folder}: is not empty and holds no {MANIFEST} (it holds {found[0].name}); choose a new or empty folder "
            "with --out"
        )
    return manifest


def _run_missing(
    study: StudyFolder,
    manifest: dict[str, Any],
    until: str,
    progress: Callable[[int, int], None] | None,
    watch: Watch | None,
) -> None:
    reporter = _Reporter(study, manifest, until, progress, watch)
    missing = missing_stages(study.folder, manifest, until)
    for stage, files in prepare(study.folder, study.settings, missing).items():
        reporter.say(stage, f"computing it again, since {', '.join(files)} was damaged or changed after it was written")
    for stage in missing:
        _run_stage(study, stage, manifest, reporter)


def _run_stage(study: StudyFolder, stage: Stage, manifest: dict[str, Any], reporter: _Reporter) -> None:
    reporter.begin(stage)
    reason = _cannot(study, stage)
    if reason:
        manifest["skipped"][stage.name] = reason
        write_manifest(study.folder, manifest)
        reporter.end(stage, f"left out: {reason}")
        return
    wall, cpu = time.monotonic(), time.process_time()
    if stage.name == "report":
        # The report shows the manifest, so it must be finished before.
        manifest["finished"] = now()
        write_manifest(study.folder, manifest)
    else:
        (study.folder / "report.html").unlink(missing_ok=True)
        manifest["finished"] = None
    finding = WORK[stage.name](study)
    manifest["findings"][stage.name] = finding
    manifest["timings"][stage.name] = {
        "seconds": round(time.monotonic() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mb": _peak_memory(),
    }
    write_manifest(study.folder, manifest)
    reporter.end(stage, finding)


def _cannot(study: StudyFolder, stage: Stage) -> str | None:
    """Why a stage cannot run, or None."""
    if stage.needs != "nothing" and not study.comparable:
        return "the corpus has fewer than two clusters of memorized or of other paragraphs"
    if stage.needs == "held-out" and held_out(study) is None:
        return "all memorized paragraphs are targets, and the attack by relearning needs others"
    return None


class _Reporter:
    """Turns what stages report into news with a share of the whole run."""

    def __init__(
        self,
        study: StudyFolder,
        manifest: dict[str, Any],
        until: str,
        progress: Callable[[int, int], None] | None,
        watch: Watch | None,
    ) -> None:
        self._study, self._progress, self._watch = study, progress, watch
        model, count = manifest["model"], manifest["corpus"]["paragraphs"]
        costs = stage_costs(study.settings, count, model["n_layers"] * model["n_heads"])
        self._costs = {stage.name: costs[stage.name] for stage in missing_stages(study.folder, manifest, until)}
        self._done = 0.0

    def begin(self, stage: Stage) -> None:
        self._tell(stage, stage.title, 0.0)
        self._study.report = lambda doing, done, total: self._tell(stage, doing, done / max(total, 1))

    def say(self, stage: str, what: str) -> None:
        """Something about a stage that has not begun."""
        if self._watch is not None:
            self._watch(StageNews(NAMES.index(stage) + 1, len(STAGES), stage, "starting", 0.0, 0.0, what))

    def end(self, stage: Stage, finding: str) -> None:
        self._done += self._costs[stage.name]
        self._tell(stage, stage.title, 1.0, finding)

    def _tell(self, stage: Stage, doing: str, share: float, finding: str | None = None) -> None:
        own = 0.0 if finding is not None else share * self._costs[stage.name]
        whole = min(1.0, (self._done + own) / sum(self._costs.values()))
        if self._progress is not None:
            self._progress(int(TOTAL * whole), TOTAL)
        if self._watch is not None:
            number = NAMES.index(stage.name) + 1
            self._watch(StageNews(number, len(STAGES), stage.name, doing, share, whole, finding))


def _begin(study: StudyFolder) -> dict[str, Any]:
    """A new manifest in a new or empty folder."""
    # Read before anything is written: a corpus that cannot be used leaves no folder behind.
    paragraphs = len(study.unscored)
    if study.targets_from is not None:
        rows_of(study.unscored, study.targets_from)
    check_oracle(study.model, study.model, *study.beside)
    corpus = study.settings.corpus
    manifest = {
        "format": FORMAT,
        "model": _describe_model(study),
        "corpus": {
            "paragraphs": paragraphs,
            "name": corpus or "bundled paragraphs",
            "sha256": source_digest(corpus),
        },
        "settings": described(study.settings),
        "seed": study.settings.seed,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "timings": {},
        "findings": {},
        "skipped": {},
        "created": now(),
        "finished": None,
    }
    write_manifest(study.folder, manifest)
    return manifest


def _go_on(study: StudyFolder, manifest: dict[str, Any], until: str) -> dict[str, Any]:
    """The manifest of a study that was begun with these weights and this corpus."""
    corpus = study.settings.corpus
    # None: a dataset on the hub that cannot be reached now.
    if len({source_digest(corpus), manifest["corpus"]["sha256"]} - {None}) > 1:
        raise InputError(f"{study.folder}: was begun with another content of {corpus}; choose another --out")
    needs_model = any(stage.name != "report" for stage in missing_stages(study.folder, manifest, until))
    if needs_model and provenance(study.model).weight_hash != manifest["model"]["weight_hash"]:
        raise InputError(
            f"{study.folder}: was begun with other weights of {study.settings.model}; choose another --out"
        )
    return manifest


def _describe_model(study: StudyFolder) -> dict[str, Any]:
    model, config = study.model, study.model.cfg
    # TransformerLens holds a tied embedding twice.
    tied = torch.equal(model.embed.W_E, model.unembed.W_U.T)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "name": study.settings.model,
        "weight_hash": provenance(model).weight_hash,
        "processing": provenance(model).processing,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "d_model": config.d_model,
        "n_params": parameters - tied * model.embed.W_E.numel(),
    }


def _peak_memory() -> int:
    """The process's largest resident memory so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)
