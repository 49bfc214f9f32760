"""Run every localizer on models whose answer is known, for several seeds.

    python experiments/planted.py      # half a minute

Writes docs/planted.md.
"""

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mechmem as mm

# Settings -------------------------------------------------------------------------------------------------------------
PAGE = Path("docs/planted.md")
SEEDS = range(5)
FRACTION = 0.001


def swapped(truth: Any) -> mm.Paragraphs:
    """Each memory with its rare token replaced by a token without meaning."""
    tokens = truth.memorized.tokens.clone()
    tokens[torch.arange(len(tokens)), torch.from_numpy(truth.triggers)] = int(truth.other.tokens.max())
    return mm.Paragraphs(tokens, truth.memorized.prefix_len)


def head_share(values: Any, truth: Any) -> float:
    """The planted head's share of the sum of |values| over layers, heads and positions."""
    size = abs(values)
    return float(size.sel(layer=truth.head[0], head=truth.head[1]).sum() / size.sum())


def measure(seed: int) -> dict[str, float]:
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
    found = mm.activation_gradients(model, clean, site="v", method="integrated", steps=16)
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
        top = mm.Mask.top(scores, fraction=FRACTION)
        for name, mask in masks.items():
            result[f"weights, {contrast}: share of {name} in the top {FRACTION:.1%}"] = (
                top.intersection(mask).count / top.count
            )
    return result


rows = [measure(seed) for seed in SEEDS]
lines = [
    "# Localizers on planted models",
    "",
    f"`python experiments/planted.py`, {datetime.now(UTC).date()}, {platform.machine()}, seeds {SEEDS[0]} to "
    f"{SEEDS[-1]} of `planted()` with its default sizes; each seed gives another model, text and corpus.",
    "",
    "| figure | mean | lowest | highest |",
    "|---|---|---|---|",
]
for name in rows[0]:
    values = np.array([row[name] for row in rows])
    lines.append(f"| {name} | {values.mean():.4f} | {values.min():.4f} | {values.max():.4f} |")
PAGE.write_text("\n".join(lines) + "\n")
print(PAGE.read_text())
