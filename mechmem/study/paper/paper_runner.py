"""The repeated study: one stage an item over one folder, which can be cut off at any point and go on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mechmem.data.checksums import damaged
from mechmem.data.errors import InputError
from mechmem.data.files import check_output, foreign_entries, remove_partials, replacing
from mechmem.data.folder_lock import only_writer
from mechmem.data.settings_match import refuse_other_settings
from mechmem.data.source_digest import source_digest
from mechmem.data.stored_json import check_types, read_object
from mechmem.model.load import provenance
from mechmem.study.manifest import now
from mechmem.study.paper.items import ITEMS
from mechmem.study.paper.paper_folder import NotPossibleError, PaperFolder
from mechmem.study.paper.paper_page import PAGE, write_paper_page
from mechmem.study.paper.paper_sets import read_sets
from mechmem.study.paper.paper_settings import PaperSettings
from mechmem.study.runner import PACKAGES

MANIFEST, FORMAT = "paper.json", 1
ADVICE = "choose another folder with --out"


def run_paper(
    folder: str | Path,
    settings: PaperSettings,
    *,
    device: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    told: Callable[[str, str], None] | None = None,
) -> PaperFolder:
    """Measure every item of the study that the folder lacks, and write the page.

    An item is done when its two files are there, and files are written whole or not at all: after a kill at any point
    the same call measures the missing items and ends with the same numbers, but for times.

    Args:
        folder: made if missing. Holds `paper.json`, `paragraphs.parquet`, NAME.nc and NAME.json of each item,
            `paper.html` and `figures/`.
        settings: what decides the numbers; must equal those that the folder was begun with.
        device: where to compute.
        progress: called with (what is done, done, total).
        told: called with (item, sentence) when an item ends.

    Raises:
        InputError: the folder holds other work, another process works in it, or the model or corpus cannot be used.
    """
    folder = Path(folder)
    check_output(folder, "folder")
    if folder.is_dir() and (found := foreign_entries(folder)) and not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: is not empty and holds no {MANIFEST} (it holds {found[0].name}); {ADVICE}")
    paper = PaperFolder(folder, settings, device, progress or (lambda *_: None))
    with only_writer(folder):
        remove_partials(folder)
        manifest = _agreed(paper)
        for name, measure in ITEMS.items():
            if not paper.done(name):
                said = _measure(paper, name, measure, manifest)
                (folder / PAGE).unlink(missing_ok=True)
                if told is not None:
                    told(name, said)
        if not (folder / PAGE).is_file() or PAGE in damaged(folder):
            problem = write_paper_page(paper)
            if told is not None:
                told("page", problem or "written, with one SVG file of each figure")
    return paper


def read_paper_manifest(folder: Path) -> dict[str, Any] | None:
    """What `paper.json` holds; None where there is none.

    Raises:
        InputError: it is damaged, or of another format.
    """
    path = folder / MANIFEST
    if not os.path.isfile(path):  # noqa: PTH113 - a name that is too long is no file
        return None
    manifest = read_object(path, advice=ADVICE)
    check_types(manifest, {"format": int, "settings": dict, "model": dict, "timings": dict}, path, advice=ADVICE)
    if manifest["format"] != FORMAT:
        raise InputError(f"{path}: got format {manifest['format']!r:.20}; need {FORMAT}: {ADVICE}")
    return manifest


def _agreed(paper: PaperFolder) -> dict[str, Any]:
    """The manifest of a folder that was begun with these settings, weights and this corpus; a new one otherwise."""
    settings = paper.settings
    digests = {name: source_digest(getattr(settings, name)) for name in ("corpus", "others")}
    manifest = read_paper_manifest(paper.folder)
    if manifest is not None:
        refuse_other_settings(paper.folder, manifest["settings"], asdict(settings), advice=ADVICE)
        refuse_other_settings(paper.folder, manifest.get("digests", {}), digests, advice=ADVICE)
        if all(paper.done(name) for name in ITEMS):
            return manifest
    weights = provenance(paper.model).weight_hash
    if manifest is not None:
        if manifest["model"].get("weight_hash") != weights:
            raise InputError(f"{paper.folder}: was begun with other weights of {settings.model}; {ADVICE}")
        return manifest
    # Scored before anything is written down: a corpus that cannot be used leaves no manifest behind.
    sets = read_sets(settings, paper.model, paper.at("scoring paragraphs"))
    manifest = {
        "format": FORMAT,
        "settings": asdict(settings),
        "digests": digests,
        "model": {"name": settings.model, "weight_hash": weights},
        "applies": sets.check.applies,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "begun": now(),
        "timings": {},
    }
    _write(paper, manifest)
    paper.store(sets)
    return manifest


def _write(paper: PaperFolder, manifest: dict[str, Any]) -> None:
    with replacing(paper.folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")


def _measure(paper: PaperFolder, name: str, measure: Callable[[PaperFolder], Any], manifest: dict[str, Any]) -> str:
    began = time.monotonic()
    # An item may be long before it reports anything itself.
    paper.progress(f"measuring {name.replace('_', ' ')}", 0, 1)
    try:
        finding = measure(paper)
    except NotPossibleError as error:
        paper.leave_out(name, str(error))
        return f"left out: {error}"
    paper.save(name, finding)
    seconds = round(time.monotonic() - began, 1)
    manifest["timings"][name] = seconds
    _write(paper, manifest)
    return f"{len(finding.rows)} rows and {len(finding.traps)} traps in {seconds:.0f} s"
