"""Item 4: which component a contrastive objective points at, and what its KL term adds at the starting weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.gradient_resamples import grouped_gradients, ranks, resampled_scores
from mechmem.localize.gradients import kl_gradients, weight_gradients
from mechmem.localize.paragraph_gradients import fisher_scale
from mechmem.model.head_names import head_name
from mechmem.model.load import HookedTransformer
from mechmem.stats.mean_intervals import Side, expanded_quantiles
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.readings import published_columns
from mechmem.study.paper.rows import Finding, Reading, Row, Trap
from mechmem.study.paper.study_head import study_head
from mechmem.weights.masks import Mask

Gradients = Mapping[str, Tensor]
ITEM = "contrastive"
READINGS: tuple[Reading, Reading] = ("as published", "corrected")
# Resamples of whole gradients: each reads all weights eight times.
DRAWS = 200


def contrastive_item(paper: PaperFolder) -> Finding:
    """The most salient components by the plain gradient and by one that knows the keep set, and trap 2.

    1. As published: |gradient of the memorized NLL| on folded weights, which is what the objective's gradient is.
    2. Corrected: the same on raw weights over the root of the other set's mean squared gradient ("fisher").
    3. Trap 2: the mask by the objective's own gradient, KL term included, against the mask by the memorized NLL alone.
    """
    size = paper.settings.gradient_sample
    memorized, other = paper.sample("memorized", size), paper.sample("other", size)
    head = study_head(paper.folded)
    draws: dict[str, Any] = {"draws": min(DRAWS, paper.settings.draws), "seed": paper.seed}
    slipped = published_columns(memorized)
    grouped = grouped_gradients(paper.folded, slipped, seed=paper.seed, progress=paper.at("contrastive gradient"))
    plain, gradient = resampled_scores(paper.folded, grouped, **draws), grouped.whole()
    sizes = {"as published": grouped.sizes}
    del grouped
    masks, alike = start_masks(paper.folded, gradient, published_columns(other), paper.settings.fraction)
    del gradient
    grouped = grouped_gradients(paper.model, memorized, seed=paper.seed, progress=paper.at("gradient over Fisher"))
    fisher = resampled_scores(paper.model, grouped, **draws, over=fisher_scale(paper.model, other))
    sizes["corrected"] = grouped.sizes
    del grouped
    scores = xr.concat([plain, fisher], xr.DataArray(list(READINGS), dims="reading", name="reading"))
    rows = [_rank_row(scores.sel(reading=reading), reading, head, sizes[reading]) for reading in READINGS]
    return Finding((*rows, *_overlap_rows(masks)), _data(scores, masks, alike, head), (_trap(masks, alike),))


def start_masks(
    model: HookedTransformer, memorized: Gradients, keep: Paragraphs, fraction: float
) -> tuple[dict[str, Mask], float]:
    """Masks of the weights with the largest scores, and the objective's cosine with the plain gradient.

    Args:
        model: at its starting weights.
        memorized: gradient of the memorized NLL.
        keep: paragraphs that the objective holds.
        fraction: share of the weights that a mask takes.

    Returns:
        "plain", by |gradient of the memorized NLL|; "objective", by the gradient of -NLL + KL(p_0 || p), by autograd;
        "fisher" and "difference", which know the keep set; "random", as many weights of each tensor. And the cosine
        of the objective's gradient with that of -NLL.
    """
    held = kl_gradients(model, model, keep)
    objective = {name: held[name] - gradient for name, gradient in memorized.items()}
    alike, plain = -cosine(objective, memorized), Mask.top(memorized, fraction=fraction)
    found = {"plain": plain, "objective": Mask.top(objective, fraction=fraction)}
    del held, objective
    scale = fisher_scale(model, keep)
    found["fisher"] = Mask.top(
        {name: gradient / scale[name] for name, gradient in memorized.items()}, fraction=fraction
    )
    del scale
    other = weight_gradients(model, keep)
    found["difference"] = Mask.top({n: gradient - other[n] for n, gradient in memorized.items()}, fraction=fraction)
    found["random"] = Mask.random_like(plain, seed=0)
    return found, alike


def cosine(first: Gradients, second: Gradients) -> float:
    """Cosine of the angle between two gradients, over all weights."""
    pairs = ((first, second), (first, first), (second, second))
    inner, *squares = (sum(float((a[n].double() * b[n].double()).sum()) for n in first) for a, b in pairs)
    return inner / max((squares[0] * squares[1]) ** 0.5, 1e-300)


def shared(first: Mask, second: Mask) -> float:
    """Percentage of a mask's weights that another of the same size has, too."""
    return 100 * first.intersection(second).count / first.count


