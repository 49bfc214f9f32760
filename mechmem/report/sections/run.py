"""Section 5: how was this run?"""

import json
from collections.abc import Mapping
from typing import Any

from mechmem.report import figures
from mechmem.report.page import Block, Figure, Section, Table, Verbatim
from mechmem.report.study_files import StudyFiles


def run_section(study: StudyFiles) -> Section:
    """Model, settings, versions and times: what it takes to run the study again."""
    name, title = "run", "How was this run?"
    question = "With which model, settings and versions were these numbers made, and how long did it take?"
    manifest = study.manifest
    if manifest is None:
        missing = ("There is no study.json in the study folder: how it was run is not known.",)
        return Section(name, title, question, (), missing=missing)
    blocks: list[Block] = []
    timings = _seconds(manifest, "seconds")
    if timings:
        reading = "Wall time of each stage, in the order in which they ran; longer took more time."
        blocks.append(Figure(figures.stage_timings(timings), reading))
    blocks += [
        _listing("Model", mapping(manifest, "model"), opened=True),
        _listing("What each stage found", mapping(manifest, "findings")),
        _listing("Stages left out", mapping(manifest, "skipped"), opened=True),
        _listing("Settings", mapping(manifest, "settings")),
        _listing("Versions", mapping(manifest, "versions")),
        Verbatim("study.json in full", json.dumps(manifest, indent=2, ensure_ascii=False)),
    ]
    return Section(name, title, question, _answer(manifest, timings), [block for block in blocks if _filled(block)])


def mapping(manifest: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """A part of the manifest if it is one with names; empty otherwise, so that an odd manifest still gives a report."""
    value = (manifest or {}).get(name)
    return value if isinstance(value, Mapping) else {}


def _answer(manifest: Mapping[str, Any], timings: Mapping[str, float]) -> list[str]:
    model = mapping(manifest, "model")
    name, processing = model.get("name", "unnamed"), model.get("processing")
    weights = f" with {processing} weights" if processing else ""
    answer = [f"Model {name}{weights}, seed {manifest.get('seed', 'unknown')}."]
    if timings:
        total = sum(timings.values())
        longest = max(timings, key=lambda stage: timings[stage])
        shown = f"{total / 60:.1f} minutes" if total >= 120 else f"{total:.0f} seconds"
        busy = sum(_seconds(manifest, "cpu_seconds").values())
        answer.append(
            f"All stages together took {shown} ({busy:.0f} s of CPU time); the longest was {longest} "
            f"({timings[longest]:.0f} s)."
        )
    if model.get("weight_hash"):
        answer.append(
            f"The weights have the hash {model['weight_hash']}: the same hash means the same numbers can be expected."
        )
    return answer


def _seconds(manifest: Mapping[str, Any], kind: str) -> dict[str, float]:
    """Seconds of each stage, of wall time or of the CPU."""
    stages = mapping(manifest, "timings")
    values = {str(stage): mapping(stages, str(stage)).get(kind) for stage in stages}
    return {stage: float(value) for stage, value in values.items() if isinstance(value, int | float)}


def _listing(title: str, values: Mapping[str, Any], *, opened: bool = False) -> Table:
    rows = [
        (str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in values.items()
    ]
    return Table(title, ["Name", "Value"], rows, opened=opened)


def _filled(block: Block) -> bool:
    return not isinstance(block, Table) or bool(block.rows)
