"""Run every localizer on models whose answer is known, for several seeds.

python experiments/planted.py      # half a minute; writes docs/planted.md and results/planted
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
import xarray as xr
from outputs import save, stamp, write_page

import mechmem as mm
from mechmem.data.bounds import Count, Seed, Share, check_fields


@dataclass(frozen=True)
class Settings:
    """What decides the numbers. The model and its text are planted, so neither is a setting.

    Attributes:
        seeds: of the planted models: another model, text and corpus each.
        fraction: share of the weights that gradients choose.
        integration_steps: of integrated gradients.
        out: folder of the results.
        page: the table, or None.
    """

    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    fraction: Share = 0.001
    integration_steps: Count = 16
    out: Path = Path("results/planted")
    page: Path | None = Path("docs/planted.md")

    def __post_init__(self) -> None:
        check_fields(self)


def swapped(truth: Any) -> mm.Paragraphs:
    """Each memory with its rare token replaced by a token without meaning."""
    tokens = truth.memorized.tokens.clone()
    tokens[torch.arange(len(tokens)), torch.from_numpy(truth.triggers)] = int(truth.other.tokens.max())
    return truth.memorized.replace_tokens(tokens)


def head_share(values: Any, truth: Any) -> float:
    """The planted head's share of the sum of |values| over layers, heads and positions."""
    size = abs(values)
    return float(size.sel(layer=truth.head[0], head=truth.head[1]).sum() / size.sum())


def measure(seed: int, settings: Settings) -> dict[str, float]:
    """All figures for one seed."""
    truth = mm.planted(mm.PlantedSettings(seed=seed))
    model, clean, corrupt = truth.model, truth.memorized, swapped(truth)
    result: dict[str, float] = {}
    exact = mm.patch(model, clean, corrupt, site="v", normalize=True)
    result["patch, v, noising: head's share of all effects"] = head_share(exact, truth)
    for direction in ("noising", "denoising"):
        found = mm.attribute(model, clean, corrupt, site="v", direction=direction, normalize=True)
        own = abs(found).sel(layer=truth.head[0], head=truth.head[1]).sum()
        result[f"attribute, v, {direction}: head's share"] = head_share(found, truth)
        result[f"attribute, v, {direction}: sum at the head (exact: 1)"] = float(own)
    found = mm.activation_gradients(model, clean, site="v", method="integrated", steps=settings.integration_steps)
    result["activation gradients, v, integrated: head's share"] = head_share(found, truth)
    found = mm.activation_gradients(model, clean, site="v")
    result["activation gradients, v, largest: head's share"] = head_share(found, truth)
    masks = {
        "truth": mm.Mask.neurons(model, truth.neurons).union(mm.Mask.heads(model, [truth.head])),
        "decoys": mm.Mask.heads(model, [*truth.loud, truth.silent]).union(mm.Mask.neurons(model, [truth.shared])),
    }
    for name, mask in masks.items():
        result[f"all weights: share of {name} (chance)"] = mask.count / mask.total
    for contrast in ("plain", "fisher", "difference"):
        scores = mm.contrastive_gradients(model, clean, truth.other, method=contrast)
        top = mm.Mask.top(scores, fraction=settings.fraction)
        for name, mask in masks.items():
            result[f"weights, {contrast}: share of {name} in the top {settings.fraction:.1%}"] = (
                top.intersection(mask).count / top.count
            )
    return result


def main(settings: Settings) -> xr.Dataset:
    """Measure every seed.

    Args:
        settings: what decides the numbers.

    Returns:
        value [seed, figure].
    """
    rows = [measure(seed, settings) for seed in settings.seeds]
    values = np.array([list(row.values()) for row in rows])
    names = np.array(list(rows[0]), dtype=object)
    result = xr.Dataset({"value": (("seed", "figure"), values)}, {"seed": list(settings.seeds), "figure": names})
    save(result, [], settings)
    lines = [
        "# Localizers on planted models",
        "",
        f"{stamp('planted')}, seeds {', '.join(map(str, settings.seeds))} of `planted()` with its default sizes; "
        "each seed gives another model, text and corpus.",
        "",
        "| figure | mean | lowest | highest |",
        "|---|---|---|---|",
    ]
    for name, column in zip(rows[0], values.T, strict=True):
        lines.append(f"| {name} | {column.mean():.4f} | {column.min():.4f} | {column.max():.4f} |")
    write_page(settings.page, lines)
    return result


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
