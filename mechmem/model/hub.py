"""A name to the folder of its files; the hub's answers and those of its cache, each in a sentence of its own."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from mechmem.data.assets import MODEL_FOLDER
from mechmem.data.errors import InputError
from mechmem.model.checkpoint import first_line
from mechmem.model.json_files import is_file
from mechmem.model.stored_tensors import weight_files

HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*", "vocab.json", "merges.txt"]
HUB_FILES += ["special_tokens_map.json", "added_tokens.json"]
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def find_folder(name: str) -> Path:
    """The folder that "bundled", a folder's path or a hub name stands for; a hub name is downloaded if it must be.

    Raises:
        InputError: no such folder; or the hub has no such model, does not give access to it, or cannot be reached; or
            the download cannot be kept.
    """
    if name == "bundled":
        return MODEL_FOLDER
    folder = Path(name).expanduser()
    if _is_dir(folder):
        return folder
    if is_file(folder):
        raise InputError(f"{folder} is a file; need the folder it lies in, with config.json beside the weights")
    if folder.is_absolute() or name.startswith((".", "~")) or len(folder.parts) > 2:
        raise InputError(f"{folder}: no such folder; need a folder with config.json and model.safetensors")
    return _snapshot(name)


def _snapshot(name: str) -> Path:
    try:
        found = Path(_download(name))
    except (OSError, ValueError, EntryNotFoundError, RuntimeError) as error:
        raise InputError(_sentence(name, error)) from None
    except Exception as error:
        # The client's own connection errors are no OSErrors; anything else is a defect.
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "hf_xet")):
            raise
        raise InputError(_sentence(name, error)) from None
    missing = _missing(found)
    if missing:
        raise InputError(_incomplete(name, found, missing))
    return found


def _download(name: str, **options: Any) -> Any:
    # Its logger repeats, in lines of its own, what becomes one sentence here.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return snapshot_download(name, allow_patterns=HUB_FILES, endpoint=constants.ENDPOINT, **options)
    finally:
        logger.setLevel(level)


def _sentence(name: str, error: Exception) -> str:
    """What an error of the hub's client means, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return (
            f"{name[:200]!r} is neither a folder nor a name that the hub could have; need 'bundled', a folder or a hub "
            "name such as EleutherAI/gpt-neo-125m: check the spelling"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return _unreachable(name, error)
    if isinstance(error, GatedRepoError):
        return (
            f"'{name}' is gated: the hub gives it to accounts whose request its owners granted; ask for access at "
            f"{constants.ENDPOINT}/{name}, then {LOG_IN} of that account"
        )
    # The hub answers 401 where there is no such model, so as not to say which private ones there are.
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the hub has no model '{name}', and there is no folder of this name; need 'bundled', a folder or a hub "
            f"name such as EleutherAI/gpt-neo-125m: check the spelling, or, if the model is private, {LOG_IN}"
        )
    if status is not None:
        return f"the hub does not give '{name}': {_answer(status)}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"'{name}' cannot be downloaded: the disk of the hub's cache, {constants.HF_HUB_CACHE}, is full; make room "
            "there or set HF_HOME to a folder on another disk, then run the same again: finished files are kept"
        )
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return (
            f"'{name}' cannot be downloaded: the hub's cache, {constants.HF_HUB_CACHE}, cannot be written "
            f"({first_line(error)}); set HF_HOME to a folder that can be written"
        )
    return _unreachable(name, error)


def _answer(status: int) -> str:
    """An HTTP status that is no plain "not found", with what to do."""
    if status == 401:
        return f"it does not accept the access token (401); {LOG_IN} to a token that is valid"
    if status == 403:
        return f"this account or token may not read it (403); {LOG_IN} of an account that may"
    if status == 404:
        return "a file that it lists is not there (404); the model is being changed, try again later"
    if status == 429:
        return f"it got too many requests from here (429); wait some minutes, or {LOG_IN}, which raises the limit"
    if status >= 500:
        return f"it fails itself ({status}); try again later, or give a folder that was downloaded before"
    return f"it answered {status}; try again later, or give a folder"


def _unreachable(name: str, error: Exception) -> str:
    part = "holds only part of it" if hasattr(error, "snapshot_path") else "does not have it"
    cause: Any = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return f"the hub does not give '{name}', and the local cache {part}: {_answer(status)}"
        if isinstance(cause, OfflineModeIsEnabled):
            break
        cause = cause.__cause__
    why = "HF_HUB_OFFLINE is set" if cause is not None or constants.HF_HUB_OFFLINE else first_line(_root(error))
    return (
        f"'{name}' is not a folder, the local cache, {constants.HF_HUB_CACHE}, {part}, and the hub cannot be reached "
        f"({why}); connect to the network to download it once, or give a folder"
    )


def _root(error: BaseException) -> Exception:
    """The first error of a chain: what the network said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error if isinstance(error, Exception) else OSError(str(error))


def _missing(folder: Path) -> str:
    """What a snapshot lacks to be loaded; empty if nothing."""
    if not is_file(folder / "config.json"):
        return "config.json"
    try:
        weight_files(folder)
    except InputError:
        return "weights in safetensors"
    return ""


def _incomplete(name: str, folder: Path, missing: str) -> str:
    """Offline, the cache may have returned half a model; online, the model has no more than this."""
    try:
        _download(name, dry_run=True)
    except Exception as error:  # whatever keeps the hub from answering
        return (
            f"the local cache holds only part of '{name}' ({missing} is missing in {folder}), and the hub cannot be "
            f"reached ({first_line(_root(error))}); connect to the network once, and the same command fetches the rest"
        )
    return (
        f"the hub's '{name}' has no {missing}; need a GPT-Neo, GPT-NeoX/Pythia or GPT-2 model with config.json and "
        "safetensors: pickles (pytorch_model.bin), which can run code when opened, are not downloaded; choose another "
        "revision or convert it with transformers' save_pretrained in a place where nothing can be harmed"
    )


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return False
