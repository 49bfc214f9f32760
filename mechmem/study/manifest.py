"""`study.json`: what a study was made with and what it found. Read and checked without importing torch."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any

from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.data.stored_json import check_types, read_object
from mechmem.study.config import apply_settings, different_settings
from mechmem.study.damage import damaged_stages
from mechmem.study.plan import Stage, required
from mechmem.study.settings import StudySettings

MANIFEST = "study.json"
# Raised whenever a file of a study changes its meaning; studies of other formats are refused.
FORMAT = 2
RESTORE = "restore the file, or run the study again in a new folder"
PARTS: dict[str, type] = dict.fromkeys(("model", "corpus", "settings", "timings", "findings", "skipped"), dict)
MODEL: dict[str, type] = {"weight_hash": str, "n_layers": int, "n_heads": int}


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The folder's manifest, or None where there is none.

    Raises:
        InputError: it cannot be read, or another version of mechmem wrote it in another format.
    """
    path = Path(folder) / MANIFEST
    # `Path.is_file` raises for a name that is too long.
    if not os.path.isfile(path):  # noqa: PTH113
        return None
    manifest = read_object(path, advice=RESTORE)
    if manifest.get("format", 1) != FORMAT:
        versions = manifest.get("versions")
        version = versions.get("mechmem") if isinstance(versions, dict) else None
        raise InputError(
            f"{path}: got a study in format {manifest.get('format', 1)!r:.20}, written by mechmem "
            f"{version or 'of another version'!s:.20}; need format {FORMAT}: run the study again in a new folder"
        )
    _check(manifest, path)
    return manifest


def _check(manifest: dict[str, Any], path: Path) -> None:
    """Refuse a manifest without what the commands read from it."""
    check_types(manifest, PARTS, path, advice=RESTORE)
    check_types(manifest["model"], MODEL, path, advice=RESTORE)
    check_types(manifest["corpus"], {"paragraphs": int, "sha256": (str, NoneType)}, path, advice=RESTORE)
    for name in ("findings", "skipped"):
        check_types(manifest[name], dict.fromkeys(manifest[name], str), path, advice=RESTORE)
    check_types(manifest["timings"], dict.fromkeys(manifest["findings"], dict), path, advice=RESTORE)
    for spent in manifest["timings"].values():
        check_types(spent, dict.fromkeys(("seconds", "cpu_seconds"), (int, float)), path, advice=RESTORE)
    manifest_settings(manifest, path)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")


def manifest_settings(manifest: dict[str, Any], path: str | Path = MANIFEST) -> StudySettings:
    """The settings that a study was begun with.

    Raises:
        InputError: a setting that there is not, or with a value that it cannot have.
    """
    try:
        return apply_settings(StudySettings(), manifest["settings"])
    except InputError as error:
        raise InputError(f"{path}: {error}; {RESTORE}") from error


def settings_of(folder: str | Path) -> StudySettings:
    """The settings of the study in a folder.

    Raises:
        InputError: there is no study in it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: holds no study; make one with `mechmem run --out {folder}`")
    return manifest_settings(manifest)


def check_same_settings(folder: Path, manifest: dict[str, Any], settings: StudySettings) -> None:
    """Refuse to go on with other settings than the study was begun with.

    Raises:
        InputError: at least one differs; the sentence names them.
    """
    changes = different_settings(manifest_settings(manifest), settings)
    if changes:
        raise InputError(f"{folder}: holds a study with other settings ({changes}); choose another folder with --out")


def missing_stages(folder: Path, manifest: dict[str, Any] | None, until: str = "report") -> list[Stage]:
    """Of a stage and all that it needs, those that still have to run, in order.

    A stage whose file was damaged or changed runs again.
    """
    if manifest is None:
        return required(until)
    again = damaged_stages(folder, manifest_settings(manifest))
    stages = [stage for stage in required(until) if stage.name not in manifest["skipped"]]
    missing = {
        stage.name
        for stage in stages
        if stage.name in again or not all((folder / name).exists() for name in stage.files)
    }
    # The report is written anew whenever a stage runs.
    return [stage for stage in stages if stage.name in missing or (missing and stage.name == "report")]


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
