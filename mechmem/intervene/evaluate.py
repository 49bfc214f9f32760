"""What an edit cost: what a model says of sets of paragraphs before and after, and how far its weights moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.measure.decode import edit_distances, greedy_continuations
from mechmem.measure.scores import memorized_other, score_logits
from mechmem.model.forward import check_fit
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.load import HookedTransformer
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


def evaluate(
    before: HookedTransformer,
    after: HookedTransformer,
    sets: Mapping[str, Paragraphs],
    *,
    seed: int = 0,
    draws: int = 2000,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> xr.Dataset:
    """What two models, usually a model and an edit of it, make of sets of paragraphs, with intervals.

    Args:
        before: the original model; hooks on it and on `after` do not take part.
        after: the edited model, of the same weights' names and shapes.
        sets: name -> paragraphs; `cost_sets` makes those that an edit should be judged on.
        seed: of the resampling.
        draws: resamples of an interval; whole clusters are drawn where the table has a column `cluster`.
        batch_size: paragraphs of one forward.
        progress: called with (paragraphs done, paragraphs of all sets).

    Returns:
        Dataset. [set, model], model "before" or "after", means over the set of what `paragraph_costs` gives: em,
        match_fraction, edit_distance, exact_fraction, nll; and perplexity, exp of the mean nll. [set]: kl,
        changed_top1, and em_change, after - before, of the same paragraphs (above 0: more is reproduced). Each has
        bounds `*_low` and `*_high` of a 95 % percentile interval, NaN where a value is not finite. [set]: paragraphs,
        clusters. Scalars: weights_changed (in any bit), change_norm (Euclidean norm of the change over all
        parameters) and relative_norm (over that of `before`). Attribute `clusters`: what was drawn.

    Raises:
        InputError: no set or an empty one, paragraphs that do not fit, models of different tensors, or an architecture
            that has no lean forward.
    """
    _check(before, after, sets)
    if draws < 1:
        raise InputError(f"draws is {draws}; need at least 1, thousands for an interval that can be trusted")
    models = LeanModel(before), LeanModel(after)
    total, done = sum(map(len, sets.values())), 0
    rows: list[xr.Dataset] = []
    for paragraphs in sets.values():
        costs = _costs(models, paragraphs, batch_size, progress, done, total)
        rows.append(_aggregate(costs, seed, draws))
        done += len(paragraphs)
    result = xr.concat(rows, xr.DataArray(list(sets), dims="set", name="set"), combine_attrs="drop_conflicts")
    alone = [name for name, paragraphs in sets.items() if not _has(paragraphs, "cluster")]
    clusters = f"column 'cluster'; each paragraph is its own in: {', '.join(alone) or 'no set'}"
    result.attrs = {"clusters": clusters, "level": 0.95, "draws": draws, "seed": seed}
    norm, original = _norms(before, after)
    return result.assign(
        weights_changed=changed_weights(before, after), change_norm=norm, relative_norm=norm / original
    )


def paragraph_costs(
    before: HookedTransformer,
    after: HookedTransformer,
    paras: Paragraphs,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> xr.Dataset:
    """What two models make of each paragraph; `evaluate` gives the means of it.

    One forward a model gives the logits that score the continuation, for everything but the edit distance; what
    follows a paragraph's first mismatch is then decoded. Of equal logits the lowest id is taken.

    Args:
        before: the original model; hooks on it and on `after` do not take part.
        after: the edited model.
        paras: paragraphs with their true text.
        batch_size: paragraphs of one forward.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset with coordinates `model` ("before", "after"), `paragraph` (row number) and `cluster` [paragraph] (the
        table's, else the row number). [model, paragraph]: em (leading tokens that greedy decoding reproduces),
        match_fraction (share of continuation tokens that are the top prediction after the true text), edit_distance
        (tokens inserted, deleted or replaced between what the model says on its own, greedily, and the text), exact
        (whether EM is all) and nll (nats per token). [paragraph]: kl, KL(before || after) in nats per token, and
        changed_top1, the share of continuation positions whose top prediction after the true text is another.

    Raises:
        InputError: no paragraph, paragraphs that do not fit, models of different tensors, or an architecture that has
            no lean forward.
    """
    _check(before, after, {"given": paras})
    return _costs((LeanModel(before), LeanModel(after)), paras, batch_size, progress, 0, len(paras))


def cost_sets(
    scored: Paragraphs, *, targets: int = 32, evaluated: int = 100, seed: int = 0
) -> tuple[dict[str, Paragraphs], Paragraphs]:
    """Targets of an edit, the sets that it should be judged on, and the keep set.

    1. Clusters that hold a memorized paragraph (EM is all) are drawn for the targets, at most half of them so that
       others are left; one memorized paragraph of each is a target.
    2. What else is in the targets' clusters is near-duplicates, memorized or not; a row with a target's very tokens is
       in no set.
    3. Other paragraphs (EM of a fifth or less, their own true text) are those of clusters that hold no memorized one.
       They are halved by cluster into the keep set and the set that is evaluated; those that were never trained on
       (column `seen`, where it is known, is not "trained") are a set of their own.

    Args:
        scored: paragraphs with columns `em` and `cluster`, and `seen` where it is known.
        targets: at most so many.
        evaluated: at most so many paragraphs of every other set, and of the keep set.
        seed: of all draws.

    Returns:
        The sets "targets", "memorized", "near-duplicates", "other" and "never seen", without those that are empty, and
        the keep set, which shares no cluster with any of them. It may be empty.

    Raises:
        InputError: a column is missing, no paragraph is memorized, or a count below 1.
    """
    if targets < 1 or evaluated < 1:
        raise InputError(f"targets is {targets} and evaluated {evaluated}; need at least 1 of each")
    em, cluster = scored.column("em"), scored.column("cluster")
    memorized, other = memorized_other(em, scored.continuation_len)
    if not memorized.any():
        raise InputError(
            f"none of {len(scored)} paragraphs has EM {scored.continuation_len}, so there is nothing to target; give "
            "paragraphs that the model was scored on and has memorized"
        )
    rng = np.random.default_rng(seed)
    holding = np.unique(cluster[memorized])
    drawn = rng.permutation(holding)[: min(targets, (len(holding) + 1) // 2)]
    aimed = np.sort([rng.choice(np.flatnonzero(memorized & (cluster == label))) for label in drawn])
    same = set(map(tuple, scored.tokens[aimed].tolist()))
    repeated = np.array([tuple(row) in same for row in scored.tokens.tolist()])
    theirs = np.isin(cluster, drawn)
    unseen = scored.column("seen") != "trained" if _has(scored, "seen") else np.zeros(len(scored), dtype=bool)
    other &= ~np.isin(cluster, holding)
    never = _sample(other & unseen, evaluated, rng)
    # A cluster with text that is judged as never seen is not held either.
    known = other & ~unseen & ~np.isin(cluster, cluster[never])
    labels = np.unique(cluster[known])
    kept = known & np.isin(cluster, rng.permutation(labels)[: len(labels) // 2])
    rows = {
        "targets": aimed,
        "memorized": _sample(memorized & ~theirs & ~repeated, evaluated, rng),
        "near-duplicates": _sample(theirs & ~repeated, evaluated, rng),
        "other": _sample(known & ~kept, evaluated, rng),
        "never seen": never,
    }
    sets = {name: scored.select(chosen) for name, chosen in rows.items() if len(chosen)}
    return sets, scored.select(_sample(kept, evaluated, rng))


def _sample(candidates: np.ndarray, count: int, rng: np.random.Generator) -> Int[np.ndarray, " chosen"]:
    rows = np.flatnonzero(candidates)
    return rows if len(rows) <= count else np.sort(rng.choice(rows, count, replace=False))


def _costs(
    models: Sequence[LeanModel], paras: Paragraphs, batch_size: int, progress: Progress | None, done: int, total: int
) -> xr.Dataset:
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(paras), batch_size):
        rows = slice(start, start + batch_size)
        for name, values in _batch_costs(models, paras.tokens[rows], paras.prefix_len).items():
            parts.setdefault(name, []).append(values)
        if progress is not None:
            progress(done + min(start + batch_size, len(paras)), total)
    data = {}
    for name, (units, higher) in (EACH | BOTH).items():
        dims = ("model", "paragraph") if name in EACH else ("paragraph",)
        data[name] = (dims, np.concatenate(parts[name], axis=-1), {"units": units, "higher": higher})
    cluster = paras.column("cluster") if _has(paras, "cluster") else np.arange(len(paras))
    coords = {"model": MODELS, "paragraph": np.arange(len(paras)), "cluster": ("paragraph", cluster)}
    return xr.Dataset(data, coords, {"prefix_len": paras.prefix_len, "ties": "lowest id"})


@torch.no_grad()
def _batch_costs(
    models: Sequence[LeanModel], tokens: Int[Tensor, "paragraph pos"], prefix_len: int
) -> dict[str, np.ndarray]:
    true = tokens[:, prefix_len:].cpu()
    with fast_float32(models[0].device):
        hidden = [model.forward(tokens)[:, prefix_len - 1 : -1] for model in models]
        parts: list[dict[str, Tensor]] = []
        step = max(1, _LOGITS_AT_ONCE // (true.shape[1] * models[0].d_vocab))
        for start in range(0, len(tokens), step):
            rows = slice(start, start + step)
            logits = [model.unembed(each[rows]) for model, each in zip(models, hidden, strict=True)]
            scored = [score_logits(each, true[rows]) for each in logits]
            values = {name: torch.stack([each[name].cpu() for each in scored]) for name in ("em", "nll", "greedy")}
            parts.append(values | {"kl": _kl(*logits).cpu()})
    em, nll, greedy = (torch.cat([part[name] for part in parts], 1).numpy() for name in ("em", "nll", "greedy"))
    rows, length = np.arange(len(true)), true.shape[1]
    distances = []
    for model, matched, best in zip(models, em, greedy, strict=True):
        # The forward's own choice at the first mismatch: a near-tie cannot turn out otherwise while decoding.
        rival = best[rows, np.minimum(matched, length - 1)]
        said = greedy_continuations(model, tokens, prefix_len, matched, rival, batch_size=len(tokens))
        distances.append(edit_distances(said, true.numpy()))
    values = {"em": em, "nll": nll, "exact": em == length, "edit_distance": np.stack(distances)}
    values |= {"match_fraction": (greedy == true.numpy()).mean(-1), "changed_top1": (greedy[0] != greedy[1]).mean(-1)}
    return values | {"kl": torch.cat([part["kl"] for part in parts]).numpy()}


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


def _norms(before: HookedTransformer, after: HookedTransformer) -> tuple[float, float]:
    """Euclidean norm of the change of all parameters, and of the parameters before it."""
    changed, original, others = 0.0, 0.0, dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        wide = torch.promote_types(parameter.dtype, torch.float32)
        first, second = parameter.detach().to(wide), others[name].detach().to(parameter.device, wide)
        changed += float(torch.linalg.vector_norm(second - first, dtype=torch.float64)) ** 2
        original += float(torch.linalg.vector_norm(first, dtype=torch.float64)) ** 2
    return changed**0.5, original**0.5


def _has(paras: Paragraphs, name: str) -> bool:
    return paras.table is not None and name in paras.table.column_names


def _check(before: HookedTransformer, after: HookedTransformer, sets: Mapping[str, Paragraphs]) -> None:
    if not sets:
        raise InputError("no set of paragraphs came; need at least one, {'targets': paragraphs} for example")
    tensor_pairs(before, after)
    for name, paragraphs in sets.items():
        if len(paragraphs) == 0:
            raise InputError(f"the set '{name}' is empty; leave it out")
        check_fit(before, paragraphs)
        check_fit(after, paragraphs)
