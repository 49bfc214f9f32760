"""Whether the content of a source is still what it was."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from mechmem.data.inputs import check_hub_name, is_readable, is_saved_dataset, visible_files


def source_digest(source: str | Path | None) -> str | None:
    """A SHA-256 digest that changes whenever the content of a source does.

    A file counts with its bytes; its name and time do not, so that a moved or copied file is the same source. Of a
    folder, every file that is read counts with its name below the folder, its size and its bytes; of a folder that
    `save_to_disk` of a dataset wrote, every file. Hidden files and those of other kinds are not read and do not count.

    Args:
        source: what `inputs.list_inputs` takes, or a file or folder of paragraphs.

    Returns:
        64 hexadecimal digits; of a dataset on the hub a digest of its commit. None without a source, and for
        a dataset on the hub that cannot be reached.

    Raises:
        InputError: no such path, and not a dataset's name.
    """
    if source is None:
        return None
    path = Path(source)
    if path.is_file():
        return _file_digest(path)
    if path.is_dir():
        return _folder_digest(path)
    check_hub_name(str(source))
    return _hub_digest(str(source))


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_digest(folder: Path) -> str:
    every = is_saved_dataset(folder)
    total = hashlib.sha256()
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if every else visible_files(folder)
    for file in files:
        if every or is_readable(file):
            name = file.relative_to(folder).as_posix()
            total.update(os.fsencode(f"{name}\0{file.stat().st_size}\0{_file_digest(file)}\n"))
    return total.hexdigest()


def _hub_digest(name: str) -> str | None:
    try:
        commit = HfApi().dataset_info(name, timeout=10).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError):
        # A study whose paragraphs are read already must go on without the network.
        return None
    return None if commit is None else hashlib.sha256(f"{name}@{commit}".encode()).hexdigest()
