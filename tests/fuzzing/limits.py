"""What a reader may use, and what it must not touch: CPU time, memory, other files, the network, code."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS, MEMORY = 10.0, 2 * 2**30
FORBIDDEN = {
    "socket.connect": "asked the network",
    "socket.getaddrinfo": "asked the network",
    "subprocess.Popen": "started a program",
    "os.system": "started a program",
    "os.exec": "started a program",
    "os.posix_spawn": "started a program",
    "pickle.find_class": "opened a pickle",
}
# Libraries keep compiled code and locks there; nothing of an input's.
ALLOWED = ("/proc/", "/dev/", "__pycache__")


class TooSlowError(BaseException):
    """More CPU time than `SECONDS`; no `Exception`, so that no reader catches it."""


class ForbiddenError(BaseException):
    """Something that reading a file must never do."""


class Watch:
    """While it is open, what is forbidden raises; an audit hook stays for good, so there is one for a process."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in FORBIDDEN:
            raise ForbiddenError(f"{FORBIDDEN[event]}: {event} {arguments[:2]!r}")
        if event == "open" and self._writes_elsewhere(arguments):
            raise ForbiddenError(f"wrote outside its folder: {arguments[0]!r}")
        # Names relative to an opened folder come from `rmtree`, which was looked at itself.
        relative = event == "os.remove" and arguments[1] != -1
        if event in ("os.remove", "shutil.rmtree", "os.rename") and not relative and not self._inside(arguments[0]):
            raise ForbiddenError(f"removed or moved what is not its own: {arguments[0]!r}")

    def _writes_elsewhere(self, arguments: tuple[Any, ...]) -> bool:
        path, mode, flags = arguments
        writes = any(letter in str(mode or "") for letter in "wax+") or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
        return writes and not self._inside(path)

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True
        path = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (Path would open an event of its own)
        # Readers may use temporary folders of their own.
        return any(part in path for part in ALLOWED) or "/mechmem-" in path or path.startswith(str(self.folder))


@contextmanager
def limited(watch: Watch, folder: Path) -> Iterator[None]:
    """Run a block under all limits."""
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, hard))
    signal.signal(signal.SIGPROF, _raise)
    watch.folder = folder
    # CPU time, not time: a busy machine must not look like a slow reader.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watch.folder = None
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, hard))


def _raise(*_: object) -> None:
    raise TooSlowError(f"more than {SECONDS:g} seconds of CPU")
