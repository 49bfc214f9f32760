"""Which weights memorized paragraphs depend on and others do not, by three scores.

    python experiments/contrastive_gradients.py     # under a minute on one core; writes results/contrastive_gradients

Stoehr et al. (2024, section 5 and figure 4) raise the NLL of memorized paragraphs while KL holds the others. At the
starting weights that KL has no gradient, so their contrastive gradient is the plain one; Fisher information or a
difference of gradients brings the others in. How far the three choices of weights agree is the overlap of their masks.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import xarray as xr
from inputs import Inputs, open_inputs, start
from outputs import save
from samples import MEMORIZED_OTHER, by_em

import mechmem as mm
from mechmem.data.bounds import Count, Seed, Share
from mechmem.localize.paragraph_gradients import Contrast
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import reduce_by_component
from mechmem.show.charts.heatmap_figures import component_heatmap

CONTRASTS = get_args(Contrast)


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws candidates and samples.
        candidates: paragraphs that are scored, at random.
        each: memorized paragraphs, and as many others; one of each cluster.
        fraction: share of the attention and MLP weights that a mask takes.
        out: folder of the result and the figure.
    """

    seed: Seed = 0
    candidates: Count = 800
    each: Count = 64
    fraction: Share = 0.001
    out: Path = Path("results/contrastive_gradients")


def main(settings: Settings, model: HookedTransformer | None = None) -> xr.Dataset:
    """Score every weight in three ways and compare what comes out on top.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        score [contrast, layer, component], the largest in the component; chosen [contrast, layer, component], how many
        of its weights the mask takes; overlap [contrast, other_contrast], the masks' Jaccard index; overlap_by_chance
        [], that of two random masks; paragraph_id [set, paragraph].
    """
    model, shipped = open_inputs(settings, model)
    sets = by_em(
        model, shipped, MEMORIZED_OTHER, candidates=settings.candidates, each=settings.each, seed=settings.seed
    )
    largest, chosen, masks = [], [], []
    for contrast in CONTRASTS:
        scores = mm.contrastive_gradients(model, sets["memorized"], sets["other"], method=contrast)
        mask = mm.Mask.top(scores, fraction=settings.fraction)
        taken = {name: torch.zeros(value.numel()) for name, value in scores.items()}
        for name, places in mask.indices.items():
            taken[name][places] = 1
        marks = {name: value.view(mask.shapes[name]) for name, value in taken.items()}
        largest.append(reduce_by_component(model, scores, "max"))
        chosen.append(reduce_by_component(model, marks, "sum"))
        masks.append(mask)
    names = xr.DataArray(list(CONTRASTS), dims="contrast", name="contrast")
    overlap = np.array([[first.overlap(second) for second in masks] for first in masks])
    result = xr.Dataset(
        {
            "score": xr.concat(largest, dim=names).assign_attrs(
                units="nats per token per unit of weight; 1 for fisher", higher="choose it first"
            ),
            "chosen": xr.concat(chosen, dim=names).astype(int).assign_attrs(units="weights"),
            "overlap": (("contrast", "other_contrast"), overlap, {"units": "1", "higher": "the masks agree more"}),
            # Of weights in either mask, those in both, when each is drawn at random.
            "overlap_by_chance": settings.fraction / (2 - settings.fraction),
            "paragraph_id": (("set", "paragraph"), np.stack([paragraphs.ids for paragraphs in sets.values()])),
        },
        {"other_contrast": list(CONTRASTS), "set": list(sets)},
    )
    print(f"{result.sizes['paragraph']} paragraphs of each set, {masks[0].count:,} of {masks[0].total:,} weights")
    for contrast in CONTRASTS:
        share = result.chosen.sel(contrast=contrast) / masks[0].count
        best = share.to_series().sort_values(ascending=False, kind="stable")[:5]
        print(f"{contrast}: by layer {share.sum('component').values.round(3)}; most in", end=" ")
        print(", ".join(f"L{layer} {part} {value:.3f}" for (layer, part), value in best.items()))
    print("overlap of the masks:", result.overlap.to_pandas().round(4).to_string(), sep="\n")
    figures = []
    for contrast in CONTRASTS:
        one = result.sel(contrast=contrast)
        unit = "no unit" if contrast == "fisher" else "nats per token per unit of weight"
        title = f"Largest score, {contrast} (brighter = memorized text depends more on it)"
        figures.append(component_heatmap(one.score, title=title, unit=unit, kind="log"))
        title = f"Weights among the top {settings.fraction:.1%}, {contrast} (brighter = more of them)"
        figures.append(component_heatmap(one.chosen, title=title, unit="weights", kind="plain"))
    save(result, figures, settings)
    return result


if __name__ == "__main__":
    start(main, Settings, __doc__)
