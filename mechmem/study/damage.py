"""Files of a study that were damaged or changed after they were written, and which stage makes them again.

Nothing here imports torch: a finished study is recognized without it.
"""

from __future__ import annotations

from pathlib import Path

from mechmem.data.checksums import damaged, record, recorded
from mechmem.data.files import remove_partials
from mechmem.study.plan import STAGES, Stage
from mechmem.study.settings import StudySettings

# What `make_edit` writes; the rest of an edit's folder is measured on it.
OF_MAKING = ("edit.safetensors", "history.nc", "mask.safetensors", "settings.json", "targets.parquet")
MEASURED = ("costs.nc", "attacks.nc")


def damaged_stages(folder: Path, settings: StudySettings) -> dict[str, list[str]]:
    """Stage -> its files whose checksum differs, named from the study's folder.

    An edit that has to be made again has to be attacked again as well.
    """
    found: dict[str, list[str]] = {}
    for name in damaged(folder):
        stage = stage_of(name, settings)
        stages = ("unlearn", "attack") if stage == "unlearn" and _of_making(name) else (stage,)
        for stage in stages:
            if stage is not None:
                found.setdefault(stage, []).append(name)
    return found


def stage_of(name: str, settings: StudySettings) -> str | None:
    """Which stage writes a file, named from the study's folder; None for the files of other commands."""
    for stage in STAGES:
        if name in stage.files:
            return stage.name
    parts = name.split("/")
    if len(parts) == 3 and parts[0] == "edits" and parts[1] in {edit.name for edit in settings.planned_edits()}:
        return "attack" if parts[2] == "attacks.nc" else "unlearn"
    return None


def _of_making(name: str) -> bool:
    return name.startswith("edits/") and name.rpartition("/")[2] in OF_MAKING


def prepare(folder: Path, settings: StudySettings, missing: list[Stage]) -> dict[str, list[str]]:
    """Make a folder ready for the stages that are missing; the caller is its only writer.

    1. What killed writers left is removed.
    2. Damaged files of those stages are removed; of an edit that was damaged, all that was made from it.
    3. Files of finished stages that have no checksum get one: a process was killed before it could.

    Returns:
        stage -> its files that were damaged.
    """
    for place in (folder, *sorted((folder / "edits").glob("*"))):
        if place.is_dir() and not place.is_symlink():
            remove_partials(place)
    names = [stage.name for stage in missing]
    of_stages = damaged_stages(folder, settings)
    found = {stage: of_stages[stage] for stage in names if stage in of_stages}
    for name in sorted({name for files in found.values() for name in files}):
        path = folder / name
        path.unlink(missing_ok=True)
        if _of_making(name):
            for other in (*OF_MAKING, *MEASURED):
                (path.parent / other).unlink(missing_ok=True)
    done = {
        name
        for stage in STAGES
        if stage.name not in names
        for name in stage.files
        if name.endswith((".nc", ".parquet"))
    }
    record(folder, sorted(done - set(recorded(folder))))
    return found
