"""The folder in which a scan keeps its work until the output is written."""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from mechmem.data.errors import InputError
from mechmem.data.files import LOCK_NAME, foreign_entries, remove_partials, replacing
from mechmem.data.settings_match import refuse_other_settings
from mechmem.data.stored_json import check_types, read_object

ELSEWHERE = "choose another output"
ADVICE = f"{ELSEWHERE}, or remove this one"
PLAN, PARTS = "scan.json", "parts"
# What a scan makes in its folder, in the order in which it is removed: while the plan is there, the rest is ours.
ENTRIES = ("corpus", "windows", "runs", PARTS, PLAN)
# Settings that no row depends on: work goes on with others, as after a lack of memory with smaller batches. EM is
# exact; what else is written is the same to the rounding of float32, as with another number of threads.
NO_MATTER = ("batch_size", "shard_tokens", "strict")


def begin(folder: Path, out: Path, described: dict[str, Any]) -> tuple[bool, int]:
    """Begin the work of a scan, or find what was begun with the same settings; the caller holds the folder's lock.

    Returns:
        Whether the work is new, and the tokens of its parts, which stay as they were begun.

    Raises:
        InputError: the folder holds files of something else or work of other settings, or the output is not a scan's.
    """
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link, and a scan keeps its work there; remove the link, or {ELSEWHERE}")
    path = folder / PLAN
    new = not path.is_file()
    if new and out.exists():
        raise InputError(f"{out}: exists and was written by something else; choose another output, or remove it")
    if new and (foreign := foreign_entries(folder)):
        raise InputError(
            f"{folder}: holds files of something else ({foreign[0].name}), and a scan keeps its work there; {ELSEWHERE}"
        )
    wanted = described["settings"]["shard_tokens"]
    tokens = wanted if new else _agreed(folder, described)
    if tokens != wanted:
        warnings.warn(f"{folder}: goes on in parts of {tokens} tokens, as it was begun", stacklevel=3)
    if new:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(described))
    (folder / PARTS).mkdir(exist_ok=True)
    # Looked at first: nothing is removed from a folder of something else.
    for place in (folder, folder / PARTS):
        remove_partials(place)
    return new, tokens


def _agreed(folder: Path, described: dict[str, Any]) -> int:
    """The tokens of the parts of work that was begun, if it is that of the same rows."""
    was = read_object(folder / PLAN, advice=ADVICE)
    check_types(was, {"settings": dict}, folder / PLAN, advice=ADVICE)
    check_types(was["settings"], {"shard_tokens": int}, folder / PLAN, advice=ADVICE)
    # How many files the rows are written to is decided when all are scored.
    refuse_other_rows(folder, was, described, besides=("rows_per_file",))
    return was["settings"]["shard_tokens"]


def refuse_other_rows(place: Path, was: dict[str, Any], now: dict[str, Any], *, besides: tuple[str, ...] = ()) -> None:
    """Refuse work or an output whose rows would be others.

    Args:
        place: the folder or the output.
        was: how it was described when it was begun.
        now: the description of this call.
        besides: entries that do not matter here.

    Raises:
        InputError: they differ in something that decides the rows; the sentence names it.
    """
    refuse_other_settings(place, _deciding(was, besides), _deciding(now, besides), advice=ADVICE)


def _deciding(described: dict[str, Any], besides: tuple[str, ...]) -> dict[str, Any]:
    kept = {name: value for name, value in described.items() if name not in besides}
    if isinstance(kept.get("settings"), dict):
        kept["settings"] = {name: value for name, value in kept["settings"].items() if name not in NO_MATTER}
    return kept


def remove_work(folder: Path) -> None:
    """Remove a scan's work, and the folder if it holds nothing else; the caller holds the folder's lock."""
    if not (folder / PLAN).is_file():
        return
    remove_partials(folder)
    for name in ENTRIES:
        entry = folder / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    if not foreign_entries(folder):
        # The lock's file as well, which `only_writer` leaves in a folder that was there before.
        (folder / LOCK_NAME).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
