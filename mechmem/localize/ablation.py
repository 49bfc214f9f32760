"""What heads, layers and sets of heads contribute: ablate them and score the paragraphs again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mechmem.data.bounds import Count, Seed
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, part_of
from mechmem.localize.ablated_runs import AblatedRuns
from mechmem.localize.ablation_runs import AblationMethod, AblationRuns, check_ablation
from mechmem.model.head_names import heads_of
from mechmem.model.hooks import hooked_points
from mechmem.model.lean.weights import unsupported
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

HeadPart = Literal["z", "pattern", "v"]
MEASURES = {
    "em_change": ("tokens", "EM is higher without it"),
    "nll_change": ("nats per token", "the text is less likely without it: it is needed"),
}


@public("run", renamed={"paras": "paragraphs", "part": "site"})
def ablate_heads(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    heads: Sequence[tuple[int, int] | str] | None = None,
    method: AblationMethod = "mean",
    site: HeadPart = "z",
    average: bool = True,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Ablate heads one at a time, at all positions, and measure how exact match and NLL change.

    The replacement is taken from the intact run; everything after it is computed anew. Scores are teacher-forced, as in
    `score`. Replacing the pattern alone tests whether it matters *where* a head attends, replacing the values alone
    whether it matters *what* it reads there. A model without hooks is run by the lean forward, restarted at the ablated
    layer; a model with hooks on it is run with them.

    Args:
        model: left as it is; hooks on it run as usual.
        paragraphs: their mean output is what "mean" replaces by: near-duplicates among them make it less neutral.
        heads: only these, (layer, head) pairs or names like "L1H2"; None: every head.
        method: "mean": the mean over the paragraphs at the same position; "zero": zeros; "resample": the activation of
            another paragraph, the same one for every head, none its own.
        site: what is replaced: "z", the head's whole output before W_O; "pattern", its attention, the values kept; "v",
            its values, the attention kept.
        average: mean over paragraphs; False keeps the dimension `paragraph`.
        seed: decides which paragraph stands in ("resample" alone).
        batch_size: (head, paragraph) pairs of one forward; None: chosen for the machine.
        progress: called with (pairs done, pairs).

    Returns:
        Dataset [layer, head], or [paragraph, layer, head], after minus before: em_change (tokens; below zero: the head
        is needed) and nll_change (nats per token; above zero: the head is needed). Heads that were not asked for are
        NaN.

    Raises:
        InputError: an unknown method, site or head, fewer than two paragraphs for "mean" or "resample", or paragraphs
            or a model that cannot be used.
    """
    check_choice("site", site, HeadPart)
    check_ablation(model, paragraphs, method)
    cells = ablated_cells(model, heads)
    options = {"method": method, "site": site, "seed": seed, "batch_size": batch_size}
    changes = _single(model, paragraphs, cells, progress, options)
    result = head_changes(model, paragraphs.ids, cells, changes).assign_attrs(
        method=method, site=site, seed=seed, paragraphs=len(paragraphs)
    )
    return result.mean("paragraph", skipna=False, keep_attrs=True) if average else result


def ablated_cells(model: HookedTransformer, heads: Sequence[tuple[int, int] | str] | None) -> list[tuple[int, int]]:
    """The (layer, head) pairs that were asked for, once each; None: all."""
    if heads is None:
        return list(np.ndindex(model.cfg.n_layers, model.cfg.n_heads))
    return list(dict.fromkeys(heads_of(model, heads)))


def head_changes(
    model: HookedTransformer,
    ids: np.ndarray,
    cells: Sequence[tuple[int, int]],
    changes: Float[Tensor, "measure cell paragraph"],
) -> xr.Dataset:
    """The changes of some heads as a Dataset [paragraph, layer, head], NaN for the others."""
    grid = np.full((2, len(ids), model.cfg.n_layers, model.cfg.n_heads), np.nan)
    layer, head = np.array(cells).T
    grid[:, :, layer, head] = changes.numpy().swapaxes(1, 2)
    coords = {"paragraph": ids, "layer": np.arange(grid.shape[2]), "head": np.arange(grid.shape[3])}
    return _dataset(grid, coords, {})


