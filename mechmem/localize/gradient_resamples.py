"""How a set's gradient scores would vary with other paragraphs: groups of clusters, resampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, between
from mechmem.localize.gradients import weight_gradients
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import component_names, editable_parameters

# Sums of groups kept at once: each takes as much memory as the weights.
GROUPS = 8
# Weights of one product of resamples and gradients: 4 bytes each, for every resample.
_CHUNK = 50_000


@dataclass(frozen=True)
class GroupedGradients:
    """The gradient of a set's mean NLL in parts, one for each group of clusters.

    Attributes:
        parts: of each group, parameter name -> d (sum of the group's NLLs) / d weight.
        sizes: paragraphs of each group, [group].
    """

    parts: tuple[Mapping[str, Tensor], ...]
    sizes: np.ndarray

    def whole(self) -> dict[str, Float[Tensor, " *weight"]]:
        """The gradient of the mean over all paragraphs, as `weight_gradients` gives it."""
        return {name: sum(part[name] for part in self.parts) / int(self.sizes.sum()) for name in self.parts[0]}  # pyright: ignore[reportReturnType]


def grouped_gradients(
    model: HookedTransformer, paragraphs: Paragraphs, *, seed: int, progress: ProgressLike = None
) -> GroupedGradients:
    """Take the gradient group by group; it costs what that of the whole set does.

    Args:
        model: left as it is.
        paragraphs: whole clusters go into groups, at most eight, of about equal numbers of clusters.
        seed: which clusters go together.
        progress: called with (paragraphs done, paragraphs).
    """
    labels, members = np.unique(paragraphs.clusters, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    group = np.empty(len(labels), dtype=np.int64)
    group[order] = np.arange(len(labels)) % min(GROUPS, len(labels))
    parts, sizes, done = [], [], 0
    report = as_callback(progress, "gradients")
    for number in range(int(group.max()) + 1):
        chosen = paragraphs.select(group[members] == number)
        step = between(report, done, done + len(chosen), len(paragraphs))
        found = weight_gradients(model, chosen, progress=step)
        parts.append({name: gradient.mul_(len(chosen)) for name, gradient in found.items()})
        sizes.append(len(chosen))
        done += len(chosen)
    return GroupedGradients(tuple(parts), np.array(sizes))


def resampled_scores(
    model: HookedTransformer,
    grouped: GroupedGradients,
    *,
    draws: int,
    seed: int,
    over: Mapping[str, Tensor] | None = None,
) -> xr.DataArray:
    """Largest |gradient| of the mean NLL in every component, with the groups drawn anew with replacement.

    Args:
        model: whose gradients they are.
        grouped: the parts.
        draws: how many resamples.
        seed: of the resampling.
        over: divide each weight's gradient by this before the largest is taken.

    Returns:
        DataArray [draw, layer, component]; the first draw is the set itself.
    """
    groups = len(grouped.parts)
    chosen = np.random.default_rng(seed).integers(0, groups, (draws, groups))
    times = np.stack([np.bincount(row, minlength=groups) for row in chosen])
    times = np.concatenate([np.ones((1, groups)), times])
    weight = torch.from_numpy(times / (times @ grouped.sizes)[:, None]).float()
    names = component_names(model)
    scores = np.zeros((draws + 1, model.cfg.n_layers, len(names)))
    for name in editable_parameters(model):
        layer, end = int(name.split(".")[1]), name.rsplit("_", 1)[1]
        first = names.index(f"{end}0" if ".attn." in name else f"mlp_{end}")
        for offset, part in enumerate(_components(name, [each[name] for each in grouped.parts])):
            divisor = None if over is None else _components_of(name, over[name])[offset]
            scores[:, layer, first + offset] = _largest(weight, part, divisor)
    coords = {"draw": np.arange(draws + 1), "layer": np.arange(model.cfg.n_layers), "component": names}
    return xr.DataArray(scores, coords, ("draw", "layer", "component"), "gradient")


def ranks(scores: xr.DataArray, layer: int, component: str) -> np.ndarray:
    """Rank of one component among all, 1 for the largest score, in every draw, [draw]."""
    own = scores.sel(layer=layer, component=component)
    return 1 + (scores > own).sum(("layer", "component")).values


def _components_of(name: str, values: Tensor) -> list[Tensor]:
    """The first axis of attention weights is the head; an MLP matrix is one component."""
    flat = values.flatten(1) if ".attn." in name else values.reshape(1, -1)
    return list(flat)


def _components(name: str, groups: list[Tensor]) -> Iterator[list[Tensor]]:
    return (list(parts) for parts in zip(*(_components_of(name, each) for each in groups), strict=True))


def _largest(weight: Float[Tensor, "draw group"], parts: list[Tensor], divisor: Tensor | None) -> np.ndarray:
    weight = weight.to(parts[0].device)
    best = torch.zeros(len(weight), device=weight.device)
    for start in range(0, parts[0].numel(), _CHUNK):
        piece = slice(start, start + _CHUNK)
        values = weight @ torch.stack([part[piece].float() for part in parts])
        if divisor is not None:
            values /= divisor[piece]
        # Of the largest and the smallest, so that no array of absolute values is made.
        best = torch.maximum(best, torch.maximum(values.amax(1), -values.amin(1)))
    return best.double().cpu().numpy()
