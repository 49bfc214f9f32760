"""Whether an answer fits in memory or on a disk, before it is computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from mechmem.data.errors import InputError
from mechmem.data.full_disk import existing_parent

# An answer may take this share of the memory or disk that is free.
SHARE = 0.8


def check_room(nbytes: int, out: Path | None) -> None:
    """Refuse an answer that is larger than what is free.

    Args:
        nbytes: its size.
        out: the file it goes to; None: memory.

    Raises:
        InputError: the sentence says how large it is and what makes it smaller.
    """
    if out is None:
        free, where = psutil.virtual_memory().available, "memory"
        advice = "write it to a file (out='capture.nc')"
    else:
        folder = existing_parent(out)
        free, where = shutil.disk_usage(folder).free, f"disk space at {folder}"
        advice = "take another disk"
    if nbytes > SHARE * free:
        raise InputError(
            f"the answer takes {_size(nbytes)} and {_size(free)} of {where} is free; {advice}, or ask for fewer "
            "sites, layers, heads, positions or paragraphs, or dtype=torch.float16"
        )


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"
