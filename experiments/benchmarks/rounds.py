"""How benchmarks measure: implementations alternate in one process, and ratios are taken within a round."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechmem.data.files import replacing
from mechmem.truth.planted_settings import PlantedSettings


@dataclass(frozen=True)
class Shape:
    """Size of a model; by default GPT-Neo 125M's.

    Attributes:
        layers: global and local attention alternate.
        heads: heads per layer.
        width: of the residual stream.
        vocabulary: number of token ids.
        context: longest input.
    """

    layers: int = 12
    heads: int = 12
    width: int = 768
    vocabulary: int = 50257
    context: int = 256

    def planted(self, *, memories: int, others: int, seed: int) -> PlantedSettings:
        """A planted model of this size, with so many memories and other paragraphs."""
        return PlantedSettings(
            self.layers,
            self.heads,
            self.width,
            4 * self.width,
            self.vocabulary,
            self.context,
            layer=1,
            head=2,
            memories=memories,
            others=others,
            seed=seed,
        )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def alternate(work: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: bool = False) -> dict[str, np.ndarray]:
    """Run every implementation once per round; the seconds of each, [round].

    Args:
        work: name -> what to run.
        rounds: that count.
        warm_up: run one more round first, which does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + warm_up):
        for name, run in work.items():
            seconds[name].append(timed(run)[0])
    return {name: np.array(values[int(warm_up) :]) for name, values in seconds.items()}


def spread(values: Any, form: str = ".1f") -> str:
    """Median, lowest and highest, as three cells of a table."""
    array = np.asarray(values)
    return " | ".join(format(value, form) for value in (np.median(array), array.min(), array.max()))


def stamp(command: str, rounds: int, seed: int | None = None) -> str:
    """What measured, when, and on what machine."""
    seeded = "" if seed is None else f"seed {seed}, "
    return (
        f"`python experiments/benchmarks/{command}`, {datetime.now(UTC).date()}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {seeded}{rounds} rounds."
    )


def write_page(path: Path | None, lines: Sequence[str]) -> None:
    """Print the lines of a page, and write them if there is a path."""
    text = "\n".join(lines) + "\n"
    print(text)
    if path is not None:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
