"""The parts of a scan, scored by the workers of a Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mechmem.data.errors import InputError
from mechmem.data.own_files import read_json
from mechmem.scan.ray_cluster import divided, ray_cluster
from mechmem.scan.scan_parts import PartScorer, account_path
from mechmem.scan.scan_rows import DocumentRows, Report, ScanRows
from mechmem.scan.scan_settings import ScanSettings

# Blocks that Ray Data handles at once; more parts than this share blocks.
MOST_BLOCKS = 10_000


def score_parts(
    settings: ScanSettings,
    folder: Path,
    rows: ScanRows | DocumentRows,
    *,
    workers: int | None = None,
    device: str | torch.device | None = None,
    report: Report,
) -> list[dict[str, Any]]:
    """Score the parts that are not done, on the cluster that RAY_ADDRESS names or else on this machine.

    Every worker loads the model once and writes its parts into the scan's folder, which all must see under the same
    path. Parts are whole files that only one name can have, so a worker that is killed loses the part it had in hand
    and nothing else: Ray starts another, and a part that two workers took ends as one file.

    Args:
        settings: of the scan.
        folder: its work folder.
        rows: what is scored.
        workers: processes; by default one a GPU of the cluster, or else one for two cores.
        device: of the caller's model; if it is the CPU although there is a GPU, the workers leave the GPU alone.
        report: called after each part.

    Returns:
        The parts' accounts.

    Raises:
        InputError: Ray is not installed, or the workers do not see the folder.
    """
    with ray_cluster():
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        todo = _missing(folder, rows)
        done = rows.total - sum(rows.size(number) for number in todo)
        for row in _scored(settings, folder, todo, workers, device) if todo else ():
            done += row["size"]
            report(settings.doing, done, rows.total)
    missing = _missing(folder, rows)
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {rows.parts} parts were scored and are not here; need a folder that all "
            "workers share: put the output on a shared file system"
        )
    return [read_json(account_path(folder, number)) for number in range(rows.parts)]


def _missing(folder: Path, rows: ScanRows | DocumentRows) -> list[int]:
    """Parts without an account."""
    return [number for number in range(rows.parts) if not account_path(folder, number).is_file()]


def _scored(
    settings: ScanSettings, folder: Path, todo: list[int], workers: int | None, device: str | torch.device | None
) -> Iterable[dict[str, Any]]:
    """Score parts on the cluster; yields {"part", "size"} as each is done."""
    import ray
    import ray.data

    division = divided(ray, workers, device)
    # One worker's cores are left to Ray Data itself.
    share: dict[str, Any] = {"num_cpus": max(1, division.cores // (division.workers + 1))}
    if division.gpus:
        share = {"num_gpus": division.gpus / division.workers}
    parts = ray.data.from_items([{"part": number} for number in todo], override_num_blocks=min(len(todo), MOST_BLOCKS))
    worker = {
        "settings": settings,
        "folder": str(folder.absolute()),
        "device": division.device,
        "threads": division.threads,
    }
    compute = ray.data.ActorPoolStrategy(size=division.workers)
    return parts.map_batches(_Worker, batch_size=1, compute=compute, fn_constructor_kwargs=worker, **share).iter_rows()


class _Worker:
    """One process with one model."""

    def __init__(self, settings: ScanSettings, folder: str, device: str | None, threads: int):
        torch.set_num_threads(threads)
        self._scorer = PartScorer(settings, Path(folder), device=device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        sizes = [self._scorer.score(int(number))["size"] for number in batch["part"]]
        return {"part": batch["part"], "size": sizes}
