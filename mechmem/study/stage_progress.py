"""How far a study is: one total a stage, which never changes, and the share of the whole run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mechmem.data.progress import Progress

# A stage reports in thousandths of its work.
TOTAL = 1000


@dataclass(frozen=True)
class StageNews:
    """Something to tell about a running study.

    Attributes:
        number: of the stage, from 1.
        of: how many stages there are.
        stage: its name.
        doing: what is being done.
        share: of the stage that is done, 0 to 1.
        whole: of the whole run that is done, 0 to 1, estimated.
        finding: what the stage found, when it ends; or why it is left out.
    """

    number: int
    of: int
    stage: str
    doing: str
    share: float
    whole: float
    finding: str | None = None


Watch = Callable[[StageNews], None]


class Parts:
    """The progress of a stage that consists of parts.

    Args:
        report: called with (what is done, done, total); the total is always `TOTAL`.
        weights: each part's name and its share of the work, in any unit.
    """

    def __init__(self, report: Callable[[str, int, int], None], weights: Mapping[str, int | float]) -> None:
        self._report, self._weights = report, dict(weights)
        self._whole = sum(self._weights.values()) or 1.0

    def __getitem__(self, name: str) -> Progress:
        """The callback of one part, which it calls with (done, total) of its own."""
        names = list(self._weights)
        before = sum(self._weights[other] for other in names[: names.index(name)])

        def progress(done: int, total: int) -> None:
            share = (before + self._weights[name] * min(1.0, done / max(total, 1))) / self._whole
            self._report(name, int(TOTAL * share), TOTAL)

        progress(0, 1)
        return progress
