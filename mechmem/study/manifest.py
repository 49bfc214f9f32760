"""`study.json`: what a study was made with and what it found. Read and checked without importing torch."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.study.config import apply_settings, different_settings
from mechmem.study.plan import Stage, required
from mechmem.study.settings import StudySettings

MANIFEST = "study.json"
# Raised whenever a file of a study changes its meaning; studies of other formats are refused.
FORMAT = 2


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The folder's manifest, or None where there is none.

    Raises:
        InputError: it cannot be read, or another version of mechmem wrote it in another format.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error}); restore the file, or run the study anew") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: holds a {type(manifest).__name__}; need a JSON object with settings")
    if manifest.get("format") != FORMAT:
        version = manifest.get("versions", {}).get("mechmem", "another version")
        raise InputError(
            f"{path}: got a study in format {manifest.get('format', 1)}, written by mechmem {version}; need format "
            f"{FORMAT}: run the study again in a new folder"
        )
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")


def manifest_settings(manifest: dict[str, Any]) -> StudySettings:
    """The settings that a study was begun with."""
    return apply_settings(StudySettings(), manifest["settings"])


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
    """Of a stage and all that it needs, those that still have to run, in order."""
    skipped = {} if manifest is None else manifest["skipped"]
    return [stage for stage in required(until) if stage.name not in skipped and not (folder / stage.file).exists()]


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
