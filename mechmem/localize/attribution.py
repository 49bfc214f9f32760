"""Attribution patching: the effect of a patch to first order, for all cells from one backward pass."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from einops import reduce
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor
from typing_extensions import Unpack

from mechmem.data.bounds import Count, Share, checked
from mechmem.data.choices import check_choice, check_used
from mechmem.data.errors import InputError, NotFiniteError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.data.ranking import largest, share_of
from mechmem.localize.metrics import Metric, MetricName, Scored, kl, metric_name, metric_of
from mechmem.localize.patch_effects import EffectOptions, Positions, check_options, effect_array, grid_of
from mechmem.localize.patch_pairs import Direction, Pairs, check_pairs, check_perturbed
from mechmem.model.activation_sites import Site, site_of
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.forward import residual_before, unembed_columns
from mechmem.model.hooks import Hook, frozen, recording, with_hooks
from mechmem.model.lean.model import fast_float32
from mechmem.model.lean.trace import HEAD_SITES, HOOKS, NEURON_SITES
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

Method = Literal["gradient", "integrated"]
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
    method: Method = "gradient",
    normalize: bool = False,
    progress: ProgressLike = None,
    **options: Unpack[AttributeOptions],
) -> xr.DataArray:
    """Estimate `patch` for every cell: gradient of the metric times the difference of the activations.

    "gradient" takes the gradient on the base run (Nanda 2023, attribution patching; Syed et al. 2023, arXiv
    2310.10348). "integrated" takes the mean gradient over runs whose token embeddings lie between the base's and the
    source's (Hanna et al. 2024, arXiv 2403.17806): it also works where the metric is flat at the base run, as the NLL
    of a memorized text is. Neither sees what saturates between the two activations: `patch` the highest cells.

    Args:
        model: left as it is; it must have no hooks, as for `patch`.
        clean: as `patch`.
        corrupt: as `patch`.
        site: as `patch`.
        direction: as `patch`.
        metric: as `patch`; it needs a gradient, which `em` has not, nor `kl` at the base run.
        method: which gradient.
        normalize: as `patch`.
        progress: called with (pairs done, pairs).
        **options: pos, scored, groups, average, steps, batch_size, see `AttributeOptions`.

    Returns:
        DataArray of the shape, unit and sign of `patch`.

    Raises:
        InputError: as `patch`; a metric without a gradient; fewer than one step or an unknown method.
        NotFiniteError: a gradient is not finite.
    """
    check_options("attribute", options, AttributeOptions)
    scored, metric = options.get("scored", "continuation"), metric_of(metric)
    site = site_of(model, site)
    pairs = check_pairs(model, clean, corrupt, direction, scored)
    pos = options.get("pos", "each")
    check_perturbed(clean, corrupt, pos)
    grid = grid_of(model, site, clean.tokens.shape[1], options.get("groups"), pos)
    points, attrs = _points(method, options.get("steps"))
    if metric is kl and method == "gradient":
        raise InputError(
            "the gradient of kl is zero at the unpatched run, whatever is patched; use method='integrated', or another "
            "metric: nll for example"
        )
    size = chosen_batch_size(options.get("batch_size"), model.W_E.device, 4)
    parts, ends = [], []
    with frozen(model), fast_float32(model.W_E.device):
        for rows in batches(len(clean), size, progress):
            found, both = _batch(model, pairs.select(rows), site, metric, points)
            parts.append(_at(_cells(found, site, grid.groups), pairs.select(rows), pos))
            ends.append(both)
    effects = np.concatenate(parts, 0)
    if not np.isfinite(effects).all():
        raise NotFiniteError("a gradient is not finite; look at the weights and the metric")
    both, average = np.concatenate(ends, 1), options.get("average", True)
    attrs |= {"scored": str(scored), "pos": pos}
    return effect_array(effects, both, pairs, grid, metric, attrs, normalize=normalize, average=average)


def _points(method: str, steps: int | None) -> tuple[list[float], dict[str, object]]:
    """Where between base (0) and source (1) gradients are taken, and what the result says of it."""
    check_choice("method", method, Method)
    if method == "gradient":
        check_used(method, (), {"steps": steps})
        return [0.0], {"approximation": method}
    count = STEPS if steps is None else steps
    return [(step + 0.5) / count for step in range(count)], {"approximation": method, "steps": count}


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


def _at(
    cells: Float[np.ndarray, "pair layer part pos"], pairs: Pairs, pos: Positions
) -> Float[np.ndarray, "pair layer part place"]:
    """The cells that `pos` asks for: all, the one at each pair's perturbed token, or the sum over positions."""
    if pos == "each":
        return cells
    if pos == "all":
        return cells.sum(-1, keepdims=True)
    perturbed = (pairs.clean != pairs.corrupt).long().argmax(-1).cpu().numpy()
    return np.take_along_axis(cells, perturbed[:, None, None, None], -1)


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
