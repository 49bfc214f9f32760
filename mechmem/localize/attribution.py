"""Attribution patching: what a patch would do, to first order, for all cells from one backward pass."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from einops import reduce
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.localize.metrics import Metric, Scored, metric_name, nll
from mechmem.localize.patch_pairs import Direction, Pairs, ScoredAt, check_pairs
from mechmem.localize.patching import effect_array, grid_shape, group_of
from mechmem.model.forward import residual_before, unembed_columns
from mechmem.model.hooks import Hook, frozen, recording, with_hooks
from mechmem.model.lean.model import fast_float32
from mechmem.model.lean.trace import HEAD_SITES, HOOKS, NEURON_SITES
from mechmem.model.load import HookedTransformer

Method = Literal["gradient", "integrated"]


def attribute(
    model: HookedTransformer,
    clean: Paragraphs,
    corrupt: Paragraphs,
    *,
    site: str = "z",
    direction: Direction = "noising",
    metric: Metric = nll,
    scored: ScoredAt = "continuation",
    method: Method = "gradient",
    steps: int = 5,
    groups: int = 16,
    normalize: bool = False,
    average: bool = True,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> xr.DataArray:
    """Estimate `patch` for every cell: gradient of the metric times the difference of the activations.

    "gradient" takes the gradient on the base run (Nanda 2023, attribution patching; Syed et al. 2023, arXiv
    2310.10348). "integrated" takes the mean gradient over runs whose token embeddings lie between the base's and the
    source's (Hanna et al. 2024, arXiv 2403.17806): it sees past a metric that is flat at the base run, which a
    memorized text's NLL is. Neither sees what saturates between the two activations; `patch` the cells at the top.

    Args:
        model: left as it is.
        clean: as `patch`.
        corrupt: as `patch`.
        site: as `patch`.
        direction: as `patch`.
        metric: as `patch`; it needs a gradient, which `em` has not.
        scored: as `patch`.
        method: which gradient.
        steps: points between base and source for "integrated", at the middles of as many equal parts.
        groups: as `patch`.
        normalize: as `patch`.
        average: as `patch`.
        batch_size: pairs of one forward and backward.
        progress: called with (pairs done, pairs).

    Returns:
        DataArray of the shape, unit and sign of `patch`.

    Raises:
        InputError: as `patch`; a metric without a gradient; fewer than one step or an unknown method.
        FloatingPointError: a gradient is not finite.
    """
    pairs = check_pairs(model, clean, corrupt, site, direction, scored)
    if method not in ("gradient", "integrated") or steps < 1:
        raise InputError(
            f"method is {method!r} with {steps} steps; need 'gradient' or 'integrated', the latter with at least 1"
        )
    grid_shape(model, clean.tokens.shape[1], site, groups)  # refuses groups that are not there
    points = [0.0] if method == "gradient" else [(step + 0.5) / steps for step in range(steps)]
    parts, ends = [], []
    with frozen(model), fast_float32(model.W_E.device):
        for start in range(0, len(clean), batch_size):
            found, both = _batch(model, pairs.select(slice(start, start + batch_size)), site, metric, points)
            parts.append(_cells(found, site, group_of(model, groups)))
            ends.append(both)
            if progress is not None:
                progress(min(start + batch_size, len(clean)), len(clean))
    effects = np.concatenate(parts, 0)
    if not np.isfinite(effects).all():
        raise FloatingPointError("a gradient is not finite; look at the weights and the metric")
    attrs: dict[str, object] = {"approximation": method, "site": site, "direction": direction, "scored": str(scored)}
    if method == "integrated":
        attrs["steps"] = steps
    return effect_array(effects, np.concatenate(ends, 1), site, metric, attrs, normalize=normalize, average=average)


def _batch(
    model: HookedTransformer, pairs: Pairs, site: str, metric: Metric, points: list[float]
) -> tuple[dict[int, Tensor], Float[np.ndarray, "run pair"]]:
    """By layer the gradient times the difference, element by element; and the metric of both runs."""
    names = {layer: f"blocks.{layer}.{HOOKS[site]}" for layer in range(model.cfg.n_layers)}
    ends, runs, embeddings = [], [], []
    reference: list[Tensor] = []
    with torch.no_grad(), recording(model, [*names.values(), "hook_embed"]) as recorded:
        for tokens in (pairs.base, pairs.source):
            logits = _logits(model, tokens, pairs)
            reference.append(logits)
            ends.append(_value(metric, logits, pairs, reference[0]).double().cpu().numpy())
            runs.append({layer: recorded[name] for layer, name in names.items()})
            embeddings.append(recorded["hook_embed"])
    total = {layer: torch.zeros_like(value) for layer, value in runs[0].items()}
    for point in points:
        with torch.enable_grad(), with_hooks(model, {"hook_embed": _between(embeddings, point)}):
            with recording(model, names.values()) as recorded:
                value = _value(metric, _logits(model, pairs.base, pairs), pairs, reference[0])
                if value.grad_fn is None or metric_name(metric) == "em":
                    raise InputError(
                        f"the metric {metric_name(metric)} has no gradient; need a smooth function of the logits, "
                        "nll for example: patch instead"
                    )
            gradients = torch.autograd.grad(value.sum(), [recorded[name] for name in names.values()])
        for layer, gradient in zip(names, gradients, strict=True):
            total[layer] += gradient / len(points)
    with torch.no_grad():
        return {layer: value * (runs[1][layer] - runs[0][layer]) for layer, value in total.items()}, np.stack(ends)


def _between(embeddings: list[Tensor], point: float) -> Hook:
    """A hook that sets the embeddings to a point between two runs', from where gradients begin."""

    def replace(value: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens passes both
        mixed = embeddings[0].lerp(embeddings[1], point)
        return mixed.detach().requires_grad_()

    return replace


def _logits(model: HookedTransformer, tokens: Tensor, pairs: Pairs) -> Float[Tensor, "pair column d_vocab"]:
    residual = residual_before(model, tokens.to(model.cfg.device), model.cfg.n_layers)
    columns = pairs.columns.to(residual.device)
    rows = torch.arange(len(columns), device=residual.device)[:, None]
    return unembed_columns(model, residual[rows, columns])


def _value(metric: Metric, logits: Tensor, pairs: Pairs, reference: Tensor) -> Float[Tensor, " pair"]:
    clean, corrupt = (pairs.true(side).to(logits.device) for side in (pairs.clean, pairs.corrupt))
    return metric(Scored(logits, clean, corrupt, lambda: reference))


def _cells(found: dict[int, Tensor], site: str, groups: Tensor) -> Float[np.ndarray, "pair layer part pos"]:
    """Sum what belongs to one cell."""
    rows = []
    for product in found.values():
        if site == "pattern":
            cell = reduce(product, "pair head query_pos key_pos -> pair head query_pos", "sum")
        elif site in HEAD_SITES:
            cell = reduce(product, "pair pos head d_head -> pair head pos", "sum")
        elif site in NEURON_SITES:
            cell = product.new_zeros(*product.shape[:-1], int(groups.max()) + 1)
            cell = cell.index_add_(-1, groups.to(product.device), product).movedim(-1, 1)
        else:
            cell = reduce(product, "pair pos d_model -> pair 1 pos", "sum")
        rows.append(cell.double().cpu().numpy())
    return np.stack(rows, 1)


def top_cells(effect: xr.DataArray, fraction: float) -> xr.DataArray:
    """Where the largest absolute values stand: which cells to patch exactly.

    Args:
        effect: what `attribute` gave, averaged.
        fraction: share of all cells, 0 < fraction <= 1; at least one.

    Raises:
        InputError: the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction is {fraction}; need 0 < fraction <= 1, for example 0.05")
    size = np.abs(effect.values).ravel()
    order = np.argsort(-size, kind="stable")[: max(1, round(fraction * size.size))]
    chosen = np.zeros(size.size, dtype=bool)
    chosen[order] = True
    return effect.copy(data=chosen.reshape(effect.shape)).assign_attrs(chosen=len(order))


def rank_correlation(approximate: xr.DataArray, exact: xr.DataArray) -> float:
    """Spearman's correlation of an attribution with exact patching, over the cells that were patched.

    Cells that cannot matter, behind the last scored column, are 0 in both and left out.

    Raises:
        InputError: results of different cells, or fewer than three.
    """
    if approximate.dims != exact.dims or approximate.shape != exact.shape:
        raise InputError(
            f"results with {dict(approximate.sizes)} and {dict(exact.sizes)} came; need those of one site and pairs"
        )
    both = np.isfinite(exact.values) & ((exact.values != 0) | (approximate.values != 0))
    if both.sum() < 3:
        raise InputError(f"{both.sum()} cells can be compared; need at least 3: patch more of them")
    found: Any = spearmanr(approximate.values[both], exact.values[both])
    return float(found.statistic)
