"""What an edit cost: EM, NLL and predictions on sets of paragraphs before and after, and how far weights moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mechmem.data.bounds import Count, Seed
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, batches, between
from mechmem.intervene.baseline import Baseline, baseline_of
from mechmem.intervene.outputs import HookedOutputs, LeanOutputs, outputs_of
from mechmem.measure.decode import edit_distances
from mechmem.measure.scores import score_logits
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.stats.bootstrap import cluster_bootstrap
from mechmem.weights.support import changed_weights, tensor_pairs

MODELS = ["before", "after"]
# Units and what higher means; those of each model first, then those of the pair.
EACH = {
    "em": ("tokens", "more memorized"),
    "match_fraction": ("1", "more memorized"),
    "edit_distance": ("tokens", "less memorized"),
    "exact": ("1", "more memorized"),
    "nll": ("nats per token", "less memorized"),
}
BOTH = {"kl": ("nats per token", "the models differ more"), "changed_top1": ("1", "the models differ more")}
# Logits held at once for each model: 128 MB of float32.
_LOGITS_AT_ONCE = 2**25
BATCH = 32
Outputs = LeanOutputs | HookedOutputs


@public("run", renamed={"before": "original", "after": "edited"})
def evaluate(
    original: HookedTransformer,
    edited: HookedTransformer,
    sets: Mapping[str, Paragraphs],
    *,
    baseline: Baseline | None = None,
    draws: Count = 2000,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Compare two models, usually a model and an edit of it, on sets of paragraphs, with intervals.

    Args:
        original: the model before the edit; hooks on it and on `edited` are run.
        edited: the model after it, with weights of the same names and shapes.
        sets: name -> paragraphs; `cost_sets` makes those on which an edit should be judged.
        baseline: `Baseline(original)`, where several edits of one model are compared: what the original makes of a set
            is then computed once.
        draws: resamples of an interval; whole clusters are drawn where the table has a column `cluster`.
        seed: of the resampling.
        batch_size: paragraphs of one forward; None: 32.
        progress: called with (paragraphs done, paragraphs of all sets).

    Returns:
        Dataset. [set, model], model "before" or "after", means over the set of what `paragraph_costs` gives: em,
        match_fraction, edit_distance, exact_fraction, nll; and perplexity, exp of the mean nll. [set]: kl,
        changed_top1, and em_change, after - before, of the same paragraphs (above 0: more is reproduced). Each has
        bounds `*_low` and `*_high` of a 95 % percentile interval, NaN where a value is not finite. [set]: paragraphs,
        clusters. Scalars: weights_changed (in any bit), change_norm (Euclidean norm of the change over all
        parameters) and relative_norm (over that of `original`). Attribute `clusters`: what was drawn.

    Raises:
        InputError: no set or an empty one, paragraphs that do not fit, models of different tensors, a baseline of
            another model, or an architecture that has no lean forward.
    """
    _check(original, edited, sets)
    known = baseline_of(original, baseline)
    models = outputs_of(original), outputs_of(edited)
    report = as_callback(progress, "evaluate")
    total, done = sum(map(len, sets.values())), 0
    rows: list[xr.Dataset] = []
    for paragraphs in sets.values():
        part = between(report, done, done + len(paragraphs), total)
        costs = _costs(models, paragraphs, known, batch_size or BATCH, part)
        rows.append(_aggregate(costs, seed, draws))
        done += len(paragraphs)
    result = xr.concat(rows, xr.DataArray(list(sets), dims="set", name="set"), combine_attrs="drop_conflicts")
    alone = [name for name, paragraphs in sets.items() if not paragraphs.has("cluster")]
    clusters = f"column 'cluster'; each paragraph is its own in: {', '.join(alone) or 'no set'}"
    result.attrs = {"clusters": clusters, "level": 0.95, "draws": draws, "seed": seed}
    norm, size = _norms(original, edited)
    return result.assign(weights_changed=changed_weights(original, edited), change_norm=norm, relative_norm=norm / size)


