"""Where a model computes and in which type: checked in one place, before anything is read."""

from __future__ import annotations

from typing import Any

import torch

from mechmem.data.errors import InputError

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_device(device: Any) -> None:
    """Refuse a device on which torch cannot compute here.

    Args:
        device: "cpu", "cuda", "cuda:1" or a torch.device; None: a GPU if there is one.

    Raises:
        InputError: no name of a device, one that is not in this machine, or one that holds no numbers (`meta`); the
            sentence lists those that are usable.
    """
    if device is None:
        return
    reason = _unusable(device)
    if reason:
        raise InputError(
            f"got {str(device)!r} as device; {reason}: choose one of {', '.join(_usable())}, or omit device to take a "
            "GPU if there is one"
        )


def check_dtype(dtype: Any) -> None:
    """Refuse a type that the forward and its gradients cannot be computed in.

    Raises:
        InputError: anything but torch's float32, float16, bfloat16 or float64.
    """
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise InputError(f"got {str(dtype)[:80]} as dtype; need one of {', '.join(map(str, DTYPES))}")


def _unusable(device: Any) -> str:
    """Why a device cannot be used; empty if it can."""
    if not isinstance(device, str | torch.device):
        return "need its name or a torch.device"
    try:
        found = torch.device(device)
        if found.type == "meta":
            return "it holds shapes and no numbers"
        if found.type == "cpu" and found.index not in (None, 0):
            return "there is one CPU"
        # Some devices exist by name and fail at the first computation.
        float((torch.ones(1, device=found) + 1).sum())
    except Exception as error:  # what torch raises depends on the device and on how it was built
        lines = str(error).strip().splitlines()
        return f"torch cannot use it here ({type(error).__name__}: {lines[0] if lines else ''})"
    return ""


def _usable() -> list[str]:
    others = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *others, *(["mps"] if torch.backends.mps.is_available() else [])]
