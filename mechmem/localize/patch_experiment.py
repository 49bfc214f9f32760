"""A patching experiment: every cell's effect in each direction, with intervals, and both texts of every pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import xarray as xr
from typing_extensions import Unpack

from mechmem.data.bounds import Count, Index, Share, checked
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress, ProgressLike, part_of
from mechmem.localize.attribution import Method, attribute, top_cells
from mechmem.localize.metrics import UNITS, Metric, MetricName, effect_range, metric_of
from mechmem.localize.patch_effects import Positions, check_options, grid_of
from mechmem.localize.patch_pairs import Direction, OneDirection, ScoredAt, scored_count
from mechmem.localize.patching import patch
from mechmem.model.activation_sites import Site, site_of
from mechmem.model.head_names import heads_of
from mechmem.model.lean.trace import HEAD_SITES
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.token_text import token_texts
from mechmem.stats.cell_intervals import cell_intervals
from mechmem.stats.ranges import Range

# Columns of pairs that a result keeps, where both sides or the clean side have them.
KNOWN = ("pair", "cluster", "perturbed_pos", "impact_pos", "em_change")
NORMALIZED = (
    "the patched run is closer to the run that activations come from: 1.0 is as that run, 0.0 as without a patch"
)


class ExperimentOptions(TypedDict, total=False):
    """What `patch_experiment` takes beside its main arguments.

    layers: patch cells of these layers alone.
    heads: patch these heads alone, "L1H2" or (1, 2); they name their layers.
    attribute_first: patch exactly this share of the cells, those with the largest estimates by attribution.
    attribute_method: how these are estimated, as `method` of `attribute`; None: the site's own.
    normalize: as `patch`.
    """

    layers: Sequence[Index] | None
    heads: Sequence[str | tuple[int, int]] | None
    attribute_first: Share | None
    attribute_method: Method | None
    normalize: bool


@public("refuse", unused=("seed",))
def patch_experiment(
    model: HookedTransformer,
    clean: Paragraphs,
    corrupt: Paragraphs,
    *,
    site: Site | str = "z",
    pos: Positions = "each",
    direction: Direction | Literal["both"] = "both",
    metric: Metric | MetricName = "nll",
    scored: ScoredAt = "impact",
    progress: ProgressLike = None,
    **options: Unpack[ExperimentOptions],
) -> xr.Dataset:
    """Patch pairs in one direction or both, and label all of it: what `mechmem patch` writes.

    1. With `attribute_first`, estimate every cell, and choose those with the largest mean estimates.
    2. Patch the (chosen) cells exactly, each pair alone.
    3. Intervals: 95 %, of the mean over pairs, by the clean paragraphs' clusters; each is about its own cell. They are
       computed without resampling: `seed` has no effect any more, and a DeprecationWarning says so where it is given.

    Args:
        model: left as it is; it must have no hooks.
        clean: as `patch`; clusters from the column `cluster`, or else each paragraph is its own.
        corrupt: as `patch`.
        site: as `patch`.
        pos: as `patch`: "each", "perturbed" (the study's choice) or "all".
        direction: "noising", "denoising", "mean" (one effect, as `patch`) or "both" (the first two).
        metric: as `patch`.
        scored: as `patch`; "impact": the first continuation token in which a pair differs.
        progress: called with (done, total), in parts of the work.
        **options: layers, heads, attribute_first, attribute_method, normalize, see `ExperimentOptions`.

    Returns:
        Dataset. effect [direction, paragraph, layer, head | group, pos], axes as `patch` gives them: after the patch
        minus before, NaN where not patched; effect_mean, effect_low, effect_high, of its shape without paragraph; with
        `attribute_first` estimate, means too; base, source [direction]: mean metric of the run that is patched and of
        the run that activations come from. clean_token, corrupt_token (ids), clean_text, corrupt_text
        [paragraph, pos]: both texts. Coordinates of every axis: paragraph has the clean paragraphs' ids; corrupt_id,
        and of the pairs' columns pair, cluster, perturbed_pos, impact_pos and em_change those that they have. `attrs`:
        site, metric, scored, prefix_len and what else decided it.

    Raises:
        InputError: as `patch`; layers or heads that the model or the site does not have, or both; `attribute_first`
            with a metric without a gradient, as `attribute`; `attribute_method` without it.
    """
    check_options("patch_experiment", options, ExperimentOptions)
    first, normalize = options.get("attribute_first"), bool(options.get("normalize", False))
    site = site_of(model, site)
    allowed = chosen_cells(model, site, pos, clean.tokens.shape[1], options.get("layers"), options.get("heads"))
    directions: list[Any] = list(get_args(OneDirection)) if direction == "both" else [direction]
    shared: dict[str, Any] = {"site": site, "metric": metric, "scored": scored, "pos": pos}
    method, estimates = options.get("attribute_method"), []
    if first is None and method is not None:
        raise InputError(
            f"got attribute_method {method!r} without attribute_first, the share of the cells that it chooses; need "
            "both, or none to patch all cells"
        )
    if first is not None:
        for each in directions:
            estimates.append(attribute(model, clean, corrupt, direction=each, method=method, **shared))
    effects = []
    for number, each in enumerate(directions):
        cells = allowed if first is None else _highest(estimates[number], allowed, first)
        part: Progress = part_of(progress, number, len(directions))
        exact = {"cells": cells, "average": False, "normalize": normalize, "progress": part}
        effects.append(patch(model, clean, corrupt, direction=each, **shared, **exact))
    within = effect_range(metric_of(metric), scored_count(clean, scored), normalize=normalize)
    result = _labelled(effects, estimates, directions, clean.clusters, within)
    attrs = {name: effects[0].attrs[name] for name in ("site", "pos", "metric", "scored", "normalized", "pairs")}
    attrs |= {"prefix_len": clean.prefix_len, "level": 0.95}
    if first is not None:
        attrs |= {"attribute_first": first, "approximation": estimates[0].attrs["approximation"]}
    return result.assign(_texts(model, clean, corrupt)).assign_coords(_pair_columns(clean, corrupt)).assign_attrs(attrs)


def chosen_cells(
    model: HookedTransformer,
    site: str,
    pos: Positions,
    length: int,
    layers: Sequence[int] | None,
    heads: Sequence[Any] | None,
) -> xr.DataArray | None:
    """True at the cells of some layers or heads, as `cells` of `patch`; None where neither is given.

    Raises:
        InputError: both are given, a layer or head that is not there, or heads of a site that has none.
    """
    if layers is None and heads is None:
        return None
    if layers is not None and heads is not None:
        raise InputError(f"got layers {list(layers)} and heads {list(heads)}; need one of them: a head names its layer")
    grid = grid_of(model, site, length, None, pos)
    chosen = np.zeros(grid.shape, dtype=bool)
    if heads is not None:
        if site not in HEAD_SITES:
            raise InputError(f"got heads for the site {site!r}, which has none; need a site of heads, such as z")
        for layer, head in heads_of(model, heads):
            chosen[layer, head] = True
    else:
        known = model.cfg.n_layers
        if not layers or not all(0 <= layer < known for layer in layers):
            raise InputError(f"got layers {list(layers or ())}; need at least one, from 0 to {known - 1}")
        chosen[list(layers)] = True
    return xr.DataArray(chosen, dims=grid.dims)


def _highest(estimate: xr.DataArray, allowed: xr.DataArray | None, share: float) -> xr.DataArray:
    """Of the cells that are allowed, the share with the largest estimates; at least one."""
    if allowed is None:
        return top_cells(estimate, share)
    inside = estimate.values[allowed.values]
    best = top_cells(xr.DataArray(inside, dims="cell"), share)
    chosen = np.zeros(estimate.shape, dtype=bool)
    chosen[allowed.values] = best.values
    return estimate.copy(data=chosen)


def _labelled(
    effects: Sequence[xr.DataArray],
    estimates: Sequence[xr.DataArray],
    directions: Sequence[str],
    clusters: np.ndarray,
    within: Range,
) -> xr.Dataset:
    inner = effects[0]
    values = np.stack([effect.values for effect in effects])
    low, high = cell_intervals(values.swapaxes(0, 1), clusters, within=within)
    words = {name: inner.attrs[name] for name in ("units", "higher")}
    if inner.attrs["normalized"]:
        words["higher"] = NORMALIZED
    cells = ["direction", *(str(name) for name in inner.dims if name != "paragraph")]
    data: dict[str, Any] = {"effect": (("direction", *inner.dims), values, words)}
    # A cell is patched for all pairs or for none.
    for name, ends in (("effect_mean", values.mean(1)), ("effect_low", low), ("effect_high", high)):
        data[name] = (cells, ends, words)
    metric = {"units": UNITS.get(inner.attrs["metric"], "unit of the metric")}
    if estimates:
        own = {"units": estimates[0].attrs["units"], "higher": "as effect, not normalized; to first order"}
        data["estimate"] = (cells, np.stack([estimate.values for estimate in estimates]), own)
    for name in ("base", "source"):
        data[name] = ("direction", np.array([effect.attrs[name] for effect in effects]), metric)
    return xr.Dataset(data, {"direction": list(directions)} | {str(k): inner[k].values for k in inner.dims})


def _texts(model: HookedTransformer, clean: Paragraphs, corrupt: Paragraphs) -> dict[str, Any]:
    """Token ids and token texts of both sides, [paragraph, pos]."""
    found: dict[str, Any] = {}
    for name, side in (("clean", clean), ("corrupt", corrupt)):
        found[f"{name}_token"] = (("paragraph", "pos"), side.tokens.cpu().numpy(), {"units": "token id"})
        found[f"{name}_text"] = (("paragraph", "pos"), token_texts(model.tokenizer, side.tokens))
    return found


def _pair_columns(clean: Paragraphs, corrupt: Paragraphs) -> dict[str, Any]:
    found: dict[str, Any] = {"pos": np.arange(clean.tokens.shape[1]), "corrupt_id": ("paragraph", corrupt.ids)}
    return found | {name: ("paragraph", clean.column(name)) for name in KNOWN if clean.has(name)}


@checked
def strongest_cells(result: xr.Dataset, direction: str, count: Count = 10) -> list[tuple[str, float, float, float]]:
    """The cells with the largest |mean effect|: name ("L1H2", "L3 at 12"), mean, low and high.

    Args:
        result: what `patch_experiment` gave.
        direction: one that it has.
        count: at most so many.
    """
    check_choice("direction", direction, [str(name) for name in result.direction.values])
    here = result.sel(direction=direction)
    mean = here.effect_mean.values
    order = np.argsort(-np.nan_to_num(np.abs(mean), nan=-1.0), axis=None, kind="stable")[:count]
    rows = []
    for place in order:
        cell = np.unravel_index(place, mean.shape)
        if np.isfinite(mean[cell]):
            ends = (float(here[name].values[cell]) for name in ("effect_mean", "effect_low", "effect_high"))
            rows.append((_cell_name(here.effect_mean, cell), *ends))
    return rows


def _cell_name(effect: xr.DataArray, cell: tuple[Any, ...]) -> str:
    words = {"layer": "L", "head": "H", "group": " group ", "pos": " at "}
    return "".join(f"{words[str(dim)]}{effect[dim].values[i]}" for dim, i in zip(effect.dims, cell, strict=True))
