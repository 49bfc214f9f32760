"""How long work reports how far it is."""

from collections.abc import Callable

# Called with (done, total), in units that the function names.
Progress = Callable[[int, int], None]


def part_of(progress: Progress, number: int, count: int) -> Progress:
    """A callback for part `number` of `count` equal parts, which reports to the callback of the whole."""

    def report(done: int, total: int) -> None:
        progress(number * total + done, count * total)

    return report