@public("run", renamed={"before": "original", "after": "edited", "paras": "paragraphs"})
def paragraph_costs(
    original: HookedTransformer,
    edited: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    baseline: Baseline | None = None,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Compare two models on each paragraph; `evaluate` gives the means of it.

    One forward per model gives the logits that score the continuation, for everything but the edit distance; what
    follows a paragraph's first mismatch is then decoded. Of equal logits the lowest id is taken.

    Args:
        original: the model before the edit; hooks on it and on `edited` are run.
        edited: the model after it.
        paragraphs: with their true text.
        baseline: as in `evaluate`.
        batch_size: paragraphs of one forward; None: 32.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset with coordinates `model` ("before", "after"), `paragraph` (the paragraphs' ids) and `cluster`
        [paragraph] (the table's, or else the row number). [model, paragraph]: em (leading tokens that greedy decoding
        reproduces), match_fraction (share of continuation tokens that are the top prediction after the true text),
        edit_distance (tokens inserted, deleted or replaced between the greedy continuation and the text), exact
        (whether EM is all) and nll (nats per token). [paragraph]: kl, KL(original || edited) in nats per token, and
        changed_top1, the share of continuation positions whose top prediction after the true text is another.

    Raises:
        InputError: no paragraph, paragraphs that do not fit, models of different tensors, a baseline of another model,
            or an architecture that has no lean forward.
    """
    _check(original, edited, {"given": paragraphs})
    models, known = (outputs_of(original), outputs_of(edited)), baseline_of(original, baseline)
    return _costs(models, paragraphs, known, batch_size or BATCH, progress)


def _costs(
    models: tuple[Outputs, Outputs],
    paragraphs: Paragraphs,
    baseline: Baseline | None,
    batch_size: int,
    progress: ProgressLike,
) -> xr.Dataset:
    parts: dict[str, list[np.ndarray]] = {}
    for rows in batches(len(paragraphs), batch_size, progress):
        batch = paragraphs[rows]
        first = _once(baseline, models[0], batch)
        second = _alone(models[1], batch)
        for name, values in _pair(models, first, second).items():
            parts.setdefault(name, []).append(values)
    data = {}
    for name, (units, higher) in (EACH | BOTH).items():
        dims = ("model", "paragraph") if name in EACH else ("paragraph",)
        data[name] = (dims, np.concatenate(parts[name], axis=-1), {"units": units, "higher": higher})
    coords = {"model": MODELS, "paragraph": paragraphs.ids, "cluster": ("paragraph", paragraphs.clusters)}
    return xr.Dataset(data, coords, {"prefix_len": paragraphs.prefix_len, "ties": "lowest id"})


def _once(baseline: Baseline | None, model: Outputs, batch: Paragraphs) -> dict[str, Any]:
    """The original's part, kept where there is somewhere to keep it."""
    if baseline is None or isinstance(model, HookedOutputs):
        return _alone(model, batch)
    return baseline.once("costs", batch, None, lambda: _alone(model, batch))


@torch.no_grad()
def _alone(model: Outputs, batch: Paragraphs) -> dict[str, Any]:
    """What one model makes of a batch: the columns that its logits come from, and the values of `EACH`."""
    true = batch.continuation.cpu()
    columns = model.columns(batch.tokens, batch.prefix_len)
    scored = [score_logits(model.logits(columns[rows]), true[rows]) for rows in _at_once(model, columns)]
    em, nll, greedy = (torch.cat([part[name].cpu() for part in scored]).numpy() for name in ("em", "nll", "greedy"))
    rows, length = np.arange(len(true)), true.shape[1]
    # The forward's own choice at the first mismatch: a near-tie cannot turn out otherwise while decoding.
    rival = greedy[rows, np.minimum(em, length - 1)]
    produced = model.greedy(batch.tokens, batch.prefix_len, em, rival)
    values = {"em": em, "nll": nll, "exact": em == length, "edit_distance": edit_distances(produced, true.numpy())}
    return values | {"match_fraction": (greedy == true.numpy()).mean(-1), "greedy": greedy, "columns": columns}


@torch.no_grad()
def _pair(models: tuple[Outputs, Outputs], first: dict[str, Any], second: dict[str, Any]) -> dict[str, np.ndarray]:
    """The values of both models, [model, paragraph], and those of the pair, [paragraph]."""
    divergence = [
        _kl(*(model.logits(each["columns"][rows]) for model, each in zip(models, (first, second), strict=True))).cpu()
        for rows in _at_once(models[0], first["columns"])
    ]
    values = {name: np.stack([first[name], second[name]]) for name in EACH}
    values["changed_top1"] = (first["greedy"] != second["greedy"]).mean(-1)
    return values | {"kl": torch.cat(divergence).numpy()}


def _at_once(model: Outputs, columns: Float[Tensor, "paragraph pos d"]) -> Iterator[slice]:
    """Paragraphs whose logits are held together."""
    return batches(len(columns), max(1, _LOGITS_AT_ONCE // (columns.shape[1] * model.d_vocab)))


def _kl(
    first: Float[Tensor, "paragraph pos d_vocab"], second: Float[Tensor, "paragraph pos d_vocab"]
) -> Float[Tensor, " paragraph"]:
    wide = torch.promote_types(first.dtype, torch.float32)
    reference, other = first.to(wide).log_softmax(-1), second.to(first.device, wide).log_softmax(-1)
    return functional.kl_div(other, reference, reduction="none", log_target=True).sum(-1).mean(-1)


def _aggregate(costs: xr.Dataset, seed: int, draws: int) -> xr.Dataset:
    change = costs.em.diff("model").isel(model=0, drop=True)
    change.attrs = {"units": "tokens", "higher": "the edited model reproduces more"}
    values = costs.rename(exact="exact_fraction").assign(em_change=change)
    clusters, result = costs.cluster.values, {}
    for name, each in values.data_vars.items():
        rows = each.values.astype(np.float64).reshape(-1, costs.sizes["paragraph"])
        mean = each.mean("paragraph", skipna=False, keep_attrs=True)
        bounds = np.array([_interval(row, clusters, seed, draws) for row in rows]).T
        result[name] = mean
        for end, bound in zip(("low", "high"), bounds, strict=True):
            result[f"{name}_{end}"] = mean.copy(data=bound.reshape(mean.shape))
    about = {"units": "1", "higher": "less likely text"}
    with np.errstate(over="ignore"):
        for end in ("", "_low", "_high"):
            result[f"perplexity{end}"] = np.exp(result[f"nll{end}"]).assign_attrs(about)
    result |= {"paragraphs": costs.sizes["paragraph"], "clusters": len(np.unique(clusters))}
    return xr.Dataset(result)


def _interval(values: Float[np.ndarray, " value"], clusters: np.ndarray, seed: int, draws: int) -> tuple[float, float]:
    if not np.isfinite(values).all():
        return np.nan, np.nan
    return cluster_bootstrap(values, clusters, seed=seed, draws=draws)


def _norms(original: HookedTransformer, edited: HookedTransformer) -> tuple[float, float]:
    """Euclidean norm of the change of all parameters, and of the original parameters."""
    changed, size, others = 0.0, 0.0, dict(edited.named_parameters())
    for name, parameter in original.named_parameters():
        wide = torch.promote_types(parameter.dtype, torch.float32)
        first, second = parameter.detach().to(wide), others[name].detach().to(parameter.device, wide)
        changed += float(torch.linalg.vector_norm(second - first, dtype=torch.float64)) ** 2
        size += float(torch.linalg.vector_norm(first, dtype=torch.float64)) ** 2
    return changed**0.5, size**0.5


def _check(original: HookedTransformer, edited: HookedTransformer, sets: Mapping[str, Paragraphs]) -> None:
    if not sets:
        raise InputError("got no set of paragraphs; need at least one, {'targets': paragraphs} for example")
    tensor_pairs(original, edited)
    for name, paragraphs in sets.items():
        if len(paragraphs) == 0:
            raise InputError(f"the set '{name}' is empty; leave it out")
        check_fit(original, paragraphs)
        check_fit(edited, paragraphs)
