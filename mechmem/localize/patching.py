"""Activation patching: replace one activation by another run's, and see what the model says then. Exact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.localize.metrics import UNITS, Metric, Scored, metric_name, nll
from mechmem.localize.patch_pairs import Direction, Pairs, ScoredAt, check_pairs
from mechmem.localize.patched_streams import ALWAYS, NEEDED, Cells, entry
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.lean.trace import HEAD_SITES, NEURON_SITES, resume, trace
from mechmem.model.load import HookedTransformer

# Positions of all rows of one forward, on a CPU and elsewhere: beyond, intermediates leave the cache.
AT_ONCE = {"cpu": 1600}
OTHERWISE = 2**16
# Pairs whose activations are held at once.
PAIRS = 8


def patch(
    model: HookedTransformer,
    clean: Paragraphs,
    corrupt: Paragraphs,
    *,
    site: str = "z",
    direction: Direction = "noising",
    metric: Metric = nll,
    scored: ScoredAt = "continuation",
    cells: xr.DataArray | None = None,
    groups: int = 16,
    normalize: bool = False,
    average: bool = True,
    progress: Progress | None = None,
) -> xr.DataArray:
    """The exact effect of every cell: one activation at one position replaced by the other run's.

    noising runs the clean paragraphs with activations of the corrupt ones, denoising the corrupt paragraphs with
    activations of the clean ones (Stoehr et al. 2024, arXiv 2403.19851, section 3.2, patch in both directions).

    1. Run both paragraphs of each pair once and keep what the site needs.
    2. A cell changes nothing before its position, and at its own layer little else than its position: many cells go
       on together from there, with the base run's keys and values before them, and only to the last scored column.
    3. Logits are computed at the scored columns alone.

    Args:
        model: left as it is.
        clean: paragraphs, usually memorized.
        corrupt: row by row of the same length; perturbed ones as `worst_perturbations` gives, or other paragraphs.
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out (one cell a position); q, k, v, z, pattern (one a head
            and position; of a pattern the row of the query at that position); mlp_post (one a group of neurons).
        direction: which run is patched.
        metric: of the scored columns' logits, see `metrics`; targets are the clean tokens in both directions.
        scored: "continuation": every token of it; "impact": the first in which a pair differs (the paper's); or token
            positions.
        cells: compute only where this is true, [layer, (head | group), pos] as in the result; others are NaN.
        groups: of site mlp_post: neurons are cut into so many runs of neighbours.
        normalize: divide by what replacing everything would do, metric(source run) - metric(base run), both means over
            pairs: 1 reproduces the other run, 0 changes nothing.
        average: mean over pairs; False keeps the dimension `paragraph`.
        progress: called with (cells done, cells), over all pairs.

    Returns:
        DataArray [layer, head | group, pos] (without the middle one for streams) of metric(patched run) minus
        metric(base run), in the metric's unit: for NLL and noising above zero: the cell carries what makes the clean
        text likely; for denoising below zero. `attrs` hold the mean metric of both runs.

    Raises:
        InputError: pairs of unequal length or that differ nowhere, a site that the model does not have, positions that
            cannot be scored, `cells` of another shape, a metric that is the same for both runs or not a number.
    """
    pairs = check_pairs(model, clean, corrupt, site, direction, scored)
    shape = grid_shape(model, clean.tokens.shape[1], site, groups)
    need = _wanted(cells, shape, site)
    device = model.W_E.device
    neurons = group_of(model, groups).to(device)
    effects = np.full((len(clean), *need.shape), np.nan)
    ends: list[Float[Tensor, "run pair"]] = []
    lean = LeanModel(model)
    # Before its first different token a pair's two runs are one: nothing there can change anything.
    first_different = (pairs.clean != pairs.corrupt).long().argmax(-1)
    last = pairs.columns.amax(-1)
    done, total = 0, sum(int(need[:, :, a : b + 1].sum()) for a, b in zip(first_different, last, strict=True))
    with torch.no_grad(), fast_float32(device):
        for first in range(0, len(clean), PAIRS):
            chosen = slice(first, first + PAIRS)
            runs = _Runs(lean, pairs.select(chosen), site, metric, neurons)
            ends.append(runs.ends())
            effects[chosen][:, need] = 0.0
            limits = first_different[chosen].numpy(), last[chosen].numpy()
            for batch in _batches(limits, need, device, AT_ONCE.get(device.type, OTHERWISE)):
                row = (first + batch.pair.cpu()).numpy(), batch.layer, batch.part.cpu().numpy(), batch.pos.cpu().numpy()
                effects[row] = (runs.measure(batch) - ends[-1][0, batch.pair]).double().cpu().numpy()
                done += len(batch.pair)
                if progress is not None:
                    progress(done, total)
    attrs: dict[str, object] = {"site": site, "direction": direction, "scored": str(scored)}
    both = torch.cat(ends, 1).double().cpu().numpy()
    return effect_array(effects, both, site, metric, attrs, normalize=normalize, average=average)


class _Runs:
    """The base and the source run of some pairs, and what patched runs give."""

    def __init__(self, lean: LeanModel, pairs: Pairs, site: str, metric: Metric, groups: Int[Tensor, " d_mlp"]) -> None:
        self._lean, self._site, self._metric, self._groups = lean, site, metric, groups
        self._base = trace(lean, pairs.base, {*ALWAYS, *NEEDED[site], site})
        self._source = trace(lean, pairs.source, {site})
        self._columns, self._first = pairs.columns.to(lean.device), int(pairs.columns.min())
        self._clean, self._corrupt = (pairs.true(side).to(lean.device) for side in (pairs.clean, pairs.corrupt))
        self._pairs = len(pairs.base)

    def ends(self) -> Float[Tensor, "run pair"]:
        """The metric of the base run and of the source run."""
        every = torch.arange(self._pairs, device=self._lean.device)
        return torch.stack([self._score(run.final, every, 0, every) for run in (self._base, self._source)])

    def measure(self, cells: Cells) -> Float[Tensor, " row"]:
        """The metric of the patched runs."""
        residual, layer = entry(self._lean, self._site, self._base, self._source, cells, self._groups)
        start = max(cells.start, self._first)
        final = resume(self._lean, residual, layer, cells.start, self._base, cells.pair, start)
        return self._score(final, torch.arange(len(final), device=final.device), start, cells.pair)

    def _score(self, final: Tensor, row: Tensor, start: int, pair: Tensor) -> Float[Tensor, " row"]:
        columns = self._columns[pair]
        # Columns before the patched positions are the base run's.
        patched = final[row[:, None], (columns - start).clamp(min=0)]
        before = (columns < start)[..., None]
        hidden = torch.where(before, self._base.final[pair[:, None], columns], patched) if start else patched
        scored = Scored(
            self._lean.unembed(hidden),
            self._clean[pair],
            self._corrupt[pair],
            lambda: self._lean.unembed(self._base.final[pair[:, None], columns]),
        )
        values = self._metric(scored)
        if values.shape != (len(row),):
            raise InputError(
                f"the metric gave shape {list(values.shape)} for {len(row)} rows; need one number a row: take the "
                "mean over columns in it"
            )
        return values


def _batches(
    limits: tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]],
    need: Bool[np.ndarray, "layer part pos"],
    device: torch.device,
    at_once: int,
) -> Iterator[Cells]:
    """Cells of one layer and neighbouring positions, as many as make a forward of about `at_once` positions.

    Args:
        limits: each pair's first position where its runs differ, and last where a scored column sees it.
        need: which cells.
        device: where the indices go.
        at_once: positions of all rows.
    """
    begin, end = limits
    stop = int(end.max()) + 1
    for layer in range(need.shape[0]):
        part, pos = np.nonzero(need[layer])
        pair = np.repeat(np.arange(len(begin)), len(part))
        part, pos = np.tile(part, len(begin)), np.tile(pos, len(begin))
        inside = (pos >= begin[pair]) & (pos <= end[pair])
        # Neighbouring positions go together: a forward begins at the first of them.
        order = np.argsort(pos[inside], kind="stable")
        pair, part, pos = (x[inside][order] for x in (pair, part, pos))
        first = 0
        while first < len(pos):
            start = int(pos[first])
            rows = slice(first, first + max(1, at_once // (stop - start)))
            chosen = (torch.from_numpy(x[rows]).to(device) for x in (pair, part, pos))
            yield Cells(layer, start, stop, *chosen)
            first = rows.stop


def grid_shape(model: HookedTransformer, length: int, site: str, groups: int) -> tuple[int, int, int]:
    """Layers, heads or groups (1 where a site has neither) and positions."""
    if site in NEURON_SITES and not 1 <= groups <= (model.cfg.d_mlp or 0):
        raise InputError(f"groups is {groups}; need 1 to {model.cfg.d_mlp}, the neurons of a layer")
    parts = {**dict.fromkeys(HEAD_SITES, model.cfg.n_heads), **dict.fromkeys(NEURON_SITES, groups)}
    return model.cfg.n_layers, parts.get(site, 1), length


def part_name(site: str) -> str | None:
    """The dimension between layer and position."""
    return "head" if site in HEAD_SITES else "group" if site in NEURON_SITES else None


def group_of(model: HookedTransformer, groups: int) -> Int[Tensor, " d_mlp"]:
    """The group of each neuron: runs of neighbours."""
    neurons = torch.arange(model.cfg.d_mlp or 1)
    return neurons * groups // len(neurons)


def _wanted(cells: xr.DataArray | None, shape: tuple[int, int, int], site: str) -> Bool[np.ndarray, "layer part pos"]:
    if cells is None:
        return np.ones(shape, dtype=bool)
    part = part_name(site)
    dims = ("layer", "pos") if part is None else ("layer", part, "pos")
    sizes = [shape[0], shape[2]] if part is None else list(shape)
    if set(cells.dims) != set(dims) or cells.dtype != bool or [cells.sizes[d] for d in dims] != sizes:
        raise InputError(
            f"cells with {dict(cells.sizes)} of type {cells.dtype} came; need bool with "
            f"{dict(zip(dims, sizes, strict=True))}: compare an attribution of the same site with a number"
        )
    return cells.transpose(*dims).values.reshape(shape)


def _check_metric(metric: Metric, base: Float[np.ndarray, " pair"], source: Float[np.ndarray, " pair"]) -> None:
    if not (np.isfinite(base).all() and np.isfinite(source).all()):
        raise InputError(f"the metric {metric_name(metric)} is not a number on an unpatched run; look at the weights")
    if np.array_equal(base, source):
        raise InputError(
            f"the metric {metric_name(metric)} is {base[0]:g} for both runs of every pair, so it does not depend on "
            "what is patched; need one that tells them apart at the scored positions"
        )


def effect_array(
    effects: Float[np.ndarray, "pair layer part pos"],
    ends: Float[np.ndarray, "run pair"],
    site: str,
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
        site: of the cells.
        metric: of both runs.
        attrs: what else is said of the result.
        normalize: as `patch`.
        average: as `patch`.

    Raises:
        InputError: the metric is the same for both runs, or not a number.
    """
    base, source = ends
    _check_metric(metric, base, source)
    part = part_name(site)
    dims = ["paragraph", "layer", "pos"] if part is None else ["paragraph", "layer", part, "pos"]
    values = effects[:, :, 0] if part is None else effects
    coords = {name: np.arange(size) for name, size in zip(dims, values.shape, strict=True)}
    name = metric_name(metric)
    attrs |= {
        "metric": name,
        "units": UNITS.get(name, "unit of the metric"),
        "higher": "the patched run's metric is higher than the unpatched run's",
        "base": float(base.mean()),
        "source": float(source.mean()),
        "pairs": len(base),
    }
    result = xr.DataArray(values, coords, dims, "effect", attrs)
    if average:
        # A cell is computed for all pairs or for none.
        result = result.mean("paragraph", skipna=False, keep_attrs=True)
    if not normalize:
        return result
    stated = {"units": "1", "normalized": "1: as the source run; 0: as the base run"}
    return (result / (source.mean() - base.mean())).assign_attrs(attrs | stated)
