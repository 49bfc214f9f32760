"""Activation patching: replace one activation by another run's, and measure the change of the output. Exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import Unpack

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, part_of
from mechmem.localize.metrics import Metric, MetricName, metric_of
from mechmem.localize.patch_effects import (
    Grid,
    PatchOptions,
    Positions,
    check_mean_metric,
    check_one_meaning,
    check_options,
    effect_array,
    grid_of,
    mean_effects,
)
from mechmem.localize.patch_pairs import Direction, OneDirection, Pairs, check_pairs, check_perturbed
from mechmem.localize.patch_scores import PatchScores
from mechmem.localize.patched_streams import ALWAYS, NEEDED, Cells, entry, entry_everywhere
from mechmem.model.activation_sites import Site, site_of
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.lean.trace import resume, trace
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

# Positions of all rows of one forward, on a CPU and elsewhere: beyond, intermediates leave the cache.
AT_ONCE = {"cpu": 1600}
OTHERWISE = 2**16
# Pairs whose activations are held at once.
PAIRS = 8


@public("refuse")
def patch(
    model: HookedTransformer,
    clean: Paragraphs,
    corrupt: Paragraphs,
    *,
    site: Site | str = "z",
    pos: Positions = "each",
    direction: Direction = "noising",
    metric: Metric | MetricName = "nll",
    normalize: bool = False,
    progress: ProgressLike = None,
    **options: Unpack[PatchOptions],
) -> xr.DataArray:
    """The exact effect of every cell: one activation replaced by the other run's.

    noising runs the clean paragraphs with activations of the corrupt ones, denoising the corrupt paragraphs with
    activations of the clean ones (Stoehr et al. 2024, arXiv 2403.19851, section 3.2, patch in both directions). The
    first says what the memory needs, the second what restores it. mean is half of noising minus denoising: both are
    then the metric with the corrupt activation minus the metric with the clean one, once in each run.

    1. Run both paragraphs of each pair once and keep what the site needs.
    2. A cell changes nothing before its position, and at its own layer little else than its position: many cells go
       on together from there, with the base run's keys and values before them, and only to the last scored column.
    3. Logits are computed at the scored columns alone.

    Args:
        model: left as it is; it must have no hooks, which this would not run.
        clean: paragraphs, usually memorized.
        corrupt: row by row of the same length; perturbed ones as `worst_perturbations` gives, or other paragraphs.
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out (one cell per position); q, k, v, z, pattern (one per
            head and position; of a pattern the row of the query at that position); mlp_post (one per group of neurons
            and position). TransformerLens' names (hook_z, attn.hook_z) are known too.
        pos: "each": every position is a cell of its own; "perturbed": of each pair the one prefix token that differs,
            the study's choice; "all": all positions of a head (group, stream) together.
        direction: which run is patched; "mean": each of the two, the mean of their effects with the sign of noising.
        metric: of the scored columns' logits: the name of one of `metrics`, or a function like these; targets are the
            clean tokens in both directions.
        normalize: divide by the effect of replacing everything, metric(source run) - metric(base run), both means over
            pairs: 1 reproduces the other run, 0 changes nothing.
        progress: called with (cells done, cells), over all pairs.
        **options: scored, cells, groups, average, see `PatchOptions`.

    Returns:
        DataArray [layer, head | group, pos] (without the middle one for streams, with pos for pos="each" alone) of
        metric(patched run) minus metric(base run), in the metric's unit: for NLL and noising above zero: the cell
        carries what makes the clean text likely, and so for mean; for denoising below zero. `attrs` hold the mean
        metric of both runs, base and source (clean and corrupt for mean), and what higher means.

    Raises:
        InputError: pairs of unequal length or that are equal, a pair without a single perturbed token where `pos` needs
            it, a site that the model does not have, positions that cannot be scored, `cells` of another shape, an
            unknown metric, one that is the same for both runs or not a number, for mean one that depends on which run
            is unpatched, as kl does, or a model with hooks on it.
    """
    check_options("patch", options, PatchOptions)
    scored, metric = options.get("scored", "continuation"), metric_of(metric)
    site = site_of(model, site)
    pairs = check_pairs(model, clean, corrupt, direction, scored)
    check_perturbed(clean, corrupt, pos)
    grid = grid_of(model, site, clean.tokens.shape[1], options.get("groups"), pos)
    need, lean = grid.chosen(options.get("cells")), LeanModel(model)
    if direction == "mean":
        effects, ends = _both(lean, pairs, grid, metric, need, progress)
    else:
        effects, ends = _effects(lean, pairs, grid, metric, need, progress)
    average = options.get("average", True)
    attrs: dict[str, object] = {"scored": str(scored), "pos": pos}
    return effect_array(effects, ends, pairs, grid, metric, attrs, normalize=normalize, average=average)


def _both(
    lean: LeanModel,
    pairs: Pairs,
    grid: Grid,
    metric: Metric,
    need: Bool[np.ndarray, "layer part pos"],
    progress: ProgressLike,
) -> tuple[Float[np.ndarray, "pair layer part pos"], Float[np.ndarray, "run pair"]]:
    """The mean of both directions' effects, and the metric of the clean run and of the corrupt run."""
    check_mean_metric("mean", metric)
    noising, denoising = (pairs.towards(direction) for direction in get_args(OneDirection))
    with torch.no_grad(), fast_float32(lean.device):
        # One pair is enough to see whether the metric depends on which run is unpatched.
        one, other = (
            _Runs(lean, side.select(slice(0, 1)), grid, metric).ends().double().cpu().numpy()
            for side in (noising, denoising)
        )
    check_one_meaning(metric, one, other[::-1])
    halves = [
        _effects(lean, side, grid, metric, need, None if progress is None else part_of(progress, number, 2))
        for number, side in enumerate((noising, denoising))
    ]
    return mean_effects(halves[0][0], halves[1][0]), halves[0][1]


