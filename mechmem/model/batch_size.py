"""How many rows one forward takes where the caller does not say."""

from __future__ import annotations

import torch

# An accelerator is idle for most of a small batch's time; a CPU's cache is full after a few rows.
ON_ACCELERATOR = 8


def chosen_batch_size(batch_size: int | None, device: torch.device | str, on_cpu: int) -> int:
    """The caller's batch size, or for None one that suits the device.

    Args:
        batch_size: what the caller gave.
        device: where the model is.
        on_cpu: rows of one forward on a CPU; an accelerator takes eight times as many.
    """
    if batch_size is None:
        return on_cpu if torch.device(device).type == "cpu" else on_cpu * ON_ACCELERATOR
    return batch_size
