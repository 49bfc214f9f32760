"""The figures of a soak as JSON and as a table of docs/reliability.md."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- soak: written by `make soak` -->", "<!-- soak ends -->"


def figures(outcomes: list[dict[str, Any]], seed: int, seconds: float) -> dict[str, Any]:
    """What is kept of a soak."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "seed": seed,
        "minutes": round(seconds / 60, 1),
        "outcomes": outcomes,
    }


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        "| command | disturbance | times | ended | identical results | seconds, with what was lost | undisturbed |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in result["outcomes"]:
        rows.append(
            f"| `{one['command']}` | {one['disturbance']} | {one['times']} | {one['rounds']} | {one['identical']} | "
            f"{one['seconds']:.0f} | {one['undisturbed']:.0f} |"
        )
    faults = [fault for one in result["outcomes"] for fault in one["faults"]]
    kills = sum(one["times"] for one in result["outcomes"] if one["disturbance"] == "SIGKILL")
    rows += [
        "",
        f"`make soak`, {result['date']}, {result['machine']}, seed {result['seed']}: {kills} kills, "
        f"{result['minutes']} minutes; faults: {len(faults)}.",
        *(f"- fault: {fault}" for fault in faults),
    ]
    return "\n".join(rows)


def put_into_page(path: Path, result: dict[str, Any]) -> None:
    """Replace what stands between the marks of a page.

    Raises:
        ValueError: the page has no marks.
    """
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path}: need the marks {BEGIN} and {END}")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.S)
    path.write_text(pattern.sub(lambda _: f"{BEGIN}\n{table(result)}\n{END}", text), encoding="utf-8")
