"""What each attention head is worth: take its output away and score the paragraphs again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import xarray as xr
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress, part_of
from mechmem.measure.scores import score_logits
from mechmem.model.forward import advance, check_fit, residual_before, unembed_continuation
from mechmem.model.hooks import Hook, recording, with_hooks
from mechmem.model.load import HookedTransformer

HeadOutput = Float[Tensor, "paragraph pos head d_head"]


def ablate_heads(
    model: HookedTransformer,
    paras: Paragraphs,
    *,
    method: Literal["mean", "zero", "resample"] = "mean",
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Ablate every head alone, at all positions, and measure what exact match and NLL lose.

    A head's output is its `hook_z`, before W_O. It is replaced at every position of prefix and continuation; all
    that follows is computed anew. Scores are teacher-forced, as in `score`.

    1. Carry all paragraphs layer by layer; before a layer the residual stream is the same with and without ablation.
    2. From there run each (head, paragraph) pair, many pairs a batch, with the head's output replaced.
    3. Compare with the end of the unablated run.

    Args:
        model: left as it is; hooks on it act as usual.
        paras: their mean output is what "mean" replaces by: near-duplicates among them make it less of a neutral one.
        method: "mean": the mean output over the paragraphs at the same position; "zero": nothing; "resample": the
            output in another paragraph, the same one for every head, none its own.
        seed: decides which paragraph stands in ("resample" alone).
        batch_size: (head, paragraph) pairs of one forward.
        progress: called with (pairs done, pairs).

    Returns:
        Dataset [layer, head], means over paragraphs: em_drop (tokens) and nll_rise (nats per token), both against the
        unablated run. Positive: the head is needed; higher: more is lost without it.

    Raises:
        InputError: an unknown method, fewer than two paragraphs for "mean" or "resample", or paragraphs or a model
            that cannot be used.
    """
    check_fit(model, paras)
    stand_in = _stand_in(method, len(paras), seed)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    means = torch.zeros(2, layers, heads, dtype=torch.float64)
    with torch.no_grad():
        residual = _embed(model, paras, batch_size)
        for layer in range(layers):
            z, after = _advance_recording_z(model, residual, layer, batch_size)
            done = None if progress is None else part_of(progress, layer, layers)
            means[:, layer] = _ablate_layer(model, paras, residual, stand_in(z), layer, batch_size, done)
            residual = after
        whole = [_scores(model, rows, layers, paras, i) for rows, i in _batches(residual, batch_size)]
    em, nll = torch.cat(whole, 1).mean(1)
    return _dataset(em - means[0], means[1] - nll, {"method": method, "seed": seed, "paragraphs": len(paras)})


def _embed(model: HookedTransformer, paras: Paragraphs, batch_size: int) -> Float[Tensor, "paragraph pos d_model"]:
    parts = paras.tokens.to(model.cfg.device).split(batch_size)
    return torch.cat([residual_before(model, part, 0) for part in parts])


def _advance_recording_z(
    model: HookedTransformer, residual: Float[Tensor, "paragraph pos d_model"], layer: int, batch_size: int
) -> tuple[HeadOutput, Float[Tensor, "paragraph pos d_model"]]:
    """Head outputs of one layer, and the residual stream after it."""
    name = f"blocks.{layer}.attn.hook_z"
    outputs, residuals = [], []
    with recording(model, [name]) as recorded:
        for rows, _ in _batches(residual, batch_size):
            residuals.append(advance(model, rows, layer, layer + 1))
            outputs.append(recorded[name])
    return torch.cat(outputs), torch.cat(residuals)


def _ablate_layer(
    model: HookedTransformer,
    paras: Paragraphs,
    residual: Float[Tensor, "paragraph pos d_model"],
    replacement: HeadOutput,
    layer: int,
    batch_size: int,
    progress: Progress | None,
) -> Float[Tensor, "measure head"]:
    """Mean EM and mean NLL with each head of a layer ablated."""
    pairs = torch.cartesian_prod(torch.arange(model.cfg.n_heads), torch.arange(len(paras))).to(residual.device)
    results, done = [], 0
    for head, paragraph in ((part[:, 0], part[:, 1]) for part in pairs.split(batch_size)):
        hook = _replacing(replacement, head, paragraph)
        with with_hooks(model, {f"blocks.{layer}.attn.hook_z": hook}):
            results.append(_scores(model, residual[paragraph], layer, paras, paragraph))
        done += len(head)
        if progress is not None:
            progress(done, len(pairs))
    return reduce(torch.cat(results, 1), "measure (head paragraph) -> measure head", "mean", paragraph=len(paras))


def _replacing(replacement: HeadOutput, head: Int[Tensor, " row"], paragraph: Int[Tensor, " row"]) -> Hook:
    """A hook that gives each row the replacement of its own head in its own paragraph."""
    row = torch.arange(len(head), device=head.device)

    def replace(z: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens passes both
        z = z.clone()
        z[row, :, head] = replacement[paragraph, :, head]
        return z

    return replace


def _scores(
    model: HookedTransformer,
    residual: Float[Tensor, "row pos d_model"],
    layer: int,
    paras: Paragraphs,
    paragraph: Int[Tensor, " row"],
) -> Float[Tensor, "measure row"]:
    """EM and NLL of rows that stand before a layer."""
    end = advance(model, residual, layer, model.cfg.n_layers)
    logits = unembed_continuation(model, end, paras.prefix_len)
    scores = score_logits(logits, paras.continuation[paragraph.cpu()])
    return torch.stack([scores[name].cpu().double() for name in ("em", "nll")])


def _batches(rows: Tensor, batch_size: int) -> list[tuple[Tensor, Int[Tensor, " row"]]]:
    """Views of at most `batch_size` rows, with the rows' numbers."""
    return list(zip(rows.split(batch_size), torch.arange(len(rows)).split(batch_size), strict=True))


def _stand_in(method: str, count: int, seed: int) -> Callable[[HeadOutput], HeadOutput]:
    """The function that turns a layer's head outputs into what replaces them."""
    if method not in ("mean", "zero", "resample"):
        raise InputError(f"method is '{method}'; wanted 'mean', 'zero' or 'resample'")
    if method == "zero":
        return torch.zeros_like
    if count < 2:
        raise InputError(
            f"{count} paragraph came for method '{method}', which takes the output of others; wanted at least two: "
            "give more paragraphs or use method='zero'"
        )
    if method == "mean":
        return lambda z: reduce(z, "paragraph pos head d_head -> 1 pos head d_head", "mean").expand_as(z)
    # One cycle through all paragraphs in random order: no paragraph stands in for itself.
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[order] = np.roll(order, -1)
    index = torch.from_numpy(other)
    return lambda z: z[index.to(z.device)]


def _dataset(
    em_drop: Float[Tensor, "layer head"], nll_rise: Float[Tensor, "layer head"], attrs: dict[str, str | int]
) -> xr.Dataset:
    dims, higher = ("layer", "head"), "more is lost without the head"
    return xr.Dataset(
        {
            "em_drop": (dims, em_drop.numpy(), {"units": "tokens", "higher": higher}),
            "nll_rise": (dims, nll_rise.numpy(), {"units": "nats per token", "higher": higher}),
        },
        {name: np.arange(size) for name, size in zip(dims, em_drop.shape, strict=True)},
        attrs,
    )
