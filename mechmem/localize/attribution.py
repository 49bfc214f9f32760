"""Attribution patching: the effect of a patch to first order, for all cells from one backward pass."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr
from scipy.stats import spearmanr
from typing_extensions import Unpack

from mechmem.data.bounds import Count, Share, checked
from mechmem.data.choices import check_choice, check_used
from mechmem.data.errors import InputError, NotFiniteError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.data.ranking import largest, share_of
from mechmem.localize.attribution_gradients import FLAT, attributed_cells, cells_at
from mechmem.localize.metrics import Metric, MetricName, kl, metric_of
from mechmem.localize.patch_effects import (
    EffectOptions,
    Positions,
    check_mean_metric,
    check_options,
    effect_array,
    grid_of,
)
from mechmem.localize.patch_pairs import Direction, check_pairs, check_perturbed
from mechmem.model.activation_sites import Site, site_of
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.hooks import frozen
from mechmem.model.lean.model import fast_float32
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

Method = Literal["gradient", "both_ends", "integrated"]
# Sites at which the gradients of both runs rank better what even one direction does (docs/attribution.md).
BOTH_ENDS = ("resid_pre", "resid_mid", "resid_post")
STEPS = 5


class AttributeOptions(EffectOptions, total=False):
    """What `attribute` takes beside its main arguments.

    pos: as `patch`; for "all", to first order, the sum over positions.
    steps: of "integrated" alone: points between base and source, at the middles of as many equal parts; None: 5.
    batch_size: pairs of one forward and backward; None: chosen for the machine.
    """

    pos: Positions
    steps: Count | None
    batch_size: Count | None


@public("refuse")
def attribute(
    model: HookedTransformer,
    clean: Paragraphs,
    corrupt: Paragraphs,
    *,
    site: Site | str = "z",
    direction: Direction = "noising",
    metric: Metric | MetricName = "nll",
    method: Method | None = None,
    normalize: bool = False,
    progress: ProgressLike = None,
    **options: Unpack[AttributeOptions],
) -> xr.DataArray:
    """Estimate `patch` for every cell: gradient of the metric times the difference of the activations.

    "gradient" takes the gradient on the base run (Nanda 2023, attribution patching; Syed et al. 2023, arXiv
    2310.10348): it estimates the effect of one direction. "both_ends" takes the mean of the gradients on the base run
    and on the source run, and "integrated" the mean gradient over runs whose token embeddings lie between the base's
    and the source's (Hanna et al. 2024, arXiv 2403.17806): they also work where the metric is flat at the base run, as
    the NLL of a memorized text is. Both are symmetric: the other direction gives minus the same, so what they estimate
    is the mean of the two directions. With direction="mean", "gradient" is the mean of both directions' estimates,
    which is "both_ends". None sees what saturates between the two activations: `patch` the highest cells.

    Args:
        model: left as it is; it must have no hooks, as for `patch`.
        clean: as `patch`.
        corrupt: as `patch`.
        site: as `patch`.
        direction: as `patch`.
        metric: as `patch`; it needs a gradient, which `em` has not, and for "gradient" one that is not zero at the base
            run, as that of `kl` is, or of any distance from the unpatched run.
        method: which gradient; None: what ranked best by measurement (docs/attribution.md): "both_ends" for the
            residual stream and for `kl`, else "gradient".
        normalize: as `patch`.
        progress: called with (pairs done, pairs).
        **options: pos, scored, groups, average, steps, batch_size, see `AttributeOptions`.

    Returns:
        DataArray of the shape, unit and sign of `patch`.

    Raises:
        InputError: as `patch`; a metric without a gradient, or for "gradient" with none at the base run; fewer than one
            step, steps for another method than "integrated", or an unknown method.
        NotFiniteError: a gradient is not finite.
    """
    check_options("attribute", options, AttributeOptions)
    scored, metric = options.get("scored", "continuation"), metric_of(metric)
    site = site_of(model, site)
    pairs = check_pairs(model, clean, corrupt, direction, scored)
    pos = options.get("pos", "each")
    check_perturbed(clean, corrupt, pos)
    grid = grid_of(model, site, clean.tokens.shape[1], options.get("groups"), pos)
    method = default_method(site, metric) if method is None else method
    points, attrs = _points(method, direction, options.get("steps"))
    check_mean_metric(pairs.direction, metric)
    if points == [0.0] and metric is kl:
        raise InputError(FLAT.format("kl"))
    size = chosen_batch_size(options.get("batch_size"), model.W_E.device, 4)
    parts, ends = [], []
    with frozen(model), fast_float32(model.W_E.device):
        for rows in batches(len(clean), size, progress):
            some = pairs.select(rows)
            found, both = attributed_cells(model, some, grid, metric, points)
            parts.append(cells_at(found, some, pos))
            ends.append(both)
    effects = np.concatenate(parts, 0)
    if not np.isfinite(effects).all():
        raise NotFiniteError("a gradient is not finite; look at the weights and the metric")
    both, average = np.concatenate(ends, 1), options.get("average", True)
    attrs |= {"scored": str(scored), "pos": pos}
    return effect_array(effects, both, pairs, grid, metric, attrs, normalize=normalize, average=average)


def default_method(site: str, metric: Metric) -> Method:
    """What `attribute` uses where nobody names a method."""
    return "both_ends" if site in BOTH_ENDS or metric is kl else "gradient"


def _points(method: str, direction: Direction, steps: int | None) -> tuple[list[float], dict[str, object]]:
    """Where between base (0) and source (1) gradients are taken, and what the result says of it."""
    check_choice("method", method, Method)
    if method != "integrated":
        check_used(method, (), {"steps": steps})
        one_end = method == "gradient" and direction != "mean"
        return [0.0] if one_end else [0.0, 1.0], {"approximation": method}
    count = STEPS if steps is None else steps
    return [(step + 0.5) / count for step in range(count)], {"approximation": method, "steps": count}


@checked
def top_cells(effect: xr.DataArray, fraction: Share) -> xr.DataArray:
    """The cells with the largest absolute effects: what `patch` takes as `cells`.

    Args:
        effect: what `attribute` or `patch` gave; with a dimension `paragraph`, its mean over paragraphs is used.
        fraction: share of all cells, 0 < fraction <= 1; at least one.

    Returns:
        Boolean DataArray of the effect's dimensions without `paragraph`; `attrs["chosen"]` says how many are true.

    Raises:
        InputError: the fraction is out of range.
    """
    if "paragraph" in effect.dims:
        effect = effect.mean("paragraph", skipna=False, keep_attrs=True)
    chosen = np.zeros(effect.size, dtype=bool)
    chosen[largest(np.abs(effect.values), share_of(effect.size, fraction, 0.05))] = True
    kept = {name: effect.attrs[name] for name in ("site", "direction", "scored") if name in effect.attrs}
    result = effect.copy(data=chosen.reshape(effect.shape)).rename("chosen")
    result.attrs = {**kept, "chosen": int(chosen.sum())}
    return result


def rank_correlation(approximate: xr.DataArray, exact: xr.DataArray) -> float:
    """Spearman's correlation of an attribution with exact patching, over the cells that were patched.

    Cells that cannot have an effect, after the last scored column, are 0 in both and left out.

    Raises:
        InputError: results of different cells, or fewer than three.
    """
    if approximate.dims != exact.dims or approximate.shape != exact.shape:
        raise InputError(
            f"got results with {dict(approximate.sizes)} and {dict(exact.sizes)}; need those of one site and pairs"
        )
    both = np.isfinite(exact.values) & ((exact.values != 0) | (approximate.values != 0))
    if both.sum() < 3:
        raise InputError(f"{both.sum()} cells can be compared; need at least 3: patch more of them")
    found: Any = spearmanr(approximate.values[both], exact.values[both])
    return float(found.statistic)
