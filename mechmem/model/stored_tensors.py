"""What a folder's safetensors files hold, by their headers alone: no tensor is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mechmem.data.errors import InputError
from mechmem.model.json_files import is_file, read_json

# 44 layers take 0.1 MB. A larger header costs memory and time before anything is known about the file.
MOST_HEADER = 4 * 2**20
MOST_INDEX = 8 * 2**20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, its type as safetensors calls it, and its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder's `model.safetensors`, or of the parts that its index lists, by the name in the file.

    Raises:
        InputError: no such file, one that is damaged or lies about its size, or parts that do not match their index.
    """
    files, listed = weight_files(folder)
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _header(file).items():
            if name in found:
                raise InputError(
                    f"{folder}: tensor '{name}' is in {found[name].file.name} and in {file.name}; need it once: take "
                    "the files of one checkpoint"
                )
            found[name] = tensor
    for name, file in listed.items():
        if name not in found or found[name].file.name != file:
            raise InputError(
                f"{folder}: its index says that {file} holds tensor '{name}', and it does not; need parts and index "
                "of one checkpoint: fetch them again"
            )
    return found


def weights_stored(tensors: Mapping[str, StoredTensor]) -> int:
    """How many numbers the tensors have together."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """A folder's safetensors files, and tensor -> file as the index says; without an index there is one file.

    Raises:
        InputError: no safetensors file, or an index that lists what is not in the folder.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if is_file(single):
        return [single], {}
    if not is_file(index):
        raise InputError(_without_weights(folder))
    listed = read_json(index, MOST_INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise InputError(f"{index}: not a readable index of safetensors files; fetch it again")
    names = sorted(set(listed.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or not is_file(folder / name):
            raise InputError(
                f"{index}: it lists {name[:80]!r}, which is not in the folder or not a safetensors file; fetch the "
                "missing file"
            )
    return [folder / name for name in names], listed


def _without_weights(folder: Path) -> str:
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    found = f"only {pickles[0].name}, a pickle, which can run code when opened and is refused" if pickles else "none"
    return (
        f"{folder}: need weights in model.safetensors and found {found}. If they exist as a pickle from a source that "
        "you trust, load them with transformers in a place where nothing can be harmed and write them with "
        "save_pretrained(folder, safe_serialization=True)"
    )


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
        if size >= 8 and MOST_HEADER < length:
            raise InputError(
                f"{file}: its header has {length:,} bytes; need at most {MOST_HEADER:,}: the file is damaged or no "
                "safetensors file, fetch or write it again"
            )
        # The library checks that the tensors fill the file without gaps and overlaps.
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            return {name: StoredTensor(file, s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (SafetensorError, OSError, OverflowError, RuntimeError) as error:
        if "mmap" in str(error):
            raise InputError(
                f"{file}: its {size_of(file)} bytes do not fit in this machine's memory; need a smaller model"
            ) from None
        raise InputError(
            f"{file}: not a whole safetensors file ({error}; it has {size_of(file)} bytes), it may have been cut off: "
            "fetch or write it again"
        ) from None


def size_of(file: Path) -> str:
    """A file's size for a sentence; "unknown" where it cannot be asked for."""
    try:
        return f"{file.stat().st_size:,}"
    except OSError:
        return "unknown"
