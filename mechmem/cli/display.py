"""How far long work is: bars in a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mechmem.cli.app import console

SECONDS_BETWEEN_LINES = 30


class Speed(ProgressColumn):
    """Paragraphs a second, where paragraphs are counted."""

    def render(self, task: Task) -> Text:
        """The speed of the last half minute."""
        counted = task.speed is not None and "paragraphs" in task.description
        return Text(f"{task.speed:.1f}/s" if counted else "")


class Lines:
    """Progress where there is no terminal: a line when something begins, and one every half minute."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}
        self._last = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say how far it is, if it is time to."""
        now = time.monotonic()
        if what not in self._began:
            self._began[what], self._last = (now, done), now
            console.print(f"{what} ...")
        began, first = self._began[what]
        if now - self._last > SECONDS_BETWEEN_LINES and done > first:
            self._last, speed = now, (done - first) / (now - began)
            left = timedelta(seconds=round((total - done) / speed))
            console.print(f"{what}: {done:,} of {total:,}, {speed:,.1f}/s, {left} left", highlight=False)


@contextmanager
def live_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback (what, done, total) that draws one bar a task; plain lines where there is no terminal."""
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        Speed(),
    )
    with Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console) as bars:
        tasks: dict[str, Any] = {}

        def bar(what: str, done: int, total: int) -> None:
            for name, task in tasks.items():
                if name != what:
                    bars.update(task, completed=bars.tasks[task].total)
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield bar
        for task in tasks.values():
            bars.update(task, completed=bars.tasks[task].total)
