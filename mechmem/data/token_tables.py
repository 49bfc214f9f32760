"""Whether a source holds paragraphs, rows of token ids in parquet, and not text."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from mechmem.data.decompress import BrokenFileError
from mechmem.data.errors import InputError
from mechmem.data.inputs import is_readable, is_saved_dataset, visible_files
from mechmem.data.parquet_text import damage_named


def holds_table(path: Path) -> bool:
    """Whether a `.parquet`, or every file that is read of a folder, holds paragraphs: a column `tokens`.

    Raises:
        InputError: a folder that holds paragraphs and something else, of which one would be left out.
    """
    if path.is_file():
        return path.suffix == ".parquet" and _has_tokens(path)
    if not path.is_dir() or is_saved_dataset(path):
        return False
    files = [file for file in visible_files(path) if is_readable(file)]
    tables = [file for file in files if file.suffix == ".parquet" and _has_tokens(file)]
    # Paragraphs are read from the folder itself, text from its subfolders as well.
    others = [file for file in files if file not in tables or file.parent != path]
    if tables and others:
        one, other = (some[0].relative_to(path) for some in (tables, others))
        raise InputError(
            f"{path}: holds paragraphs ({one}) and other files ({other}); need one kind, and paragraphs in one folder: "
            "name a file, or move the others"
        )
    return bool(tables)


def _has_tokens(path: Path) -> bool:
    try:
        with damage_named():
            return "tokens" in pq.read_schema(path).names
    except (BrokenFileError, OSError):
        return False  # whoever reads it says what is wrong with it
