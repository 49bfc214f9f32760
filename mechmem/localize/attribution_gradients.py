"""Gradients of a metric on runs between two texts, times the difference of their activations, by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.localize.metrics import METRICS, Metric, Scored, metric_name
from mechmem.localize.patch_effects import Grid, Positions, check_one_meaning
from mechmem.localize.patch_pairs import Pairs
from mechmem.model.forward import residual_before, unembed_columns
from mechmem.model.hooks import Hook, recording, with_hooks
from mechmem.model.lean.trace import HEAD_SITES, HOOKS, NEURON_SITES
from mechmem.model.load import HookedTransformer

FLAT = (
    "the gradient of {} is zero at the unpatched run, whatever is patched; use method='both_ends' or 'integrated', or "
    "another metric: nll for example"
)
# A slope at the base run below this share of the slope at the source run is rounding of double precision.
ROUNDING = 1e-9


def attributed_cells(
    model: HookedTransformer, pairs: Pairs, grid: Grid, metric: Metric, points: list[float]
) -> tuple[Float[np.ndarray, "pair layer part pos"], Float[np.ndarray, "run pair"]]:
    """The mean gradient times the difference, summed in each cell; and the metric of the base and of the source run.

    1. Run both texts and keep what the site gives. 2. At each point, run the base text with token embeddings between
    both runs', and differentiate the metric. 3. Multiply the mean gradient by source minus base, and sum by cell.

    Args:
        model: frozen, without hooks.
        pairs: some pairs.
        grid: the cells.
        metric: a smooth function of the logits.
        points: where the gradients are taken: 0 is the base run, 1 the source run.

    Raises:
        InputError: a metric without a gradient, or with none at the base run where no other point is asked for; for the
            mean of both directions, one that depends on which run is unpatched.
    """
    runs = both_runs(model, pairs, grid.site)
    ends = np.stack([_value(metric, end, pairs, runs.logits[0]).double().cpu().numpy() for end in runs.logits])
    if pairs.direction == "mean":
        again = [_value(metric, end, pairs, runs.logits[1]).double().cpu().numpy() for end in runs.logits]
        check_one_meaning(metric, ends, np.stack(again))
    if points == [0.0] and metric not in METRICS.values():
        _refuse_flat(metric, pairs, *runs.logits)
    gradients = mean_gradients(model, pairs, runs, metric, points)
    with torch.no_grad():
        base, source = runs.activations
        products = [gradient * (source[name] - base[name]) for name, gradient in gradients.items()]
        return cells_of(products, grid), ends


@dataclass(frozen=True)
class BothRuns:
    """The base run and the source run of some pairs.

    Attributes:
        activations: of both, hook point name -> what the site gives, from the first layer on.
        logits: of both, [pair, column, d_vocab].
        embeddings: of both, [pair, pos, d_model].
    """

    activations: list[dict[str, Tensor]]
    logits: list[Tensor]
    embeddings: list[Tensor]


@torch.no_grad()
def both_runs(model: HookedTransformer, pairs: Pairs, site: str) -> BothRuns:
    """Run both texts, and keep what the site gives."""
    names = [f"blocks.{layer}.{HOOKS[site]}" for layer in range(model.cfg.n_layers)]
    found = BothRuns([], [], [])
    with recording(model, [*names, "hook_embed"]) as recorded:
        for tokens in (pairs.base, pairs.source):
            found.logits.append(_logits(model, tokens, pairs))
            found.activations.append({name: recorded[name] for name in names})
            found.embeddings.append(recorded["hook_embed"])
    return found


def mean_gradients(
    model: HookedTransformer, pairs: Pairs, runs: BothRuns, metric: Metric, points: list[float]
) -> dict[str, Tensor]:
    """By hook point, the metric's mean gradient over runs between the base (0) and the source (1).

    Raises:
        InputError: a metric without a gradient.
    """
    names = list(runs.activations[0])
    total = {name: torch.zeros_like(value) for name, value in runs.activations[0].items()}
    for point in points:
        with torch.enable_grad(), with_hooks(model, {"hook_embed": _between(runs.embeddings, point)}):
            with recording(model, names) as recorded:
                value = _smooth_value(metric, _logits(model, pairs.base, pairs), pairs, runs.logits[0])
            gradients = torch.autograd.grad(value.sum(), [recorded[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            total[name] += gradient / len(points)
    return total


def _refuse_flat(metric: Metric, pairs: Pairs, base: Tensor, source: Tensor) -> None:
    """Refuse a metric without a slope at the base run, such as any distance from it: all estimates would be rounding.

    In double precision a slope that is there is not taken for rounding, nor the reverse.

    Raises:
        InputError: the metric's gradient with respect to the logits is zero for every pair.
    """
    slopes, reference = [], base.detach().double()
    for logits in (base, source):
        with torch.enable_grad():
            leaf = logits.detach().double().requires_grad_()
            value = _smooth_value(metric, leaf, pairs, reference)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        slopes.append(slope.flatten(1).abs().amax(-1))
    if bool((slopes[0] <= ROUNDING * slopes[1]).all()) and bool((slopes[1] > 0).any()):
        raise InputError(FLAT.format(metric_name(metric)))


def _smooth_value(metric: Metric, logits: Tensor, pairs: Pairs, reference: Tensor) -> Float[Tensor, " pair"]:
    """The metric, which must have a gradient.

    Raises:
        InputError: it has none.
    """
    value = _value(metric, logits, pairs, reference)
    if value.grad_fn is None or metric_name(metric) == "em":
        raise InputError(
            f"the metric {metric_name(metric)} has no gradient; need a smooth function of the logits, nll for example: "
            "patch instead"
        )
    return value


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


def cells_of(products: Sequence[Tensor], grid: Grid) -> Float[np.ndarray, "pair layer part pos"]:
    """Sum what belongs to one cell, layer by layer."""
    return np.stack([_layer_cells(product, grid) for product in products], 1)


def _layer_cells(product: Tensor, grid: Grid) -> Float[np.ndarray, "pair part pos"]:
    """Sum what belongs to one cell of a layer."""
    if grid.site == "pattern":
        cell = reduce(product, "pair head query_pos key_pos -> pair head query_pos", "sum")
    elif grid.site in HEAD_SITES:
        cell = reduce(product, "pair pos head d_head -> pair head pos", "sum")
    elif grid.site in NEURON_SITES:
        cell = product.new_zeros(*product.shape[:-1], grid.parts)
        cell = cell.index_add_(-1, grid.groups.to(product.device), product).movedim(-1, 1)
    else:
        cell = reduce(product, "pair pos d_model -> pair 1 pos", "sum")
    return cell.double().cpu().numpy()


def cells_at(
    cells: Float[np.ndarray, "pair layer part pos"], pairs: Pairs, pos: Positions
) -> Float[np.ndarray, "pair layer part place"]:
    """The cells that `pos` asks for: all, the one at each pair's perturbed token, or the sum over positions."""
    if pos == "each":
        return cells
    if pos == "all":
        return cells.sum(-1, keepdims=True)
    perturbed = (pairs.clean != pairs.corrupt).long().argmax(-1).cpu().numpy()
    return np.take_along_axis(cells, perturbed[:, None, None, None], -1)
