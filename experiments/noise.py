"""How much noise on a few weights memories survive, compared with noise on as many random weights.

    python experiments/noise.py     # about five minutes on two cores; writes docs/noise.md and results/noise

The noise intervention of Stoehr et al. (2024, arXiv 2403.19851): Gaussian noise of k standard deviations of a weight's
own component. Three curves: the weights with the largest gradients, the head whose removal costs most, and an
increasing number of weights. Weights and head are chosen on memorized paragraphs that are not scored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from inputs import Inputs, open_inputs, start
from outputs import save, stamp, write_page
from samples import MEMORIZED_OTHER, by_em

import mechmem as mm
from mechmem.data.bounds import Amount, Count, Seed, Share
from mechmem.intervene.noise import noise_by_size
from mechmem.model.load import HookedTransformer
from mechmem.stats.ranges import token_range


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws paragraphs, noise and random masks.
        candidates: number of paragraphs scored, from which the sets are drawn.
        each: paragraphs per set; as many other memorized ones choose the weights.
        fraction: of the weights, for the curve over noise scales.
        scales: of the noise, in standard deviations.
        fractions: of the weights, at one standard deviation.
        draws: repetitions of the noise.
        out: folder of the results.
        page: the table, or None.
    """

    seed: Seed = 0
    candidates: Count = 1200
    each: Count = 24
    fraction: Share = 0.001
    scales: tuple[Amount, ...] = (0.3, 1.0, 3.0, 10.0)
    fractions: tuple[Share, ...] = (0.0001, 0.001, 0.01, 0.05)
    draws: Count = 5
    out: Path = Path("results/noise")
    page: Path | None = Path("docs/noise.md")


def main(settings: Settings, model: HookedTransformer | None = None) -> xr.Dataset:
    """Run the three curves.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        em and nll [curve, mask, level, draw, set]; curves are weights, head and size.
    """
    model, shipped = open_inputs(settings, model)
    found = by_em(
        model, shipped, MEMORIZED_OTHER, candidates=settings.candidates, each=2 * settings.each, seed=settings.seed
    )
    memorized, other = found["memorized"], found["other"]
    half = len(memorized) // 2
    choosing = memorized.select(np.arange(half))
    sets = {"memorized": memorized.select(np.arange(half, 2 * half)), "other": other.select(np.arange(half))}
    weights = mm.weight_gradients(model, choosing)
    drops = -mm.ablate_heads(model, choosing.select(np.arange(min(8, half))), method="mean").em_change
    place = tuple(int(i) for i in np.unravel_index(int(np.argmax(drops.values)), drops.shape))
    common: dict[str, Any] = {"draws": settings.draws, "seed": settings.seed}
    masks = {
        "weights": mm.Mask.top(weights, fraction=settings.fraction),
        "head": mm.Mask.heads(model, [(place[0], place[1])]),
    }
    curves = {
        name: mm.noise_curve(model, sets, mask, scales=settings.scales, **common).rename(scale="level")
        for name, mask in masks.items()
    }
    curves["size"] = noise_by_size(model, sets, weights, fractions=settings.fractions, **common).rename(
        fraction="level"
    )
    result = xr.concat(
        [curve[["em", "nll"]].assign_coords(level=np.arange(curve.sizes["level"])) for curve in curves.values()],
        dim=xr.DataArray(list(curves), dims="curve", name="curve"),
        combine_attrs="drop_conflicts",
        coords="minimal",
        compat="override",
    ).assign_attrs(head=f"L{place[0]}H{place[1]}")
    save(result, [], settings)
    counts = {name: mask.count for name, mask in masks.items()}
    write(settings, result, counts, curves["weights"], shipped.continuation_len)
    return result


def said(values: np.ndarray, length: int) -> str:
    """Mean EM over draws and its 95 % interval; each draw is a cluster of its own."""
    low, high = mm.cluster_bootstrap(values, np.arange(len(values)), within=token_range(length))
    return f"{values.mean():.1f} [{low:.1f}, {high:.1f}]"


def write(settings: Settings, result: xr.Dataset, counts: dict[str, int], curve: xr.Dataset, length: int) -> None:
    """The page of docs.

    Args:
        settings: of the run.
        result: what `main` returns.
        counts: weights with noise, by curve.
        curve: for the values before any noise.
        length: of the continuation.
    """
    titles = {
        "weights": (
            f"{counts['weights']:,} weights with the largest gradients",
            "standard deviations",
            settings.scales,
        ),
        "head": (f"head {result.attrs['head']}, {counts['head']:,} weights", "standard deviations", settings.scales),
        "size": ("one standard deviation on a growing share of weights", "share of the weights", settings.fractions),
    }
    before = {str(name): float(curve.em_before.sel(set=name)) for name in curve["set"].values}
    lines = [
        "# Noise on a few weights",
        "",
        f"{stamp('noise')}, seed {settings.seed}, {settings.draws} draws. Values are mean EM in tokens with 95 % "
        f"intervals over draws. Without noise: memorized {before['memorized']:.1f}, other {before['other']:.1f}. "
        "Random: as many weights of each tensor, drawn again for every repetition.",
    ]
    for name, (title, unit, levels) in titles.items():
        lines += [
            "",
            f"## {title[0].upper()}{title[1:]}",
            "",
            f"| {unit} | memorized | memorized, random | other | other, random |",
        ]
        lines.append("|---|" + "---|" * 4)
        for number, level in enumerate(levels):
            at = result.em.sel({"curve": name, "level": number})
            cells = [
                said(at.sel({"set": s, "mask": m}).values, length)
                for s in ("memorized", "other")
                for m in ("chosen", "random")
            ]
            lines.append(f"| {level:g} | " + " | ".join(cells) + " |")
    write_page(settings.page, lines)


if __name__ == "__main__":
    start(main, Settings, __doc__)
