"""What an edit cost: EM, NLL and predictions on sets of paragraphs before and after, and how far weights moved."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from jaxtyping import Shaped

from mechmem.data.bounds import Count
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, between
from mechmem.intervene.baseline import Baseline, baseline_of
from mechmem.intervene.costs import Compared, costs_of
from mechmem.intervene.forget_quality import against_oracle
from mechmem.intervene.oracle_check import check_oracle
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.stats.bootstrap import cluster_bootstrap
from mechmem.stats.ranges import Range, range_of
from mechmem.weights.support import changed_weights, tensor_pairs

BATCH = 32


@public("run", renamed={"before": "original", "after": "edited"}, unused=("draws", "seed"))
def evaluate(
    original: HookedTransformer,
    edited: HookedTransformer,
    sets: Mapping[str, Paragraphs],
    *,
    oracle: HookedTransformer | None = None,
    oracle_scale: HookedTransformer | None = None,
    baseline: Baseline | None = None,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Compare two models, usually a model and an edit of it, on sets of paragraphs, with intervals.

    Intervals are computed without resampling: `draws` and `seed` have no effect any more, and a DeprecationWarning says
    so where they are given.

    Args:
        original: the model before the edit; hooks on it and on `edited` are run.
        edited: the model after it, with weights of the same names and shapes.
        sets: name -> paragraphs; `cost_sets` makes those on which an edit should be judged.
        oracle: a model of the original's recipe that was trained without the targets, hooks included; None: no such
            comparison. Raw and folded weights may be mixed: outputs alone are compared.
        oracle_scale: another model of this recipe, trained on all the text with another seed: what it differs by from
            the original is the unit of the distance to the oracle. None: nats per token alone.
        baseline: `Baseline(original)`, where several edits of one model are compared: what the original and the oracle
            make of a set is then computed once.
        batch_size: paragraphs of one forward; None: 32.
        progress: called with (paragraphs done, paragraphs of all sets).

    Returns:
        Dataset. [set, model], model "before" or "after", means over the set of what `paragraph_costs` gives: em,
        match_fraction, edit_distance, exact_fraction, nll; and perplexity, exp of the mean nll. [set]: kl,
        changed_top1, and em_change, after - before, of the same paragraphs (above 0: more is reproduced). Each has
        bounds `*_low` and `*_high` of a 95 % interval, by cluster where the table has a column `cluster`, within what
        the quantity can be, NaN where a value is not finite. [set]: paragraphs, clusters. Scalars: weights_changed (in
        any bit), change_norm (Euclidean norm of the change over all parameters) and relative_norm (over that of
        `original`). Attribute `clusters`: what counts as one observation.

        With an oracle, `model` has a third row, "oracle", its own values. [set, model], with bounds: p_extractable
        (probability that one sample with top-k 40 is the whole continuation), min_k_nll (mean NLL of the least likely
        fifth of the tokens) and oracle_kl, KL(model || oracle), nats per token. With oracle_scale also
        oracle_scale[set], KL(original || oracle_scale), and oracle_distance[set, model], the ratio of both means: at 1
        a model is as far from the oracle as two trained models are from each other. [model], where the sets allow it:
        forget_quality (of the set "targets": p-value of a two-sample test between its truth ratios and the oracle's, as
        TOFU; small: the model can be told from the oracle) and privacy_leakage (of "targets" against "never seen":
        relative to the oracle's, how well Min-K% tells them apart, as MUSE; below 0: targets still look read).

    Raises:
        InputError: no set or an empty one, paragraphs that do not fit, models of different tensors, a baseline of
            another model, an architecture that has no lean forward, or an oracle of another shape or tokenizer, or
            that is one of the other models.
    """
    compared = _compared(original, edited, sets, oracle, oracle_scale, baseline)
    readers, report = compared.readers(), as_callback(progress, "evaluate")
    total, done = sum(map(len, sets.values())), 0
    costs: dict[str, xr.Dataset] = {}
    for name, paragraphs in sets.items():
        part = between(report, done, done + len(paragraphs), total)
        costs[name] = costs_of(readers, paragraphs, batch_size or BATCH, part)
        done += len(paragraphs)
    rows = [_aggregate(each, sets[name].continuation_len) for name, each in costs.items()]
    result = xr.concat(rows, xr.DataArray(list(sets), dims="set", name="set"), combine_attrs="drop_conflicts")
    if oracle is not None:
        result = result.merge(against_oracle(readers, sets, costs))
    alone = [name for name, paragraphs in sets.items() if not paragraphs.has("cluster")]
    clusters = f"column 'cluster'; each paragraph is its own in: {', '.join(alone) or 'no set'}"
    result.attrs = {"clusters": clusters, "level": 0.95}
    norm, size = _norms(original, edited)
    return result.assign(weights_changed=changed_weights(original, edited), change_norm=norm, relative_norm=norm / size)


