"""The memory that a function takes at most."""

import tracemalloc
from collections.abc import Callable


def lowest_peak(function: Callable[[], object], tries: int = 3) -> int:
    """Bytes that Python held at most while the function ran: the lowest of some runs.

    Every thread of the process is counted, so what an earlier test left running can raise a peak, and never lower it.
    """
    peaks = []
    for _ in range(tries):
        tracemalloc.start()
        try:
            function()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)
