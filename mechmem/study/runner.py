"""A study: stages over one folder, which can be cut off at any point and go on."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mechmem.data.errors import InputError
from mechmem.data.files import remove_partials, replacing
from mechmem.data.source_digest import source_digest
from mechmem.model.load import provenance
from mechmem.report.study_report import write_report
from mechmem.study.folder import StudyFolder
from mechmem.study.settings import Settings
from mechmem.study.stages import attention_stage, gradient_stage, head_stage, patch_stage, score_stage
from mechmem.study.unlearning import removal_stage

MANIFEST = "study.json"
PACKAGES = ("mechmem", "torch", "transformer-lens", "transformers", "numpy", "scipy", "xarray", "datasets")


@dataclass(frozen=True)
class Stage:
    """One step of a study.

    Attributes:
        name: what the user calls it.
        says: what it does, for the progress display.
        file: what it writes last; where this exists, the stage is done.
        work: the function.
        needs_both: it compares memorized with other paragraphs and is left out where either set is too small for that.
    """

    name: str
    says: str
    file: str
    work: Callable[[StudyFolder], object]
    needs_both: bool = True


STAGES = (
    Stage("scan", "scoring paragraphs", "paragraphs.parquet", score_stage, needs_both=False),
    Stage("gradients", "parameter gradients", "gradients.nc", gradient_stage),
    Stage("heads", "ablating heads", "heads.nc", head_stage),
    Stage("attention", "attention to rare tokens", "rare.nc", attention_stage),
    Stage("patch", "patching", "patching.nc", patch_stage),
    Stage("unlearn", "unlearning", "unlearn.nc", removal_stage),
    Stage("report", "writing the report", "report.html", lambda run: write_report(run.folder), needs_both=False),
)


def run_study(
    folder: str | Path,
    settings: Settings,
    *,
    device: str | None = None,
    until: str = "report",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Run the stages that the folder does not hold yet, up to `until`, and return the manifest.

    A stage is done when its file is there, and files are written whole or not at all: after a kill at any point the
    same call does the missing stages and ends with the same numbers. The report is written anew whenever a stage ran.

    Args:
        folder: made if missing. Holds `study.json`, `paragraphs.parquet`, one `.nc` a stage, `edited/`, `report.html`.
        settings: what decides the numbers; must equal those that the folder was begun with.
        device: where to compute.
        until: last stage to run, by name.
        progress: called with (stage's description, done, total).

    Raises:
        InputError: the folder holds another study or other files, the stage is unknown, or the model or the corpus
            cannot be used.
    """
    names = [stage.name for stage in STAGES]
    if until not in names:
        raise InputError(f"there is no stage '{until}'; the stages are {', '.join(names)}")
    folder = Path(folder)
    run = StudyFolder(folder, settings, device)
    manifest = _open(run)
    for stage in STAGES[: names.index(until) + 1]:
        if (folder / stage.file).exists() or (stage.needs_both and not run.comparable):
            continue
        if progress is not None:
            progress(stage.says, 0, 1)
            run.progress = lambda done, total, says=stage.says: progress(says, done, total)
        started = time.monotonic()
        if stage.name == "report":
            _write(folder, manifest | {"finished": _now()})
        else:
            (folder / "report.html").unlink(missing_ok=True)
        stage.work(run)
        manifest["timings"][stage.name] = round(time.monotonic() - started, 2)
        if stage.name == "report":
            manifest["finished"] = _now()
        _write(folder, manifest)
    return manifest


def _open(run: StudyFolder) -> dict[str, Any]:
    """The folder's manifest, or a new one in a new or empty folder."""
    folder, settings = run.folder, asdict(run.settings)
    if folder.is_dir():
        remove_partials(folder)
    if (folder / MANIFEST).exists():
        manifest = json.loads((folder / MANIFEST).read_text())
        different = [key for key, value in settings.items() if manifest["settings"].get(key) != value]
        if different:
            changes = ", ".join(
                f"{key} was {manifest['settings'].get(key)!r}, now {settings[key]!r}" for key in different
            )
            raise InputError(
                f"{folder}: holds a study with other settings ({changes}); choose another folder with --out"
            )
        _check_sources(run, manifest)
        return manifest
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no {MANIFEST}; choose a new or empty folder with --out")
    # Read before anything is written: a corpus that cannot be used leaves no folder behind.
    paragraphs = len(run.unscored)
    manifest = {
        "model": _describe_model(run),
        "corpus": {
            "paragraphs": paragraphs,
            "name": settings["corpus"] or "bundled paragraphs",
            "sha256": source_digest(settings["corpus"]),
        },
        "settings": settings,
        "seed": settings["seed"],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}",
        "timings": {},
        "created": _now(),
        "finished": None,
    }
    _write(folder, manifest)
    return manifest


def _check_sources(run: StudyFolder, manifest: dict[str, Any]) -> None:
    """A folder goes on only with the weights and the corpus that it was begun with."""
    unfinished = any(not (run.folder / stage.file).exists() for stage in STAGES)
    if unfinished and provenance(run.model).weight_hash != manifest["model"]["weight_hash"]:
        raise InputError(f"{run.folder}: was begun with other weights of {run.settings.model}; choose another --out")
    # None: a dataset on the hub that could not be reached, then or now.
    digests = {source_digest(run.settings.corpus), manifest["corpus"]["sha256"]} - {None}
    if len(digests) > 1:
        raise InputError(f"{run.folder}: was begun with another content of {run.settings.corpus}; choose another --out")


def _describe_model(run: StudyFolder) -> dict[str, Any]:
    config = run.model.cfg
    # TransformerLens holds a tied embedding twice.
    tied = torch.equal(run.model.embed.W_E, run.model.unembed.W_U.T)
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return {
        "name": run.settings.model,
        "weight_hash": provenance(run.model).weight_hash,
        "processing": provenance(run.model).processing,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "d_model": config.d_model,
        "n_params": parameters - tied * run.model.embed.W_E.numel(),
    }


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
