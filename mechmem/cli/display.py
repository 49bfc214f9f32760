"""How far long work is: bars in a terminal, lines in a log; never silent for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

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

from mechmem.cli.commands import console

if TYPE_CHECKING:
    from mechmem.study.stage_progress import StageNews, Watch

SECONDS_BETWEEN_LINES = 25
# A run that is less far than this cannot say when it ends.
LEAST_SHARE = 0.02


class Speed(ProgressColumn):
    """Paragraphs per second, where paragraphs are counted."""

    def render(self, task: Task) -> Text:
        """The speed of the last half minute."""
        counted = task.speed is not None and "paragraphs" in task.description
        return Text(f"{task.speed:.1f}/s" if counted else "")


class Lines:
    """Lines in a log: one at once when something new is done, and one at least every half minute.

    A thread repeats the last state with the time, so that work that reports nothing for long is not silent.
    """

    def __init__(self, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self._seconds, self._began = seconds, time.monotonic()
        self._line, self._last = "", time.monotonic()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def say(self, line: str, *, now: bool = False) -> None:
        """Keep a line as the state, and print it if it is time or `now`."""
        with self._lock:
            self._line = line
            if now or time.monotonic() - self._last > self._seconds:
                self._print(line)

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        console.print(line, highlight=False, soft_wrap=True)

    def _repeat(self) -> None:
        while not self._ended.wait(self._seconds / 5):
            with self._lock:
                if self._line and time.monotonic() - self._last > self._seconds:
                    self._print(f"{self._line} (after {_clock(time.monotonic() - self._began)})")


@contextmanager
def live_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback (what, done, total) that draws one bar a task; lines where there is no terminal."""
    if console.is_terminal:
        with _bars() as bars:
            yield bars
        return
    lines = Lines()
    began: dict[str, tuple[float, int]] = {}

    def line(what: str, done: int, total: int) -> None:
        if what not in began:
            began[what] = (time.monotonic(), done)
            lines.say(f"{what} ...", now=True)
            return
        since, first = began[what]
        speed = (done - first) / max(time.monotonic() - since, 1e-9)
        left = f", {_clock((total - done) / speed)} left" if speed > 0 else ""
        lines.say(f"{what}: {done:,} of {total:,}{left}")

    try:
        yield line
    finally:
        lines.close()


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
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


@contextmanager
def watch_study() -> Iterator[Watch]:
    """Yield a callback that shows a study's stages: one bar that is replaced, or lines; and a line of each finding."""
    began = time.monotonic()

    def left(whole: float) -> str:
        spent = time.monotonic() - began
        return f"about {_clock(spent * (1 - whole) / whole)} left" if whole > LEAST_SHARE else "time left unknown"

    def found(news: StageNews) -> str:
        return f"stage {news.number} of {news.of}, {news.stage}: {news.finding}"

    if not console.is_terminal:
        lines, told = Lines(), set()

        def line(news: StageNews) -> None:
            if news.finding is not None:
                lines.say(found(news), now=True)
                return
            new = (news.stage, news.doing) not in told
            told.add((news.stage, news.doing))
            where = f"stage {news.number} of {news.of}, {news.doing}"
            lines.say(f"{where}: {100 * news.share:.0f} % of the stage, {left(news.whole)}", now=new and not news.share)

        try:
            yield line
        finally:
            lines.close()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<52}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
    )
    # The elapsed time moves every second, whatever the stage reports.
    with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console) as bars:
        task = bars.add_task("starting", total=1.0, left="")

        def bar(news: StageNews) -> None:
            text = f"stage {news.number} of {news.of}, {news.doing}"
            changed = bars.tasks[0].description != text
            bars.update(task, description=text, completed=news.share, left=left(news.whole), refresh=changed)
            if news.finding is not None:
                bars.console.print(found(news), highlight=False, soft_wrap=True)

        yield bar
        bars.remove_task(task)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
