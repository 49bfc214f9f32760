"""JSON files of a checkpoint, which a stranger may have written: bounded, and an object at the top."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mechmem.data.errors import InputError


def read_json(path: Path, most: int) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: an existing file.
        most: bytes; a larger file is refused before it is read, since parsing takes many times its size.

    Raises:
        InputError: a larger file, one that cannot be read, no JSON, values nested too deeply, or no object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise InputError(
                f"{path}: has {path.stat().st_size:,} bytes; need at most {most:,}: it is not what a checkpoint has "
                "under this name, fetch it again"
            )
        found = json.loads(content.decode("utf-8"))
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{path}: not readable as JSON (nested too deeply); write or fetch it again") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); write or fetch it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds a {type(found).__name__}; need a JSON object: write or fetch it again")
    return found


def is_file(path: Path) -> bool:
    """Whether a regular file is there, for any name that a stranger may have chosen."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return False
