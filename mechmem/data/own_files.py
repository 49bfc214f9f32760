"""Reading back what mechmem wrote for itself: damage from outside is a sentence."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from mechmem.data.errors import InputError
from mechmem.data.stored_json import read_object


@contextmanager
def own_file(path: Path) -> Iterator[None]:
    """Raise InputError for what readers raise at a damaged file.

    Raises:
        InputError: the block raised such an error; the message says what to remove.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: damaged ({reason}); remove {path.parent} and run the same command again") from error


def read_json(path: Path, need: tuple[str, ...] = ()) -> dict[str, Any]:
    """A JSON object that mechmem wrote.

    Raises:
        InputError: not one, or without one of the names.
    """
    advice = f"remove {path.parent} and run the same command again"
    found = read_object(path, advice=advice)
    if missing := [name for name in need if name not in found]:
        raise InputError(f"{path}: has no '{missing[0]}'; {advice}")
    return found
