"""A Ray cluster to work on, and how its cores and GPUs are divided among workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mechmem.data.errors import InputError

# Cores of a worker that computes without a GPU: two processes of one thread are little faster than one of two, and
# hold two models.
CORES = 2


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Be connected to the cluster that RAY_ADDRESS names, or else to one of this machine, in the block.

    A connection that was there before stays.

    Yields:
        The module ray.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"got engine 'ray', and Ray is not installed ({error}); need it beside mechmem: "
            "pip install 'mechmem[ray]', or omit the engine"
        ) from error
    begun_here = not ray.is_initialized()
    if begun_here:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield ray
    finally:
        if begun_here:
            ray.shutdown()


@dataclass(frozen=True)
class Division:
    """What each of some workers has.

    Attributes:
        workers: processes.
        cores: of the whole cluster.
        gpus: of the whole cluster, as far as they are used.
    """

    workers: int
    cores: int
    gpus: int

    @property
    def device(self) -> str | None:
        """Where a worker computes; None: on the GPU that it sees."""
        return None if self.gpus else "cpu"

    @property
    def threads(self) -> int:
        """Threads of a worker."""
        return max(1, self.cores // self.workers)


def divided(ray: Any, workers: int | None, device: str | torch.device | None) -> Division:
    """The cluster's cores and GPUs divided.

    Args:
        ray: the module, connected.
        workers: processes; by default one a GPU of the cluster, or else one for two cores.
        device: of the caller's model; if it is the CPU although there is a GPU, the workers leave the GPU alone.
    """
    cores, gpus = (int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU"))
    if device is not None and torch.device(device).type == "cpu":
        gpus = 0
    return Division(workers or gpus or max(1, cores // CORES), cores, gpus)
