"""Path patching: who feeds a head's queries, keys or values. Exact, one path at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.localize.metrics import UNITS, Metric, MetricName, metric_name, metric_of
from mechmem.localize.patch_effects import HIGHER, check_metric
from mechmem.localize.patch_pairs import OneDirection, Pairs, ScoredAt, check_pairs
from mechmem.localize.patch_scores import PatchScores
from mechmem.model.head_names import heads_of
from mechmem.model.lean.attention import attend
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.lean.trace import Trace, trace
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

INTO = ("q", "k", "v")
PAIRS = 8
# Positions of all rows of one forward.
AT_ONCE = 3200


@public("refuse")
def patch_paths(
    model: HookedTransformer,
    clean: Paragraphs,
    corrupt: Paragraphs,
    receiver: str | tuple[int, int],
    *,
    direction: OneDirection = "noising",
    metric: Metric | MetricName = "nll",
    scored: ScoredAt = "continuation",
    average: bool = True,
    progress: ProgressLike = None,
) -> xr.DataArray:
    """The exact effect of each direct path from a sender into one head's queries, keys or values.

    A path is what a sender adds to the residual stream that the receiver reads, and nothing else: the sender's output
    is the source run's for the receiver's q (k, v) alone, at all positions, while everything between the two is as in
    the base run. From the receiver on all is computed anew (Wang et al. 2022, arXiv 2211.00593, section 3.1, with
    MLPs between the two kept, so that a path is one edge).

    Args:
        model: left as it is.
        clean: as `patch`.
        corrupt: as `patch`.
        receiver: a head of layer 1 or later, "L1H2" or (1, 2).
        direction: as `patch`.
        metric: as `patch`.
        scored: "continuation", "impact" or token positions, as `patch`.
        average: mean over pairs; False keeps the dimension `paragraph`.
        progress: called with (paths done, paths), over all pairs.

    Returns:
        DataArray [into, sender] of metric(patched run) minus metric(base run). `into`: q, k, v. `sender`: "all" (the
        whole stream that the receiver reads), "embed" (token and position), "L0H0" and so on, and "L0MLP": all heads
        and MLPs of lower layers. What the senders but "all" add to the stream sums to what "all" adds.

    Raises:
        InputError: as `patch`, or a receiver in layer 0, which only the embeddings feed.
    """
    ((layer, head),) = heads_of(model, [receiver])
    if layer == 0:
        raise InputError("got a receiver in layer 0, which the embeddings alone feed; need a head of layer 1 or later")
    metric = metric_of(metric)
    check_choice("direction", direction, OneDirection)
    pairs = check_pairs(model, clean, corrupt, direction, scored)
    lean, report = LeanModel(model), as_callback(progress, "patch_paths")
    senders = _senders(model, layer)
    effects = np.empty((len(pairs.clean), len(INTO), len(senders)))
    ends, done = [], 0
    with torch.no_grad(), fast_float32(lean.device):
        for first in range(0, len(pairs.clean), PAIRS):
            rows = slice(first, first + PAIRS)
            paths = _Paths(lean, pairs.select(rows), metric, (layer, head))
            ends.append(paths.ends)
            for into, part, values in paths.effects(len(senders)):
                effects[rows, into, part] = values.double().cpu().numpy().T
                done += values.numel()
                if report is not None:
                    report(done, effects.size)
    base, source = torch.cat(ends, 1).double().cpu().numpy()
    check_metric(metric, base, source)
    name = metric_name(metric)
    attrs = {
        "receiver": f"L{layer}H{head}",
        "direction": direction,
        "metric": name,
        "scored": str(scored),
        "units": UNITS.get(name, "unit of the metric"),
        "higher": HIGHER,
        "base": float(base.mean()),
        "source": float(source.mean()),
        "pairs": len(base),
    }
    coords = {"paragraph": pairs.ids, "into": list(INTO), "sender": senders}
    result = xr.DataArray(effects, coords, ["paragraph", "into", "sender"], "effect", attrs)
    return result.mean("paragraph", keep_attrs=True) if average else result


def _senders(model: HookedTransformer, below: int) -> list[str]:
    names = ["all", "embed"]
    for layer in range(below):
        names += [f"L{layer}H{head}" for head in range(model.cfg.n_heads)]
        names += [] if model.cfg.attn_only else [f"L{layer}MLP"]
    return names


class _Paths:
    """All paths into one head, of some pairs.

    1. Run both paragraphs of each pair once, and take what each sender adds in one and the other.
    2. Add the difference to the stream that enters the receiver's layer, and take the receiver's q, k or v from it.
    3. Attend with it; the difference of the receiver's output goes through W_O, and all later layers follow.
    """

    def __init__(self, lean: LeanModel, pairs: Pairs, metric: Metric, receiver: tuple[int, int]) -> None:
        self._lean, (self._layer, self._head) = lean, receiver
        base = trace(lean, pairs.base, ("resid_pre", "z", "mlp_out", "attn_out"))
        source = trace(lean, pairs.source, ("resid_pre", "z", "mlp_out"))
        self._scores = PatchScores(lean, pairs, metric, base.final)
        every = torch.arange(len(pairs.base), device=lean.device)
        self.ends = torch.stack([self._scores.score(run.final, every) for run in (base, source)])
        self._added = _differences(lean, base, source, self._layer)
        self._entered, self._attention = base["resid_pre"][self._layer], base["attn_out"][self._layer]

    def effects(self, senders: int) -> Iterator[tuple[int, slice, Float[Tensor, "sender pair"]]]:
        """Number of q, k or v; which senders; the effect of each on each pair."""
        pairs, length = self._entered.shape[:2]
        step = max(1, AT_ONCE // (pairs * length))
        for into in range(len(INTO)):
            for first in range(0, senders, step):
                part = slice(first, min(first + step, senders))
                yield into, part, self._patched(into, self._added[part])

    def _patched(self, into: int, added: Float[Tensor, "sender pair pos d_model"]) -> Float[Tensor, "sender pair"]:
        lean, layer = self._lean, self._lean.layers[self._layer]
        senders, pairs, length = added.shape[:3]
        rotation = lean.rotation(0, length, added.dtype)
        own = lean.queries_keys_values(layer, self._entered, rotation)
        fed = lean.queries_keys_values(layer, (self._entered + added).flatten(0, 1), rotation)
        # One head alone, and one of its three inputs from the changed stream.
        query, key, value = (each[:, self._head, None] for each in own)
        rows = [each.repeat(senders, 1, 1, 1) for each in (query, key, value)]
        rows[into] = fed[into][:, self._head, None]
        seen = lean.visible(0, length, layer.window)
        plain = attend(query, key, value, seen, layer.scale).repeat(senders, 1, 1, 1)
        changed = attend(rows[0], rows[1], rows[2], seen, layer.scale) - plain
        w_o = layer.w_o.view(lean.n_heads, lean.d_head, -1)[self._head]
        attention = self._attention.repeat(senders, 1, 1) + changed[:, 0] @ w_o
        residual = lean.after_attention(layer, self._entered.repeat(senders, 1, 1), attention)
        final = lean.final_norm(lean.run(residual, first=self._layer + 1))
        pair = torch.arange(pairs, device=final.device).repeat(senders)
        return (self._scores.score(final, pair) - self.ends[0][pair]).view(senders, pairs)


def _differences(lean: LeanModel, base: Trace, source: Trace, below: int) -> Float[Tensor, "sender pair pos d_model"]:
    """What each sender adds to the stream in the source run minus what it adds in the base run."""
    parts = [(source["resid_pre"][layer] - base["resid_pre"][layer])[None] for layer in (below, 0)]
    mlps = "mlp_out" in base.sites
    for layer in range(below):
        z = source["z"][layer] - base["z"][layer]
        w_o = lean.layers[layer].w_o.view(lean.n_heads, lean.d_head, -1)
        by_head = einsum(z, w_o, "pair head pos d_head, head d_head d_model -> pair head pos d_model")
        parts.append(rearrange(by_head, "pair head pos d_model -> head pair pos d_model"))
        if mlps:
            parts.append((source["mlp_out"][layer] - base["mlp_out"][layer])[None])
    return torch.cat(parts)
