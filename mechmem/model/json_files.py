"""JSON files of a checkpoint, which a stranger may have written: bounded, and an object at the top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechmem.data.stored_json import read_object


def read_json(path: Path, most: int) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: an existing file.
        most: bytes; a larger file is refused before it is read, since parsing takes many times its size.

    Raises:
        InputError: a larger file, one that cannot be read, no JSON, values nested too deeply, or no object.
    """
    return read_object(path, advice="write or fetch it again", largest=most)


def is_file(path: Path) -> bool:
    """Whether a regular file is there, for any name that a stranger may have chosen."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return False
