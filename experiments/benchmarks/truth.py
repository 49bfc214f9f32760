"""Time of training the ladder's models: the fused step against the plain one.

    python experiments/benchmarks/truth.py      # minutes

Both steps train the same model on the same rows, in turn, in one process; ratios are taken within a round, and losses
are compared. Figures are medians. Writes docs/benchmarks/truth.md.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rounds import alternate, spread, stamp, write_page

sys.path.append(str(Path(__file__).parents[1]))

from corpus_training import ModelTraining, build, descend, keep_allocator
from fused_step import fused_step
from ladder_rungs import SHAPES, RungSettings

from mechmem.data.bounds import Count, Seed, check_fields


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        rounds: training steps of each kind that count.
        batches: rows of 256 tokens in a step: the ladder's and the bundled model's.
        seed: of the rows and the first weights.
        page: the table, or None.
    """

    rounds: Count = 10
    batches: tuple[Count, ...] = (8, 16)
    seed: Seed = 0
    page: Path | None = Path("docs/benchmarks/truth.md")

    def __post_init__(self) -> None:
        check_fields(self)


def trainer(
    recipe: ModelTraining, step: Callable[..., float], rows: torch.Tensor, losses: list[float]
) -> Callable[[], None]:
    """A training step from weights of the seed on, which appends its loss."""
    model = build(recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    return lambda: losses.append(step(model, optimizer, rows, recipe.clip_norm))


def compare(recipe: ModelTraining, rounds: int) -> dict[str, Any]:
    """Tokens a second of both steps, their ratio by round, and the largest difference of their losses."""
    generator = torch.Generator().manual_seed(recipe.seed)
    rows = torch.randint(0, recipe.d_vocab, (recipe.batch, recipe.n_ctx), generator=generator)
    losses: dict[str, list[float]] = {"plain": [], "fused": []}
    steps = {"plain": descend, "fused": fused_step}
    work = {name: trainer(recipe, step, rows, losses[name]) for name, step in steps.items()}
    seconds = alternate(work, rounds, warm_up=True)
    return {
        "rate": {name: rows.numel() / np.median(values) for name, values in seconds.items()},
        "ratio": seconds["plain"] / seconds["fused"],
        "difference": float(np.abs(np.subtract(losses["plain"], losses["fused"])).max()),
    }


def training_lines(found: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """The table of training."""
    lines = [
        "| model | rows | plain, tokens/s | fused, tokens/s | times as fast | lowest | highest | losses apart |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (shape, batch), one in found.items():
        rates = " | ".join(f"{one['rate'][name]:,.0f}" for name in ("plain", "fused"))
        lines.append(f"| {shape} | {batch} | {rates} | {spread(one['ratio'], '.2f')} | {one['difference']:.1e} |")
    return lines


def main(settings: Settings) -> dict[tuple[str, int], dict[str, Any]]:
    """Measure and write the page.

    Args:
        settings: what is measured.
    """
    keep_allocator()
    found = {}
    for shape, (layers, width, heads) in SHAPES.items():
        recipe = RungSettings(seed=settings.seed, n_layers=layers, d_model=width, n_heads=heads)
        for batch in settings.batches:
            found[shape, batch] = compare(replace(recipe, batch=batch), settings.rounds)
    lines = [
        "# Truth by training: benchmarks",
        "",
        stamp("truth.py", settings.rounds, settings.seed),
        "",
        "## Training the ladder's models",
        "",
        "The plain step is transformers' forward in bfloat16 autocast; the fused step is `experiments/fused_step.py`.",
        "The last column is the largest difference of the two losses in a step, in nats per token.",
        "",
        *training_lines(found),
    ]
    write_page(settings.page, lines)
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
