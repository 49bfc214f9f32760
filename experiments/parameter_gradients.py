"""Which weights the NLL of paragraphs depends on, for paragraphs of four EM ranges.

    python experiments/parameter_gradients.py     # two minutes on one core; writes results/parameter_gradients

Stoehr et al. (2024, section 4 and figure 3) take the gradient of a set's mean NLL, keep the largest |gradient| of each
component and find smaller gradients the better a set is memorized, with a larger share of them in the lower layers.
Here every range has as many paragraphs and no cluster comes twice: the gradient of a mean shrinks with the number of
paragraphs it is a mean of, and near-duplicates make two ranges alike. Sampling noise limits the
cosine between two ranges' gradients, so the cosine between two halves of each range is reported, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from inputs import Inputs, open_inputs, start
from outputs import save
from samples import at_length, by_em, range_name
from torch import Tensor

import mechmem as mm
from mechmem.data.bounds import Count, Seed
from mechmem.localize.gradients import layer_shares
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import reduce_by_component
from mechmem.report.figures import layer_shares as share_figure
from mechmem.show.charts.heatmap_figures import component_heatmap

RANGES = {"0-10": (0, 10), "11-29": (11, 29), "30-49": (30, 49), "50": (50, 50)}


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws candidates and samples.
        candidates: paragraphs that are scored, at random; no more than there are.
        each: paragraphs of each EM range, or as many as the smallest range has clusters; at least two.
        out: folder of the result and the figure.
    """

    seed: Seed = 0
    candidates: Count = 4000
    each: Count = 48
    out: Path = Path("results/parameter_gradients")


def cosine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Cosine of the angle between two gradients over all weights."""
    a, b = (torch.cat([value.flatten() for value in gradient.values()]).double() for gradient in (first, second))
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def main(settings: Settings, model: HookedTransformer | None = None) -> xr.Dataset:
    """Take the gradients of every range.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        gradient [group, layer, component], largest |gradient| in nats per token per unit of weight; layer_sum and
        share [group, layer]; total and variance (over components) [group]; cosine [group, other_group] of the
        gradients; half_cosine [group] between two halves of the group; paragraph_id, em [group, paragraph].
    """
    model, shipped = open_inputs(settings, model)
    found = by_em(
        model, shipped, RANGES, candidates=settings.candidates, each=settings.each, seed=settings.seed, least=2
    )
    length = shipped.continuation_len
    groups = {range_name(at_length(RANGES[name], length)): paragraphs for name, paragraphs in found.items()}
    gradients: dict[str, dict[str, Tensor]] = {}
    half_cosine = []
    for name, paragraphs in groups.items():
        middle = len(paragraphs) // 2
        parts = [paragraphs.select(range(middle)), paragraphs.select(range(middle, len(paragraphs)))]
        halves = [mm.weight_gradients(model, part) for part in parts]
        half_cosine.append(cosine(*halves))
        # The gradient of the whole mean is the mean of the parts' gradients, weighted by their numbers.
        gradients[name] = {
            weight: (middle * halves[0][weight] + (len(paragraphs) - middle) * halves[1][weight]) / len(paragraphs)
            for weight in halves[0]
        }
    names = xr.DataArray(list(groups), dims="group", name="group")
    largest = xr.concat([reduce_by_component(model, found, "max") for found in gradients.values()], dim=names)
    units = {"units": "nats per token per unit of weight", "higher": "the range's NLL depends more on it"}
    matrix = [[cosine(first, second) for second in gradients.values()] for first in gradients.values()]
    result = xr.Dataset(
        {
            "gradient": largest.assign_attrs(units),
            "layer_sum": largest.sum("component").assign_attrs(units),
            "share": layer_shares(largest),
            "total": largest.sum(["layer", "component"]).assign_attrs(units),
            "variance": largest.var(["layer", "component"]),
            "cosine": (("group", "other_group"), np.array(matrix), {"units": "1", "higher": "more alike"}),
            "half_cosine": ("group", np.array(half_cosine), {"units": "1", "higher": "less sampling noise"}),
            "paragraph_id": (("group", "paragraph"), np.stack([paragraphs.ids for paragraphs in groups.values()])),
            "em": (("group", "paragraph"), np.stack([paragraphs.column("em") for paragraphs in groups.values()])),
        },
        {"other_group": list(groups)},
    )
    print(f"{result.sizes['paragraph']} paragraphs of each range; sums of the largest |gradient| by layer:")
    print(result.layer_sum.to_pandas().round(3).to_string())
    print("shares by layer:", result.share.to_pandas().round(3).to_string(), sep="\n")
    print("total, variance and the cosine of two halves:")
    print(result[["total", "variance", "half_cosine"]].to_dataframe().map("{:.3g}".format).to_string())
    print("cosine between ranges:", result.cosine.to_pandas().round(3).to_string(), sep="\n")
    span = (float(largest.where(largest > 0).min()), float(largest.max()))
    maps = [
        component_heatmap(
            largest.sel(group=name),
            title=f"Largest |gradient|, EM {name} (brighter = more)",
            unit="nats",
            kind="log",
            span=span,
        )
        for name in groups
    ]
    save(result, [*maps, share_figure(result.share.rename(group="set"))], settings)
    return result


if __name__ == "__main__":
    start(main, Settings, __doc__)
