"""One writer a folder: a lock of the operating system, which a dead process leaves free."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from mechmem.data.errors import InputError
from mechmem.data.files import LOCK_NAME, check_output
from mechmem.data.full_disk import full_disk_named

# Folder -> (process, thread) that holds it: the same thread may enter again, as a command does that runs a study.
_holders: dict[Path, tuple[int, int]] = {}


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Be the only one who writes in a folder, among all processes and threads of this machine, during the block.

    The folder is made if it is missing; where nothing was written it is removed again, with the folders above it that
    were missing. The lock is a file `.mechmem.lock` in it, which says who holds it and is gone afterwards; a process
    that is killed leaves the file and not the lock. A thread that holds a folder may enter again. On a network file
    system the lock is as good as that system's `flock`.

    Raises:
        InputError: another process or thread works in the folder, the sentence says which since when; or the folder
            cannot be written to.
    """
    folder = Path(folder)
    check_output(folder, "folder")
    key, me = folder.resolve(), (os.getpid(), threading.get_ident())
    if _holders.get(key) == me:
        yield
        return
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = _acquired(folder)
    own = _identity(folder / LOCK_NAME)
    _holders[key] = me
    try:
        yield
    finally:
        del _holders[key]
        # Removed while it is held: who opened it meanwhile sees that it has no name any more, and starts over. The
        # block may have removed the folder, and another process have made it again with a lock of its own.
        with suppress(OSError):
            if _identity(folder / LOCK_NAME) == own:
                (folder / LOCK_NAME).unlink()
        lock.release()
        with suppress(OSError):
            for place in new:
                place.rmdir()


def _acquired(folder: Path) -> FileLock:
    path = folder / LOCK_NAME
    try:
        with full_disk_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, thread_local=False)
            lock.acquire(blocking=False)
    except Timeout as error:
        raise InputError(
            f"{folder}: {_holder(path)} works there; wait until it has ended, or choose another folder"
        ) from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error
    # A full disk keeps nobody from working on; the sentence of another process then names nobody.
    with suppress(OSError):
        path.write_text(json.dumps(_myself()), encoding="utf-8")
    return lock


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _myself() -> dict[str, str | int]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": command[:500],
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _holder(path: Path) -> str:
    """Who holds a lock, as its file says."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} ({who['command']}) since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