@public("run", renamed={"before": "original", "after": "edited", "paras": "paragraphs"})
def paragraph_costs(
    original: HookedTransformer,
    edited: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    oracle: HookedTransformer | None = None,
    oracle_scale: HookedTransformer | None = None,
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
        oracle: as in `evaluate`.
        oracle_scale: as in `evaluate`.
        baseline: as in `evaluate`.
        batch_size: paragraphs of one forward; None: 32.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset with coordinates `model` ("before", "after"), `paragraph` (the paragraphs' ids) and `cluster`
        [paragraph] (the table's, or else the row number). [model, paragraph]: em (leading tokens that greedy decoding
        reproduces), match_fraction (share of continuation tokens that are the top prediction after the true text),
        edit_distance (tokens inserted, deleted or replaced between the greedy continuation and the text), exact
        (whether EM is all) and nll (nats per token). [paragraph]: kl, KL(original || edited) in nats per token, and
        changed_top1, the share of continuation positions whose top prediction after the true text is another. With an
        oracle as `evaluate` says, for each paragraph.

    Raises:
        InputError: no paragraph, paragraphs that do not fit, models of different tensors, a baseline of another model,
            or an architecture that has no lean forward.
    """
    compared = _compared(original, edited, {"given": paragraphs}, oracle, oracle_scale, baseline)
    return costs_of(compared.readers(), paragraphs, batch_size or BATCH, progress)


def _aggregate(costs: xr.Dataset, length: int) -> xr.Dataset:
    change = costs.em.sel(model="after", drop=True) - costs.em.sel(model="before", drop=True)
    change.attrs = {"units": "tokens", "higher": "the edited model reproduces more"}
    values = costs.rename(exact="exact_fraction").assign(em_change=change)
    if "oracle_scale" in costs:
        values["oracle_distance"] = _distance(costs)
    clusters, result = costs.cluster.values, {}
    for name, each in values.data_vars.items():
        # Bools stay: a share has an interval of its own.
        rows = each.values.reshape(-1, costs.sizes["paragraph"])
        mean = each.mean("paragraph", skipna=False, keep_attrs=True)
        bounds = np.array([_interval(row, clusters, range_of(str(name), length)) for row in rows]).T
        result[name] = mean
        for end, bound in zip(("low", "high"), bounds, strict=True):
            result[f"{name}_{end}"] = mean.copy(data=bound.reshape(mean.shape))
    about = {"units": "1", "higher": "less likely text"}
    with np.errstate(over="ignore"):
        for end in ("", "_low", "_high"):
            result[f"perplexity{end}"] = np.exp(result[f"nll{end}"]).assign_attrs(about)
    result |= {"paragraphs": costs.sizes["paragraph"], "clusters": len(np.unique(clusters))}
    return xr.Dataset(result)


def _distance(costs: xr.Dataset) -> xr.DataArray:
    """Per paragraph, what has the ratio of the means as its mean and the ratio's own spread (the delta method)."""
    apart, unit = costs.oracle_kl.astype(np.float64), costs.oracle_scale.astype(np.float64)
    ratio = apart.mean("paragraph") / unit.mean("paragraph").where(lambda mean: mean > 0)
    about = {"units": "distance of two trained models", "higher": "further from the oracle"}
    return (ratio + (apart - ratio * unit) / unit.mean("paragraph")).transpose(*apart.dims).assign_attrs(about)


def _interval(values: Shaped[np.ndarray, " value"], clusters: np.ndarray, within: Range) -> tuple[float, float]:
    if not np.isfinite(values).all():
        return np.nan, np.nan
    return cluster_bootstrap(values, clusters, within=within)


def _norms(original: HookedTransformer, edited: HookedTransformer) -> tuple[float, float]:
    """Euclidean norm of the change of all parameters, and of the original parameters."""
    changed, size, others = 0.0, 0.0, dict(edited.named_parameters())
    for name, parameter in original.named_parameters():
        wide = torch.promote_types(parameter.dtype, torch.float32)
        first, second = parameter.detach().to(wide), others[name].detach().to(parameter.device, wide)
        changed += float(torch.linalg.vector_norm(second - first, dtype=torch.float64)) ** 2
        size += float(torch.linalg.vector_norm(first, dtype=torch.float64)) ** 2
    return changed**0.5, size**0.5


def _compared(
    original: HookedTransformer,
    edited: HookedTransformer,
    sets: Mapping[str, Paragraphs],
    oracle: HookedTransformer | None,
    oracle_scale: HookedTransformer | None,
    baseline: Baseline | None,
) -> Compared:
    """The models, once they and the sets are known to fit."""
    _check(original, edited, sets)
    check_oracle(original, edited, oracle, oracle_scale)
    return Compared(original, edited, oracle, oracle_scale, baseline_of(original, baseline))


def _check(original: HookedTransformer, edited: HookedTransformer, sets: Mapping[str, Paragraphs]) -> None:
    if not sets:
        raise InputError("got no set of paragraphs; need at least one, {'targets': paragraphs} for example")
    tensor_pairs(original, edited)
    for name, paragraphs in sets.items():
        if len(paragraphs) == 0:
            raise InputError(f"the set '{name}' is empty; leave it out")
        check_fit(original, paragraphs)
        check_fit(edited, paragraphs)
