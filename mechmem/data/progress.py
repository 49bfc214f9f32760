"""How long work reports how far it is."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from mechmem.data.errors import InputError
from mechmem.data.notebook import notebook_shell

# Seconds that a notebook waits before it shows a bar by itself.
PATIENCE = 10.0
# Seconds between two drawings: of a bar that is redrawn in place, and of lines of text, which a notebook keeps.
INTERVAL, LINES_INTERVAL = 0.1, 5.0

# Called with (done, total), in units that the function names.
Progress = Callable[[int, int], None]
# What public functions take: a callback, True for a bar, False for silence; None: as `set_progress` says.
ProgressLike = Progress | bool | None


def part_of(progress: ProgressLike, number: int, count: int) -> Progress:
    """A callback for part `number` of `count` equal parts, which reports to the callback of the whole, if any."""
    whole = as_callback(progress, "progress")

    def report(done: int, total: int) -> None:
        if whole is not None:
            whole(number * total + done, count * total)

    return report


def between(progress: ProgressLike, start: int, stop: int, total: int) -> Progress | None:
    """A callback for work, in any units of its own, that takes the whole from `start` to `stop` of `total`."""
    whole = as_callback(progress, "progress")
    if whole is None:
        return None

    def report(done: int, units: int) -> None:
        whole(start + (stop - start) * done // max(units, 1), total)

    return report


def batches(total: int, size: int, progress: ProgressLike = None) -> Iterator[slice]:
    """Yield slices of at most `size` rows of `total`, and report after each (rows done, rows)."""
    report = as_callback(progress, "progress")
    for start in range(0, total, size):
        stop = min(start + size, total)
        yield slice(start, stop)
        if report is not None:
            report(stop, total)


def as_callback(progress: ProgressLike, label: str) -> Progress | None:
    """The callback that a caller's `progress` stands for: itself, a bar for True, none for None or False.

    Raises:
        InputError: something else.
    """
    if progress is True:
        return ProgressBar(label)
    if progress is None or progress is False:
        return None
    if not callable(progress):
        raise InputError(
            f"got {type(progress).__name__} as progress; need a function of (done, total), True for a bar, or None"
        )
    return progress


def set_progress(shown: bool | None) -> None:
    """Choose whether functions show how far they are, where their own `progress` says nothing.

    Args:
        shown: True: a bar for each call; False: none; None, as at the beginning: in a notebook, a bar once a call has
            taken ten seconds, and none in scripts and commands.

    Raises:
        InputError: something else.
    """
    if shown is not None and not isinstance(shown, bool):
        raise InputError(f"got {type(shown).__name__} as shown; need True, False or None")
    _choice.shown = shown


@contextmanager
def reporting(progress: ProgressLike, label: str) -> Iterator[Progress | None]:
    """What a call reports to: its own `progress`, or what `set_progress` and the notebook say.

    The bar of a call is closed when the call ends, whatever ends it. Calls within it have none of their own.

    Args:
        progress: what the caller gave; None: nothing.
        label: what the bar says.
    """
    if progress is None and not _within.get():
        progress = _choice.bar(label)
    elif progress is True and _within.get():
        progress = None
    report, before = as_callback(progress, label), _within.set(True)
    try:
        yield report
    finally:
        _within.reset(before)
        if isinstance(report, ProgressBar):
            report.close()


class ProgressBar:
    """A tqdm bar that takes (done, total), or (name, done, total) where the work has several parts.

    Args:
        label: what it says.
        delay: seconds without a bar.
        leave: whether it stays when the work is done.
    """

    def __init__(self, label: str, *, delay: float = 0, leave: bool = True) -> None:
        self._label, self._delay, self._leave = label, delay, leave
        self._begun, self._drawn, self._interval = time.time(), 0.0, INTERVAL
        self._bar: Any = None

    def __call__(self, *news: Any) -> None:
        """Report how far the work is."""
        name = str(news[0]) if len(news) == 3 else self._label
        done, total = news[-2:]
        now, over = time.time(), done >= total
        if self._bar is None:
            if now < self._begun + self._delay or (over and self._delay):
                return
            self._bar = _tqdm()(total=total, desc=name, leave=self._leave)
            widget = hasattr(self._bar, "container")
            self._interval = LINES_INTERVAL if notebook_shell() is not None and not widget else INTERVAL
            # Rates and times are those of the work, not of the bar.
            self._bar.start_t = self._begun
        elif name != self._label:
            self._bar.reset(total)
            self._bar.set_description(name, refresh=False)
        self._label, self._bar.total, self._bar.n = name, total, done
        # A bar in a notebook is a message to the browser; thousands a second would be the work.
        if over or now > self._drawn + self._interval:
            self._bar.refresh()
            self._drawn = now

    def close(self) -> None:
        """Draw no more."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Choice:
    """What `set_progress` chose."""

    shown: bool | None = None

    def bar(self, label: str) -> ProgressBar | None:
        if self.shown:
            return ProgressBar(label)
        if self.shown is None and notebook_shell() is not None:
            return ProgressBar(label, delay=PATIENCE, leave=False)
        return None


_choice = _Choice()
# Whether a call that reports is running.
_within: ContextVar[bool] = ContextVar("within a call that reports", default=False)


def _tqdm() -> Any:
    with warnings.catch_warnings():
        # Without ipywidgets it warns, and draws its bar as text.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    return tqdm
