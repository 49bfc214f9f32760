"""What a corpus is read from: a file, a folder of files or a dataset -> the inputs, each with an identity."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from jaxtyping import Integer

from mechmem.data.errors import InputError
from mechmem.data.id_arrays import mapped_ids
from mechmem.data.readers import TEXT_SUFFIXES, read_rows, read_text, text_suffix
from mechmem.data.records import Record, Tally

LOG = logging.getLogger(__name__)
SUFFIXES = (*TEXT_SUFFIXES, ".npy")
ROWS = 256
ID_TYPES = ("uint16", "uint32", "int32", "int64")


@dataclass(frozen=True)
class Input:
    """One file, or one part of a dataset: the unit in which work is resumed.

    Attributes:
        name: the file's path, or "dataset, part i".
        size: bytes of the file; 1 for a part of a dataset, whose size in bytes is unknown.
        version: what changes when the content does: the modification time in ns, or a dataset's fingerprint.
        rows: a part of a dataset, or None for a file.
    """

    name: str
    size: int
    version: str
    rows: Any = None

    @property
    def is_ids(self) -> bool:
        """Whether it holds token ids, not text."""
        return self.rows is None and self.name.endswith(".npy")

    def identity(self) -> dict[str, Any]:
        """What must be equal for two inputs to be the same, as JSON."""
        return {"path": self.name, "size": self.size, "version": self.version}

    def records(self, tally: Tally, column: str) -> Iterator[Record]:
        """Its text records in order; see `readers.read_text`."""
        if self.rows is not None:
            saved = isinstance(self.rows, datasets.Dataset)
            return read_rows(_checked_rows(self.rows) if saved else self.rows, self.name, tally, column=column)
        return read_text(Path(self.name), tally, column=column)


def _checked_rows(saved: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """A saved dataset's rows; Arrow would follow any offset in its files, also one that leads outside them."""
    for batch in saved.with_format("arrow").iter(batch_size=ROWS):
        table: Any = batch
        table.validate(full=True)
        yield from table.to_pylist()


def list_inputs(source: str | Path, *, split: str = "train") -> list[Input]:
    """The inputs of a source, in the order in which they are read.

    Args:
        source: a file with one of `SUFFIXES`; a folder, read with its subfolders in the order of the names (files of
            other kinds are named in the log and left out, hidden ones left out); a folder that `save_to_disk` of a
            dataset wrote; or "owner/name" of a dataset on the hub, which is streamed.
        split: of a dataset.

    Raises:
        InputError: no such path, an unknown suffix, or a folder without any file to read.
    """
    path = Path(source)
    if path.is_file():
        if not is_readable(path):
            raise InputError(f"{path}: need a corpus as {', '.join(SUFFIXES)}; convert the file to one of them")
        return [file_input(path)]
    if path.is_dir():
        if is_saved_dataset(path):
            return _saved_dataset(path, split)
        return _folder(path)
    check_hub_name(str(source))
    return _hub_dataset(str(source), split)


def check_hub_name(source: str) -> None:
    """Refuse a source that is no path here and cannot be the name of a dataset on the hub.

    Raises:
        InputError: not "owner/name", or the name of a file.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) or source.endswith(SUFFIXES):
        raise InputError(
            f"{source}: no such file or folder; need a corpus as {', '.join(SUFFIXES)}, a folder of these, "
            "or a dataset's owner/name"
        )


def file_input(path: Path) -> Input:
    """One file as it is now."""
    status = path.stat()
    return Input(str(path.absolute()), status.st_size, str(status.st_mtime_ns))


def open_ids(path: Path) -> Integer[np.ndarray, "sequence pos"]:
    """Open a `.npy` file of token ids, memory-mapped; nothing but its head is read.

    Raises:
        InputError: not an array of integers in two axes, or not readable.
    """
    need = f"need ids [sequence, pos] as {', '.join(ID_TYPES)}: save one row of ids for each sequence"
    return mapped_ids(path, ID_TYPES, need)


def is_readable(path: Path) -> bool:
    """Whether a file's suffix is one of `SUFFIXES`."""
    return text_suffix(path) is not None or path.suffix == ".npy"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of a dataset wrote a folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders in the order of their names, without hidden ones."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def _folder(path: Path) -> list[Input]:
    files = visible_files(path)
    for file in files:
        if not is_readable(file):
            LOG.warning("left out %s: not one of %s", file, ", ".join(SUFFIXES))
    found = [file_input(file) for file in files if is_readable(file)]
    if not found:
        raise InputError(f"{path}: no file of {len(files)} in this folder is one of {', '.join(SUFFIXES)}")
    return found


def _saved_dataset(path: Path, split: str) -> list[Input]:
    try:
        saved = datasets.load_from_disk(str(path))
        if not isinstance(saved, datasets.DatasetDict):
            return [Input(str(path), 1, saved._fingerprint, saved)]
        if split in saved:
            return [Input(str(path), 1, saved[split]._fingerprint, saved[split])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException, RecursionError) as error:
        raise InputError(
            f"{path}: a saved dataset that cannot be read ({type(error).__name__}: {error}); save it again"
        ) from error
    raise InputError(f"{path}: got split '{split}'; need one of {', '.join(map(str, saved))}")


def _hub_dataset(name: str, split: str) -> list[Input]:
    try:
        stream = datasets.load_dataset(name, split=split, streaming=True)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise InputError(
            f"{name}: no such path, and no dataset of this name could be opened ({error}); need a corpus as "
            f"{', '.join(SUFFIXES)}, a folder of these, or a dataset's owner/name"
        ) from error
    assert isinstance(stream, datasets.IterableDataset)
    # A dataset's own files are the parts, so that a killed reader starts again at the file where it was.
    parts = stream.num_shards
    version = str(stream.info.version or "")
    return [
        Input(f"{name}, part {part} of {parts}", 1, version, stream.shard(num_shards=parts, index=part))
        for part in range(parts)
    ]
