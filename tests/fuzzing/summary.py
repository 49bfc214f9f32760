"""The account of a run: how many of each kind were read, refused or found at fault, how long it took."""

import time
from collections import Counter, defaultdict
from typing import Any

from tests.fuzzing.verdicts import Verdict


class Summary:
    """Counts of verdicts.

    Attributes:
        found: (kind, outcome, where) of findings -> how often.
    """

    def __init__(self, seed: int) -> None:
        self.found: Counter[tuple[str, str, str]] = Counter()
        self._seed, self._began, self._slowest = seed, time.monotonic(), 0.0
        self._kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self._seconds: dict[str, float] = defaultdict(float)
        self._first: dict[tuple[str, str, str], tuple[int, str]] = {}

    def add(self, number: int, verdict: Verdict) -> None:
        """Count one."""
        self._kinds[verdict.kind]["finding" if verdict.is_finding else verdict.outcome] += 1
        self._seconds[verdict.kind] += verdict.seconds
        self._slowest = max(self._slowest, verdict.seconds)
        if verdict.is_finding:
            key = (verdict.kind, verdict.outcome, verdict.where)
            self.found[key] += 1
            self._first.setdefault(key, (number, verdict.detail))

    def figures(self) -> dict[str, Any]:
        """Everything as JSON."""
        findings = []
        for (kind, outcome, where), times in self.found.most_common():
            first, detail = self._first[kind, outcome, where]
            about = {"kind": kind, "outcome": outcome, "where": where, "times": times}
            findings.append(about | {"first": first, "detail": detail})
        kinds = {
            kind: dict(counts) | {"cpu_seconds": round(self._seconds[kind], 2)} for kind, counts in self._kinds.items()
        }
        return {
            "seed": self._seed,
            "cases": sum(sum(counts.values()) for counts in self._kinds.values()),
            "seconds": round(time.monotonic() - self._began, 1),
            "slowest_cpu_seconds": round(self._slowest, 2),
            "kinds": kinds,
            "findings": findings,
        }

    def text(self) -> str:
        """The same for people."""
        figures = self.figures()
        lines = [f"{'kind':26}{'read':>7}{'refused':>9}{'found':>7}{'ms of CPU a case':>18}"]
        for kind, counts in figures["kinds"].items():
            cases = sum(count for name, count in counts.items() if name != "cpu_seconds")
            columns = "".join(
                f"{counts.get(name, 0):>{width}}" for name, width in (("read", 7), ("refused", 9), ("finding", 7))
            )
            lines.append(f"{kind:26}{columns}{1000 * counts['cpu_seconds'] / cases:>18.1f}")
        lines.append(
            f"{figures['cases']:,} cases of seed {self._seed} in {figures['seconds']:g} s, the slowest "
            f"{figures['slowest_cpu_seconds']:g} s of CPU; findings: {sum(self.found.values())}"
        )
        lines += [
            f"  {finding['times']} x {finding['kind']}: {finding['outcome']}: {finding['where']}; python -m tests.fuzz "
            f"--seed {self._seed} --case {finding['first']}"
            for finding in figures["findings"]
        ]
        return "\n".join(lines)
