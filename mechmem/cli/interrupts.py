"""Ctrl-C that always ends a command, also where Python drops the exception."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Seconds until a dropped interrupt is raised again: by then the destructor that dropped it has returned.
AGAIN = 0.02


@contextmanager
def noting_interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed in the block, whatever became of the exception.

    1. Ctrl-C is noted and raises KeyboardInterrupt, each time it is pressed.
    2. Python drops an exception that is raised in a destructor or a callback of the garbage collector and tells
       `sys.unraisablehook`. There the interrupt is raised again a moment later, until it gets through.
    """
    # Another handler is somebody else's, and only the main thread may set one.
    if (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        yield lambda: False
        return
    interrupts = _Interrupts()
    signal.signal(signal.SIGINT, interrupts.note)
    former, sys.unraisablehook = sys.unraisablehook, interrupts.dropped
    try:
        yield lambda: interrupts.noted
    finally:
        before = interrupts.close()
        sys.unraisablehook = former
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupts.noted and not before:
            # Pressed in the moment in which the block ended.
            raise KeyboardInterrupt


class _Interrupts:
    """What was pressed; accumulates while the block runs."""

    def __init__(self) -> None:
        self.noted = False
        self._over = False
        self._former = sys.unraisablehook
        # Held while an interrupt is raised from the other thread, so that none comes after the block.
        self._lock = threading.Lock()

    def note(self, number: int, frame: Any) -> None:
        """The signal's handler."""
        self.noted = True
        if not self._over:
            signal.default_int_handler(number, frame)

    def dropped(self, unraisable: Any) -> None:
        """What Python calls with an exception that it drops."""
        if not (self.noted and issubclass(unraisable.exc_type, KeyboardInterrupt)):
            self._former(unraisable)
            return
        again = threading.Timer(AGAIN, self._raise)
        again.daemon = True
        again.start()

    def _raise(self) -> None:
        with self._lock:
            if not self._over:
                _thread.interrupt_main()

    def close(self) -> bool:
        """No interrupt is raised from now on; whether there was one before."""
        before, self._over = self.noted, True
        with self._lock:
            return before
