"""Reading back what mechmem wrote for itself: damage from outside is a sentence."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from mechmem.data.errors import InputError
from mechmem.data.stored_json import check_types, read_object


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


def read_json(path: Path, types: Mapping[str, type | tuple[type, ...]] | None = None) -> dict[str, Any]:
    """A JSON object that mechmem wrote.

    Args:
        path: of the file.
        types: what it must hold, name -> type.

    Raises:
        InputError: not one, without one of the names, or with a value of another type under it.
    """
    advice = f"remove {path.parent} and run the same command again"
    found = read_object(path, advice=advice)
    check_types(found, types or {}, path, advice=advice)
    return found
