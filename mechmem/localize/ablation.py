"""What heads, layers and sets of heads are worth: take their output away and score the paragraphs again."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress, part_of
from mechmem.localize.ablation_runs import AblationRuns, Method
from mechmem.model.load import HookedTransformer

Part = Literal["z", "pattern", "v"]


def ablate_heads(
    model: HookedTransformer,
    paras: Paragraphs,
    *,
    method: Method = "mean",
    part: Part = "z",
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Ablate every head alone, at all positions, and measure what exact match and NLL lose.

    What is replaced is taken from the intact run; all that follows is computed anew. Scores are teacher-forced, as in
    `score`. Replacing the pattern alone asks whether it matters *where* a head looks, replacing the values alone
    whether it matters *what* it finds there; a head that looks at the right place and writes nothing passes neither.

    Args:
        model: left as it is; hooks on it act as usual.
        paras: their mean output is what "mean" replaces by: near-duplicates among them make it less of a neutral one.
        method: "mean": the mean over the paragraphs at the same position; "zero": nothing; "resample": that of another
            paragraph, the same one for every head, none its own.
        part: what is replaced: "z", the head's whole output before W_O; "pattern", its attention, the values kept; "v",
            its values, the attention kept.
        seed: decides which paragraph stands in ("resample" alone).
        batch_size: (head, paragraph) pairs of one forward.
        progress: called with (pairs done, pairs).

    Returns:
        Dataset [layer, head], means over paragraphs: em_drop (tokens) and nll_rise (nats per token), both against the
        intact run. Positive: the head is needed; higher: more is lost without it.

    Raises:
        InputError: an unknown method or part, fewer than two paragraphs for "mean" or "resample", or paragraphs or a
            model that cannot be used.
    """
    if part not in ("z", "pattern", "v"):
        raise InputError(f"part is {part!r}; need 'z', 'pattern' or 'v'")
    runs = AblationRuns(model, paras, method=method, site=part, seed=seed, batch_size=batch_size)
    layers, heads = runs.shape
    losses = _losses(runs, torch.eye(layers * heads, dtype=torch.bool).view(-1, layers, heads), progress)
    coords = {"layer": np.arange(layers), "head": np.arange(heads)}
    attrs = {"method": method, "part": part, "seed": seed, "paragraphs": len(paras)}
    return _dataset(losses.view(2, layers, heads), coords, attrs)


def ablate_layers(
    model: HookedTransformer,
    paras: Paragraphs,
    *,
    method: Method = "mean",
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Ablate all heads of a layer together, and the MLP of a layer, each alone.

    Args:
        model: as `ablate_heads`.
        paras: as `ablate_heads`.
        method: as `ablate_heads`.
        seed: as `ablate_heads`.
        batch_size: (layer, paragraph) pairs of one forward.
        progress: called with (pairs done, pairs) of the heads, then of the MLPs.

    Returns:
        Dataset [layer, module] of em_drop and nll_rise, as `ablate_heads`; modules are "attention" and, unless the
        model has none, "mlp".

    Raises:
        InputError: as `ablate_heads`.
    """
    sites = {"attention": "z"} if model.cfg.attn_only else {"attention": "z", "mlp": "mlp_out"}
    columns = []
    for number, site in enumerate(sites.values()):
        runs = AblationRuns(model, paras, method=method, site=site, seed=seed, batch_size=batch_size)
        layers, parts = runs.shape
        sets = torch.eye(layers, dtype=torch.bool)[:, :, None].expand(layers, layers, parts)
        columns.append(_losses(runs, sets, None if progress is None else part_of(progress, number, len(sites))))
    coords = {"layer": np.arange(model.cfg.n_layers), "module": np.array(list(sites))}
    attrs = {"method": method, "seed": seed, "paragraphs": len(paras)}
    return _dataset(torch.stack(columns, -1), coords, attrs)


def ablate_greedily(
    model: HookedTransformer,
    paras: Paragraphs,
    count: int,
    *,
    method: Method = "mean",
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Take heads away one after the other, each time the one whose loss raises the NLL most beside those gone already.

    Heads that can stand in for each other cost little alone and much together; a set shows what single heads hide. The
    set is chosen on these paragraphs: judge it on others.

    Args:
        model: as `ablate_heads`.
        paras: as `ablate_heads`.
        count: heads to take away.
        method: as `ablate_heads`.
        seed: as `ablate_heads`.
        batch_size: (set, paragraph) pairs of one forward.
        progress: called with (heads taken, heads to take).

    Returns:
        Dataset [step]: layer, head (the one taken at this step), em_drop and nll_rise of the whole set so far against
        the intact run.

    Raises:
        InputError: as `ablate_heads`, or a count that is not between 1 and the number of heads.
    """
    runs = AblationRuns(model, paras, method=method, seed=seed, batch_size=batch_size)
    layers, heads = runs.shape
    if not 1 <= count <= layers * heads:
        raise InputError(f"count is {count}; need 1 to {layers * heads}, the heads of the model")
    gone = torch.zeros(layers * heads, dtype=torch.bool)
    taken, losses = [], []
    for step in range(count):
        left = (~gone).nonzero()[:, 0]
        sets = gone.repeat(len(left), 1)
        sets[torch.arange(len(left)), left] = True
        found = _losses(runs, sets.view(-1, layers, heads), None)
        best = int(found[1].argmax())
        taken.append(int(left[best]))
        losses.append(found[:, best])
        gone[left[best]] = True
        if progress is not None:
            progress(step + 1, count)
    result = _dataset(torch.stack(losses, 1), {"step": np.arange(count)}, {"method": method, "paragraphs": len(paras)})
    layer, head = np.divmod(np.array(taken), heads)
    return result.assign(layer=("step", layer), head=("step", head))


def _losses(
    runs: AblationRuns, sets: Bool[Tensor, "set layer part"], progress: Progress | None
) -> Float[Tensor, "measure set"]:
    """What EM falls and NLL rises by, mean over paragraphs."""
    em, nll = (runs.scores(sets, progress) - runs.intact[:, None]).mean(-1)
    return torch.stack([-em, nll])


def _dataset(losses: Tensor, coords: dict[str, np.ndarray], attrs: dict[str, str | int]) -> xr.Dataset:
    dims, higher = tuple(coords), "more is lost without it"
    units = {"em_drop": "tokens", "nll_rise": "nats per token"}
    data = {
        name: (dims, values.numpy(), {"units": unit, "higher": higher})
        for (name, unit), values in zip(units.items(), losses, strict=True)
    }
    return xr.Dataset(data, coords, attrs)