def _effects(
    lean: LeanModel,
    pairs: Pairs,
    grid: Grid,
    metric: Metric,
    need: Bool[np.ndarray, "layer part pos"],
    progress: ProgressLike,
) -> tuple[Float[np.ndarray, "pair layer part pos"], Float[np.ndarray, "run pair"]]:
    """The effect of every cell on every pair, and the metric of the base run and of the source run."""
    report, device = as_callback(progress, "patch"), lean.device
    effects = np.full((len(pairs.clean), *need.shape), np.nan)
    ends: list[Float[Tensor, "run pair"]] = []
    # Before its first different token a pair's two runs are one: nothing there can change anything.
    first_different = (pairs.clean != pairs.corrupt).long().argmax(-1)
    last = pairs.columns.amax(-1)
    done, total = 0, len(pairs.clean) * int(need.sum())
    if grid.each:
        total = sum(int(need[:, :, a : b + 1].sum()) for a, b in zip(first_different, last, strict=True))
    with torch.no_grad(), fast_float32(device):
        for first in range(0, len(pairs.clean), PAIRS):
            chosen = slice(first, first + PAIRS)
            runs = _Runs(lean, pairs.select(chosen), grid, metric)
            ends.append(runs.ends())
            effects[chosen][:, need] = 0.0
            limits = first_different[chosen].numpy(), last[chosen].numpy()
            for batch in _batches(limits, need, device, AT_ONCE.get(device.type, OTHERWISE), each=grid.each):
                pos = batch.pos.cpu().numpy() if grid.each else np.zeros(len(batch.pos), dtype=int)
                row = (first + batch.pair.cpu()).numpy(), batch.layer, batch.part.cpu().numpy(), pos
                effects[row] = (runs.measure(batch) - ends[-1][0, batch.pair]).double().cpu().numpy()
                done += len(batch.pair)
                if report is not None:
                    report(done, total)
    return effects, torch.cat(ends, 1).double().cpu().numpy()


class _Runs:
    """The base and the source run of some pairs, and what patched runs give."""

    def __init__(self, lean: LeanModel, pairs: Pairs, grid: Grid, metric: Metric) -> None:
        self._lean, self._grid = lean, grid
        self._groups = grid.groups.to(lean.device)
        self._base = trace(lean, pairs.base, {*ALWAYS, *NEEDED[grid.site], grid.site})
        self._source = trace(lean, pairs.source, {grid.site})
        self._scores, self._first = PatchScores(lean, pairs, metric, self._base.final), int(pairs.columns.min())
        self._pairs = len(pairs.base)

    def ends(self) -> Float[Tensor, "run pair"]:
        """The metric of the base run and of the source run."""
        every = torch.arange(self._pairs, device=self._lean.device)
        return torch.stack([self._scores.score(run.final, every) for run in (self._base, self._source)])

    def measure(self, cells: Cells) -> Float[Tensor, " row"]:
        """The metric of the patched runs."""
        replaced = entry_everywhere if self._grid.pos == "all" else entry
        residual, layer = replaced(self._lean, self._grid.site, self._base, self._source, cells, self._groups)
        start = max(cells.start, self._first)
        final = resume(self._lean, residual, layer, cells.start, self._base, cells.pair, start)
        return self._scores.score(final, cells.pair, start)


def _batches(
    limits: tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]],
    need: Bool[np.ndarray, "layer part pos"],
    device: torch.device,
    at_once: int,
    *,
    each: bool,
) -> Iterator[Cells]:
    """Cells of one layer and neighbouring positions, as many as make a forward of about `at_once` positions.

    Args:
        limits: each pair's first position where its runs differ, and last where a scored column sees it.
        need: which cells.
        device: where the indices go.
        at_once: positions of all rows.
        each: whether every position is a cell; otherwise a pair has one, which begins at its first different position.
    """
    begin, end = limits
    stop = int(end.max()) + 1
    for layer in range(need.shape[0]):
        part, pos = np.nonzero(need[layer])
        pair = np.repeat(np.arange(len(begin)), len(part))
        part, pos = np.tile(part, len(begin)), np.tile(pos, len(begin))
        # Before the first different position the runs are one; the only token perturbed is that position itself.
        pos = pos if each else begin[pair]
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
