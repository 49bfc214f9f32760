"""Whether a disturbed command ended with the results of an undisturbed one."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mechmem.data.netcdf import load_netcdf

# What says when and how fast something was done, and not what came out.
TIMES = {"timings", "created", "finished", "seconds", "cpu_seconds", "peak_mb", "per_second", "resumed"}


def differences(reference: Path, folder: Path) -> list[str]:
    """What differs, one sentence each: files there and not there, and contents.

    Every file is compared byte by byte, with these exceptions. JSON is compared without its times, and the result of
    an attack without the seconds it took. The report shows the manifest's times and is written anew from the
    reference's manifest before it is compared. The head of a safetensors file is compared as JSON, because the library
    writes its metadata in an order that changes; the tensors' bytes are compared. For the same reasons the checksums of
    these files are left out of the list of checksums.
    """
    ours, theirs = _files(reference), _files(folder)
    found = [f"{name} is missing" for name in sorted(ours.keys() - theirs.keys())]
    found += [f"{name} was left behind" for name in sorted(theirs.keys() - ours.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        if name.endswith(".json"):
            same = _timeless(ours[name]) == _timeless(theirs[name])
        elif name.endswith(".safetensors"):
            same = _tensors(ours[name]) == _tensors(theirs[name])
        elif name.endswith("attacks.nc"):
            same = (
                load_netcdf(ours[name])
                .drop_vars("seconds", errors="ignore")
                .identical(load_netcdf(theirs[name]).drop_vars("seconds", errors="ignore"))
            )
        elif name == "study/SHA256SUMS":
            same = _sums(ours[name]) == _sums(theirs[name])
        elif name.endswith("report.html"):
            same = _rewritten(reference, ours[name].parent) == _rewritten(reference, theirs[name].parent)
        else:
            same = ours[name].read_bytes() == theirs[name].read_bytes()
        if not same:
            found.append(f"{name} differs")
    return found


def _files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def _timeless(path: Path) -> Any:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in TIMES and k not in ("report.html", "study.json")}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(json.loads(path.read_text()))


def _tensors(path: Path) -> tuple[Any, bytes]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _sums(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.endswith((".safetensors", "attacks.nc"))]


def _rewritten(reference: Path, study: Path) -> bytes:
    from mechmem.report.study_report import write_report

    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "study"
        shutil.copytree(study, copy)
        shutil.copy(next(reference.rglob("study.json")), copy / "study.json")
        return write_report(copy).read_bytes()