@public("run", renamed={"paras": "paragraphs"})
def ablate_layers(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    method: AblationMethod = "mean",
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Ablate all heads of a layer together, and the MLP of a layer, each alone.

    Args:
        model: as `ablate_heads`.
        paragraphs: as `ablate_heads`.
        method: as `ablate_heads`.
        seed: as `ablate_heads`.
        batch_size: (layer, paragraph) pairs of one forward; None: chosen for the machine.
        progress: called with (pairs done, pairs) of attention, then of the MLPs.

    Returns:
        Dataset [layer, module] of em_change and nll_change, as `ablate_heads`; modules are "attention" and, unless the
        model has none, "mlp".

    Raises:
        InputError: as `ablate_heads`.
    """
    check_ablation(model, paragraphs, method)
    sites = {"attention": "attention"} if model.cfg.attn_only else {"attention": "attention", "mlp": "mlp_out"}
    cells = [(layer, 0) for layer in range(model.cfg.n_layers)]
    columns = []
    for number, site in enumerate(sites.values()):
        part = None if progress is None else part_of(progress, number, len(sites))
        options = {"method": method, "site": site, "seed": seed, "batch_size": batch_size}
        columns.append(_single(model, paragraphs, cells, part, options).mean(-1).numpy())
    coords = {"layer": np.arange(model.cfg.n_layers), "module": np.array(list(sites))}
    attrs = {"method": method, "seed": seed, "paragraphs": len(paragraphs)}
    return _dataset(np.stack(columns, -1), coords, attrs)


@public("run", renamed={"paras": "paragraphs"})
def ablate_greedily(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    count: Count,
    *,
    method: AblationMethod = "mean",
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Ablate heads one after the other, each time the one that raises the NLL most in addition to those before it.

    Heads that can replace each other cost little alone and much together; a set shows what single heads hide. The set
    is chosen on these paragraphs: test it on others.

    Args:
        model: as `ablate_heads`.
        paragraphs: as `ablate_heads`.
        count: heads to ablate.
        method: as `ablate_heads`.
        seed: as `ablate_heads`.
        batch_size: (set, paragraph) pairs of one forward; None: chosen for the machine.
        progress: called with (heads ablated, heads to ablate).

    Returns:
        Dataset [step]: layer, head (the one added at this step), em_change and nll_change of the whole set so far
        against the intact run.

    Raises:
        InputError: as `ablate_heads`, or a count that is not between 1 and the number of heads.
    """
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    if not 1 <= count <= layers * heads:
        raise InputError(f"got count {count}; need 1 to {layers * heads}, the heads of the model")
    runs = AblationRuns(model, paragraphs, method=method, seed=seed, batch_size=batch_size)
    report = as_callback(progress, "ablate_greedily")
    gone = torch.zeros(layers * heads, dtype=torch.bool)
    taken, changes = [], []
    for step in range(count):
        left = (~gone).nonzero()[:, 0]
        sets = gone.repeat(len(left), 1)
        sets[torch.arange(len(left)), left] = True
        found = _changes(runs, sets.view(-1, layers, heads), None).mean(-1)
        best = int(found[1].argmax())
        taken.append(int(left[best]))
        changes.append(found[:, best])
        gone[left[best]] = True
        if report is not None:
            report(step + 1, count)
    attrs = {"method": method, "seed": seed, "paragraphs": len(paragraphs)}
    result = _dataset(torch.stack(changes, 1).numpy(), {"step": np.arange(count)}, attrs)
    layer, head = np.divmod(np.array(taken), heads)
    return result.assign(layer=("step", layer), head=("step", head))


def _single(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    cells: Sequence[tuple[int, int]],
    progress: ProgressLike,
    options: dict[str, Any],
) -> Float[Tensor, "measure cell paragraph"]:
    """Change of every paragraph's EM and NLL when each (layer, part) is ablated alone."""
    if not hooked_points(model) and not unsupported(model):
        return AblatedRuns(model, paragraphs, **options).changes(cells, progress)
    site = options["site"]
    hooked: dict[str, Any] = {**options, "site": "z" if site == "attention" else site}
    runs = AblationRuns(model, paragraphs, **hooked)
    sets = torch.zeros(len(cells), *runs.shape, dtype=torch.bool)
    for number, (layer, part) in enumerate(cells):
        sets[number, layer, slice(None) if site == "attention" else part] = True
    return _changes(runs, sets, progress)


def _changes(
    runs: AblationRuns, sets: Bool[Tensor, "set layer part"], progress: ProgressLike
) -> Float[Tensor, "measure set paragraph"]:
    """EM and NLL minus those of the intact run."""
    return runs.scores(sets, progress) - runs.intact[:, None]


def _dataset(changes: Float[np.ndarray, ...], coords: dict[str, np.ndarray], attrs: dict[str, str | int]) -> xr.Dataset:
    data = {
        name: (tuple(coords), values, {"units": unit, "higher": higher})
        for (name, (unit, higher)), values in zip(MEASURES.items(), changes, strict=True)
    }
    return xr.Dataset(data, coords, attrs)
