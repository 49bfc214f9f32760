"""Which cells a patch has, its rarer options, and its effects as a labelled array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.data.bounds import Count
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.localize.metrics import UNITS, Metric, kl, metric_name
from mechmem.localize.patch_pairs import Direction, Pairs, ScoredAt
from mechmem.model.lean.trace import HEAD_SITES, NEURON_SITES
from mechmem.model.load import HookedTransformer

Positions = Literal["each", "perturbed", "all"]
GROUPS = 16


class EffectOptions(TypedDict, total=False):
    """Options that `patch` and `attribute` share, beside the main ones.

    scored: "continuation" (the default): every token of it; "impact": the first token in which a pair differs (the
        paper's choice); or token positions.
    groups: of site mlp_post: neurons are cut into so many runs of neighbours; None: 16.
    average: mean over pairs (the default); False keeps the dimension `paragraph`, the ids of the clean paragraphs.
    """

    scored: ScoredAt
    groups: Count | None
    average: bool


class PatchOptions(EffectOptions, total=False):
    """What `patch` takes beside its main arguments.

    cells: compute only where this is true, with the dimensions of the result; other cells are NaN.
    """

    cells: xr.DataArray | None


def check_options(function: str, options: Any, known: type) -> None:
    """Refuse keywords that a function does not have, as Python does.

    Raises:
        TypeError: an unknown keyword; the sentence lists those there are.
    """
    names = list(known.__annotations__)
    for name in options:
        if name not in names:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; options are {', '.join(names)}")


@dataclass(frozen=True)
class Grid:
    """The cells of a patch: [layer, part, pos], a part being a head or a group of neurons.

    Attributes:
        site: of every cell.
        parts: heads or groups of a layer; 1 where the site has neither.
        positions: 1 where a pair has one position, or all together.
        groups: the group of each neuron.
        pos: "each": every position is a cell of its own; "perturbed": each pair has one; "all": all together.
    """

    site: str
    layers: int
    parts: int
    positions: int
    groups: Int[Tensor, " d_mlp"]
    pos: Positions

    @property
    def each(self) -> bool:
        """Whether every position is a cell of its own."""
        return self.pos == "each"

    @property
    def dims(self) -> list[str]:
        """The dimensions of an effect: layer, then head or group where the site has them, then pos where each is."""
        part = "head" if self.site in HEAD_SITES else "group" if self.site in NEURON_SITES else None
        return ["layer", *([] if part is None else [part]), *(["pos"] if self.each else [])]

    @property
    def shape(self) -> list[int]:
        """Sizes of `dims`."""
        sizes = {"layer": self.layers, "head": self.parts, "group": self.parts, "pos": self.positions}
        return [sizes[name] for name in self.dims]

    def chosen(self, cells: xr.DataArray | None) -> Bool[np.ndarray, "layer part pos"]:
        """Which cells to compute.

        Raises:
            InputError: an array of other dimensions, sizes or type.
        """
        whole = self.layers, self.parts, self.positions
        if cells is None:
            return np.ones(whole, dtype=bool)
        expected = dict(zip(self.dims, self.shape, strict=True))
        if not isinstance(cells, xr.DataArray):
            raise InputError(f"got {type(cells).__name__} as cells; need a DataArray of bool with {expected}")
        if {str(name): size for name, size in cells.sizes.items()} != expected or cells.dtype != bool:
            raise InputError(
                f"got cells with {dict(cells.sizes)} of type {cells.dtype}; need bool with {expected}: compare an "
                "attribution of the same site with a number, or take top_cells"
            )
        return cells.transpose(*self.dims).values.reshape(whole)


def grid_of(model: HookedTransformer, site: str, length: int, groups: int | None, pos: Positions = "each") -> Grid:
    """The cells that a site has.

    Raises:
        InputError: groups that the model's neurons cannot be cut into, or for a site without neurons; an unknown `pos`.
    """
    check_choice("pos", pos, Positions)
    neurons = model.cfg.d_mlp or 1
    if site not in NEURON_SITES and groups is not None:
        raise InputError(f"got groups {groups} for the site {site!r}, which has none; leave it out")
    count = min(GROUPS, neurons) if groups is None else groups
    if site in NEURON_SITES and not 1 <= count <= neurons:
        raise InputError(f"got groups {groups}; need 1 to {model.cfg.d_mlp}, the neurons of a layer")
    parts = model.cfg.n_heads if site in HEAD_SITES else count if site in NEURON_SITES else 1
    group = torch.arange(neurons) * count // neurons
    return Grid(site, model.cfg.n_layers, parts, length if pos == "each" else 1, group, pos)


def check_metric(metric: Metric, base: Float[np.ndarray, " pair"], source: Float[np.ndarray, " pair"]) -> None:
    """Refuse a metric that says nothing of these pairs.

    Raises:
        InputError: it is not a number on an unpatched run, or the same for both runs of every pair.
    """
    if not (np.isfinite(base).all() and np.isfinite(source).all()):
        raise InputError(f"the metric {metric_name(metric)} is not a number on an unpatched run; look at the weights")
    if np.array_equal(base, source):
        raise InputError(
            f"the metric {metric_name(metric)} is {base[0]:g} for both runs of every pair, so it does not depend on "
            "what is patched; need one that tells them apart at the scored positions"
        )


def check_mean_metric(direction: str, metric: Metric) -> None:
    """Refuse the mean of both directions for a metric that is known to be another one in each.

    Raises:
        InputError: it is `kl`.
    """
    if direction == "mean" and metric is kl:
        raise InputError(NO_MEAN.format("kl"))


def check_one_meaning(
    metric: Metric, noising: Float[np.ndarray, "run pair"], denoising: Float[np.ndarray, "run pair"]
) -> None:
    """Refuse the mean of both directions for a metric that depends on which run is unpatched.

    Args:
        metric: in question.
        noising: of the clean and of the corrupt run, where the clean run is the unpatched one.
        denoising: the same two, where the corrupt run is.

    Raises:
        InputError: they differ.
    """
    if not np.allclose(noising, denoising, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise InputError(NO_MEAN.format(metric_name(metric)))


def mean_effects(
    noising: Float[np.ndarray, "pair layer part pos"], denoising: Float[np.ndarray, "pair layer part pos"]
) -> Float[np.ndarray, "pair layer part pos"]:
    """Half of noising minus denoising, as each is then the metric with the corrupt minus with the clean activation."""
    return (noising - denoising) / 2


def effect_array(
    effects: Float[np.ndarray, "pair layer part pos"],
    ends: Float[np.ndarray, "run pair"],
    pairs: Pairs,
    grid: Grid,
    metric: Metric,
    attrs: dict[str, object],
    *,
    normalize: bool,
    average: bool,
) -> xr.DataArray:
    """Label effects, as `patch` describes them.

    Args:
        effects: of every cell.
        ends: the metric of the base run and of the source run.
        pairs: that were compared.
        grid: the cells.
        metric: of both runs.
        attrs: what else is said of the result.
        normalize: as `patch`.
        average: as `patch`.

    Raises:
        InputError: the metric is the same for both runs, or not a number.
    """
    base, source = ends
    check_metric(metric, base, source)
    coords = {"paragraph": pairs.ids, **{name: np.arange(n) for name, n in zip(grid.dims, grid.shape, strict=True)}}
    name = metric_name(metric)
    attrs |= {
        "site": grid.site,
        "direction": pairs.direction,
        "metric": name,
        "units": "1" if normalize else UNITS.get(name, "unit of the metric"),
        "higher": NORMALIZED[pairs.direction] if normalize else MEAN if pairs.direction == "mean" else HIGHER,
        "normalized": int(normalize),
        "base": float(base.mean()),
        "source": float(source.mean()),
        "pairs": len(base),
    }
    values = effects.reshape(len(base), *grid.shape)
    result = xr.DataArray(values, coords, ["paragraph", *grid.dims], "effect", attrs)
    if average:
        # A cell is computed for all pairs or for none.
        result = result.mean("paragraph", skipna=False, keep_attrs=True)
    return (result / (source.mean() - base.mean())).assign_attrs(attrs) if normalize else result


HIGHER = "the patched run's metric is higher than the unpatched run's"
MEAN = "the metric is higher with the corrupt run's activation than with the clean run's, on average over both runs"
NO_MEAN = (
    "the metric {} compares with the unpatched run, which is another one in each direction, so their effects have no "
    "mean; use direction='noising' or 'denoising', or another metric: nll for example"
)
NORMALIZED: dict[Direction, str] = {
    "noising": "the patched clean run is closer to the corrupt run: 1.0 is as the corrupt run, 0.0 as the clean run",
    "denoising": "more of the clean run is restored: 1.0 is as the clean run, 0.0 as the corrupt run",
    "mean": "the activation decides more, on average over both runs: 1.0 is as replacing everything, 0.0 as nothing",
}