def _rank_row(scores: xr.DataArray, reading: Reading, head: tuple[int, int], sizes: np.ndarray) -> Row:
    found = ranks(scores, head[0], f"V{head[1]}")
    # Groups of clusters are what is resampled; few of them need quantiles further out.
    groups = Side(np.zeros((len(sizes), 1)), sizes.astype(np.float64))
    low, high = np.quantile(found[1:], expanded_quantiles([groups], 0.95))
    quantity = f"rank of W_V of {head_name(head)} among all components"
    best: Any = scores.isel(draw=0).to_series().sort_values(ascending=False, kind="stable").index[:3]
    note = f"{reading}, most salient: {', '.join(f'L{layer} {name}' for layer, name in best)}."
    applies = 1.0 if head == (1, 2) else None
    return Row(ITEM, quantity, reading, float(found[0]), float(low), float(high), applies, "rank, 1 is first", note)


def _overlap_rows(masks: Mapping[str, Mask]) -> list[Row]:
    quantity, units = "weights that the mask shares with that of the memorized gradient alone", "% of the mask"
    known, chance = shared(masks["fisher"], masks["plain"]), shared(masks["random"], masks["plain"])
    note = f"Corrected: the gradient over the keep set's Fisher information. Random weights share {chance:.1f} %."
    return [
        Row(ITEM, quantity, "as published", shared(masks["objective"], masks["plain"]), None, None, None, units),
        Row(ITEM, quantity, "corrected", known, None, None, None, units, note),
    ]


def _trap(masks: Mapping[str, Mask], alike: float) -> Trap:
    slipped, fisher = (shared(masks[name], masks["plain"]) for name in ("objective", "fisher"))
    difference = shared(masks["difference"], masks["plain"])
    change = (
        f"At the starting weights the objective's gradient, KL term included, has cosine {alike:.6f} with "
        f"the memorized gradient alone, and their masks share {slipped:.1f} % of the weights. A mask by Fisher "
        f"information shares {fisher:.1f} %, one by a difference of gradients {difference:.1f} %."
    )
    units = "% of the mask shared with that of the memorized gradient alone"
    return Trap(2, "KL(p_0 || p) has no gradient at the starting weights", slipped, fisher, units, change)


def _data(scores: xr.DataArray, masks: Mapping[str, Mask], alike: float, head: tuple[int, int]) -> xr.Dataset:
    names = ("plain", "objective", "fisher", "difference", "random")
    overlap = np.array([[masks[a].overlap(masks[b]) for b in names] for a in names])
    first = scores.isel(draw=0, drop=True)
    units = "as published: nats per token per unit of weight; corrected: 1"
    best = [_best(first.sel(reading=reading)) for reading in READINGS]
    return xr.Dataset(
        {
            "score": first.assign_attrs(units=units, higher="choose it first"),
            "rank": (
                ("reading", "draw"),
                np.stack([ranks(scores.sel(reading=reading), head[0], f"V{head[1]}") for reading in READINGS]),
                {"units": "1", "higher": "less salient"},
            ),
            "overlap": (("mask", "other_mask"), overlap, {"units": "1", "higher": "the masks agree more"}),
            "cosine": ((), alike, {"units": "1", "higher": "the KL term adds less"}),
        },
        {"mask": list(names), "other_mask": list(names)},
        {
            "head": head_name(head),
            "finding": f"The most salient component is {best[0]} as published and {best[1]} by a score that knows what "
            f"is to be kept; the study names W_V of L1H2.",
        },
    )


def _best(scores: xr.DataArray) -> str:
    layer, name = scores.to_series().idxmax()  # pyright: ignore[reportGeneralTypeIssues]
    return f"L{layer} {name}"
