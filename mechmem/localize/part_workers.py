"""The parts of a job, done in this process or by workers of a Ray cluster."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.part_jobs import Job, job_kind
from mechmem.model.load import HookedTransformer
from mechmem.scan.ray_cluster import divided, ray_cluster

# A worker that was killed begins again, and does again what it had in hand, this many times.
RESTARTS = 5
# Number of the part, its paragraphs.
Part = tuple[int, slice]
Receive = Callable[[int, xr.Dataset], None]


@dataclass(frozen=True)
class Call:
    """A function and its arguments, to be done in parts.

    Attributes:
        function, model, sets, options: as a `Job` takes them.
    """

    function: Callable[..., Any]
    model: HookedTransformer
    sets: list[Paragraphs]
    options: dict[str, Any]

    def job(self) -> Job:
        """The work, opened in this process."""
        return job_kind(self.function)(self.function, self.model, self.sets, self.options)


def parts_here(call: Call, todo: list[Part], receive: Receive) -> None:
    """Do parts one after the other in this process."""
    job = call.job() if todo else None
    for number, rows in todo:
        assert job is not None
        receive(number, job.measure(rows))


def parts_by_ray(call: Call, todo: list[Part], receive: Receive, *, workers: int | None) -> None:
    """Do parts on the cluster that RAY_ADDRESS names, or else on this machine.

    Every worker gets a copy of the model and opens the job once. Parts come back to this process, which alone writes:
    workers need not see its files. Ray starts a worker that was killed again, and what it had in hand is done again.

    Args:
        call: what is done.
        todo: the parts.
        receive: called with each part as it is done, in any order.
        workers: processes; by default one a GPU of the cluster, or else one for two cores.

    Raises:
        InputError: Ray is not installed, the call cannot be sent to other processes, or workers died again and again.
    """
    if not todo:
        return
    with ray_cluster() as ray:
        from ray.exceptions import RayActorError, RayTaskError
        from ray.util import ActorPool

        division = divided(ray, workers, call.model.W_E.device)
        # Fractions let more workers than cores begin.
        share = division.cores / division.workers
        resources: dict[str, Any] = {"num_cpus": int(share) or share}
        if division.gpus:
            resources = {"num_gpus": division.gpus / division.workers}
        actor = ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS, **resources)(_PartWorker)
        sent = _sent(ray, call)
        count = min(division.workers, len(todo))
        pool = ActorPool([actor.remote(sent, division.device, division.threads) for _ in range(count)])
        try:
            for number, part in pool.map_unordered(lambda worker, part: worker.measure.remote(*part), todo):
                receive(number, part)
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            raise
        except RayActorError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"workers of Ray died {RESTARTS + 1} times ({reason}); what was done is kept: run the same call with "
                "fewer workers or smaller parts if memory ran out"
            ) from error


def _sent(ray: Any, call: Call) -> Any:
    """The call in the cluster's store.

    Raises:
        InputError: something in it cannot be sent to another process.
    """
    if call.model.W_E.device.type != "cpu":
        call = replace(call, model=copy.deepcopy(call.model).to("cpu", print_details=False))
    try:
        return ray.put(call)
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"got arguments that cannot be sent to workers ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "need ones that can be pickled, or engine='local'"
        ) from error


class _PartWorker:
    """One process with one model."""

    def __init__(self, call: Call, device: str | None, threads: int) -> None:
        torch.set_num_threads(threads)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device != "cpu":
            call = replace(call, model=call.model.to(device, print_details=False))
        self._call = call

    @cached_property
    def _job(self) -> Job:
        return self._call.job()

    def measure(self, number: int, rows: slice) -> tuple[int, xr.Dataset]:
        """Do one part."""
        return number, self._job.measure(rows).load()
