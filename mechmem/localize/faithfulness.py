"""How much of a memory a circuit of heads and neurons keeps, by its size (MIB, Mueller et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.data.bounds import Count, Seed, Share
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, part_of
from mechmem.localize.ablation_runs import AblationMethod, check_ablation
from mechmem.localize.circuit_runs import CircuitRuns, Circuits
from mechmem.model.lean.weights import unsupported
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

# MIB's sizes.
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ABLATIONS: tuple[AblationMethod, ...] = get_args(AblationMethod)
Ranking = Literal["value", "magnitude"]
KINDS = {"head": "heads", "neuron": "neurons"}
MEASURES = ("em", "nll")


@public("refuse")
def faithfulness(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    scores: xr.DataArray | xr.Dataset,
    *,
    ablations: Sequence[AblationMethod] = ABLATIONS,
    shares: Sequence[Share] = SHARES,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """How much of the paragraphs' NLL and EM the highest components keep when all others are ablated together.

    Mueller et al. 2025 (MIB, arXiv 2504.13151), for nodes: with m the mean measure, C a circuit, N the whole model and
    0 the circuit of nothing, faithfulness is (m(C) - m(0)) / (m(N) - m(0)): 1 is as the whole model, 0 as nothing,
    above 1 is better than the whole model. CPR is the area under faithfulness over the circuit's share of the
    components, from 0 to 1: higher is better. CMD is the area between faithfulness and 1: lower is better.

    Args:
        model: left as it is; it must have no hooks.
        paragraphs: usually memorized; "mean" and "resample" take what replaces a component from them.
        scores: [layer, head] or [layer, neuron], or a Dataset with one variable of each; higher: first in the circuit.
            Components of a kind that is not scored are in every circuit.
        ablations: what replaces a component outside, at all positions: "zero"; "mean", over the paragraphs at the same
            position; "resample", another paragraph's activation.
        shares: sizes of circuits, shares of all scored components; at least one component. Equal counts are one size.
        seed: decides which paragraph stands in ("resample" alone).
        batch_size: (circuit, paragraph) pairs of one forward; None: chosen for the machine.
        progress: called with (pairs done, pairs).

    Returns:
        Dataset. faithfulness [measure, ablation, ranking, share], cpr, cmd [measure, ablation, ranking]; measures: em
        and nll, share is a circuit's of the components, `components` their number. Rankings: "value", highest
        first, so that negative components come last, and "magnitude", the largest |score| first. score [measure,
        ablation, ranking, share, paragraph]: of every circuit; intact [measure, paragraph], nothing [measure, ablation,
        paragraph]. without_negative [measure, ablation]: faithfulness of all components but those with scores below
        zero: above 1 if these work against the memory, 1 if there are none. EM's figures are NaN where EM is the same
        for the whole model and for nothing. `attrs`: numbers of heads and neurons scored, and of negative ones.

    Raises:
        InputError: scores of other dimensions or sizes, not finite, or two variables of one kind; no or an unknown
            ablation, no share; fewer than two paragraphs where they replace each other; a model or paragraphs that do
            not fit; ablating everything that is scored changes no NLL.
    """
    kinds = _scored(model, scores)
    _check(model, paragraphs, ablations, shares)
    flat = np.concatenate([values.ravel() for values in kinds.values()])
    counts = np.unique([max(1, round(share * flat.size)) for share in shares])
    orders = [np.argsort(-each, kind="stable") for each in (flat, np.abs(flat))]
    # Without negative scores both rankings are one.
    orders = orders[:1] if np.array_equal(orders[0], orders[1]) else orders
    smaller = counts[counts < flat.size]
    inside = np.zeros((len(orders), len(smaller), flat.size), dtype=bool)
    for rows, order in zip(inside, orders, strict=True):
        for row, count in zip(rows, smaller, strict=True):
            row[order[:count]] = True
    # The whole, nothing, and all but the negative components; then the circuits.
    ends = np.stack([np.ones_like(flat), np.zeros_like(flat), flat >= 0]).astype(bool)
    circuits = _circuits(np.concatenate([ends, inside.reshape(-1, flat.size)]), kinds)
    found = []
    for number, ablation in enumerate(ablations):
        runs = CircuitRuns(model, paragraphs, method=ablation, seed=seed, batch_size=batch_size)
        part = None if progress is None else as_callback(part_of(progress, number, len(ablations)), "faithfulness")
        found.append(runs.scores(circuits, part).numpy())
    return _labelled(np.stack(found, 1), list(ablations), counts, flat, paragraphs.ids).assign_attrs(
        {kind: values.size for kind, values in kinds.items()},
        negative=int((flat < 0).sum()),
        seed=seed,
        paragraphs=len(paragraphs),
    )


def _scored(model: HookedTransformer, scores: xr.DataArray | xr.Dataset) -> dict[str, np.ndarray]:
    """By kind (heads, neurons) the scores, [layer, part]."""
    if not isinstance(scores, xr.DataArray | xr.Dataset):
        raise InputError(f"got {type(scores).__name__} as scores; need a DataArray or a Dataset of components")
    parts = list(scores.data_vars.values()) if isinstance(scores, xr.Dataset) else [scores]
    sizes = {"head": model.cfg.n_heads, "neuron": model.cfg.d_mlp or 0}
    need = f"[layer, head] of {model.cfg.n_layers} x {sizes['head']} or [layer, neuron] of {model.cfg.n_layers} x "
    need += f"{sizes['neuron']}, at most one of each"
    found: dict[str, np.ndarray] = {}
    for part in parts:
        kind = next((name for name in KINDS if set(part.dims) == {"layer", name}), None)
        fits = kind is not None and dict(part.sizes) == {"layer": model.cfg.n_layers, kind: sizes[kind]}
        if kind is None or not fits or KINDS[kind] in found:
            raise InputError(
                f"got scores with {[dict(each.sizes) for each in parts]}; need {need}: choose one variable of a "
                "Dataset, and the sum or the mean over other dimensions"
            )
        values = np.asarray(part.transpose("layer", kind).values, dtype=np.float64)
        if not np.isfinite(values).all():
            raise InputError(
                f"got scores of {KINDS[kind]} of which {int((~np.isfinite(values)).sum())} are not finite; need a "
                "number for each: score all of them, or fill the rest with zeros"
            )
        found[KINDS[kind]] = values
    if not found:
        raise InputError(f"got scores without a variable; need {need}")
    return {kind: found[kind] for kind in KINDS.values() if kind in found}


def _check(model: HookedTransformer, paragraphs: Paragraphs, ablations: Sequence[str], shares: Sequence[float]) -> None:
    if not ablations:
        raise InputError(f"got no ablations; need some of {', '.join(ABLATIONS)}")
    for ablation in ablations:
        check_choice("ablation", ablation, AblationMethod)
        check_ablation(model, paragraphs, ablation)
    if not len(shares):
        raise InputError("got no shares; need at least one size of a circuit, such as 0.1")
    reason = unsupported(model)
    if reason:
        raise InputError(f"{reason}; need a GPT-Neo, GPT-2 or GPT-NeoX: ablate this model with TransformerLens' hooks")


def _circuits(inside: Bool[np.ndarray, "set component"], kinds: dict[str, np.ndarray]) -> Circuits:
    masks: dict[str, Tensor] = {}
    start = 0
    for kind, values in kinds.items():
        rows = inside[:, start : start + values.size].reshape(len(inside), *values.shape)
        masks[kind] = torch.from_numpy(rows)
        start += values.size
    return Circuits(**masks)


def _labelled(
    found: Float[np.ndarray, "measure ablation set paragraph"],
    ablations: list[str],
    counts: Int[np.ndarray, " size"],
    flat: Float[np.ndarray, " component"],
    ids: np.ndarray,
) -> xr.Dataset:
    """Faithfulness and its areas, of every circuit."""
    whole, nothing, positive = (found[:, :, number] for number in range(3))
    smaller = found[:, :, 3:].reshape(*found.shape[:2], -1, int((counts < flat.size).sum()), found.shape[-1])
    smaller = np.broadcast_to(smaller, (*smaller.shape[:2], 2, *smaller.shape[3:]))
    largest = np.repeat(whole[:, :, None, None], 2, 2)[:, :, :, : len(counts) - smaller.shape[3]]
    circuits = np.concatenate([smaller, largest], 3)
    span = whole.mean(-1) - nothing.mean(-1)
    if not span[MEASURES.index("nll")].all():
        raise InputError(
            f"ablating all {flat.size:,} scored components changes no NLL, so no circuit of them has a faithfulness; "
            "need components that the paragraphs depend on"
        )
    span = np.where(span == 0, np.nan, span)
    kept = (circuits.mean(-1) - nothing.mean(-1)[:, :, None, None]) / span[:, :, None, None]
    size = counts / flat.size
    cpr, cmd = _area(kept, size, (0.0, 1.0)), _area(np.abs(1 - kept), size, (1.0, 0.0))
    ranked = ["measure", "ablation", "ranking"]
    data: dict[str, Any] = {
        "faithfulness": ([*ranked, "share"], kept, {"units": "1", "higher": "the circuit keeps more of the measure"}),
        "cpr": (ranked, cpr, {"units": "1", "higher": "the ranking is better"}),
        "cmd": (ranked, cmd, {"units": "1", "higher": "the circuits are further from the whole model"}),
        "without_negative": (
            ["measure", "ablation"],
            (positive.mean(-1) - nothing.mean(-1)) / span,
            {"units": "1", "higher": "components with scores below zero work more against the measure"},
        ),
        "score": ([*ranked, "share", "paragraph"], circuits, {"units": "em: tokens; nll: nats per token"}),
        "intact": (["measure", "paragraph"], whole[:, 0], {"units": "em: tokens; nll: nats per token"}),
        "nothing": (["measure", "ablation", "paragraph"], nothing, {"units": "em: tokens; nll: nats per token"}),
    }
    coords = {"measure": list(MEASURES), "ablation": ablations, "ranking": list(get_args(Ranking))}
    return xr.Dataset(data, {**coords, "share": size, "components": ("share", counts), "paragraph": ids})


def _area(
    values: Float[np.ndarray, "*row size"], size: Float[np.ndarray, " size"], ends: tuple[float, float]
) -> Float[np.ndarray, "*row"]:
    """Trapezia over sizes from 0 to 1; nothing and the whole model, whose values are the ends, need no run."""
    shape = values.shape[:-1]
    first, last = (np.full((*shape, 1), end) for end in ends)
    whole = size[-1] == 1
    heights = np.concatenate([first, values, *([] if whole else [last])], -1)
    widths = np.diff(np.concatenate([[0.0], size, [] if whole else [1.0]]))
    return ((heights[..., 1:] + heights[..., :-1]) / 2 * widths).sum(-1)
