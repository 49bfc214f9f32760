"""Whether a model fits in memory, before anything of its size is allocated."""

from __future__ import annotations

import math

import psutil
import torch

from mechmem.data.errors import InputError
from mechmem.model.architectures import Converter


def check_room(converter: Converter, layers: int, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model that is larger than the memory that is free on its device, swap included on a CPU.

    A sparse file, which takes no room on the disk, may describe a model of any size.

    Raises:
        InputError: the sentence says how much is needed and how much is free.
    """
    count = _numbers(converter.outer) + layers * _numbers(converter.layer)
    need, free = count * dtype.itemsize, _free(device)
    if need > free:
        raise InputError(
            f"the model has {count:,} weights, which take {need / 1e9:.1f} GB as {dtype}, and {free / 1e9:.1f} GB is "
            f"free on {device}; need more memory, dtype=torch.bfloat16, or a smaller model"
        )


def _numbers(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available + psutil.swap_memory().free
