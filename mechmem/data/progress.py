"""How long work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mechmem.data.errors import InputError

# Called with (done, total), in units that the function names.
Progress = Callable[[int, int], None]
# What public functions take: a callback, True for a bar, None for silence.
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
    """The callback that a caller's `progress` stands for: itself, a tqdm bar for True, none for None or False.

    Raises:
        InputError: something else.
    """
    if progress is True:
        return _bar(label)
    if progress is None or progress is False:
        return None
    if not callable(progress):
        raise InputError(
            f"got {type(progress).__name__} as progress; need a function of (done, total), True for a bar, or None"
        )
    return progress


def _bar(label: str) -> Progress:
    """A tqdm bar, or one for each name where reports begin with one: (name, done, total)."""
    from tqdm.auto import tqdm

    bars: dict[str, Any] = {}

    def report(*news: Any) -> None:
        name = str(news[0]) if len(news) == 3 else label
        done, total = news[-2:]
        if name not in bars:
            bars[name] = tqdm(total=total, desc=name)
        bar = bars[name]
        bar.total, bar.n = total, done
        bar.refresh()
        if done >= total:
            bar.close()

    return report
