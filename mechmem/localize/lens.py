"""The logit lens: what the model would predict after each layer, with or without some heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mechmem.data.bounds import Count, Seed
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.localize.ablation_runs import AblationMethod, AblationRuns
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.forward import advance, check_fit, residual_before, unembed_continuation
from mechmem.model.head_names import heads_of
from mechmem.model.hooks import recording, with_hooks
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public


@public("run", renamed={"paras": "paragraphs"})
def logit_lens(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    without: Sequence[tuple[int, int] | str] = (),
    method: AblationMethod = "mean",
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Read every layer's residual stream through the final norm and the unembedding (nostalgebraist 2020).

    Depth d is the stream that enters layer d; depth n_layers is the end of the body, so its values are the model's own.

    Args:
        model: left as it is; hooks on it act as usual.
        paragraphs: whose continuations are read.
        without: heads that are ablated together, (layer, head) pairs or names like "L1H2"; none: the model as it is.
        method: how they are ablated, as `ablate_heads`.
        seed: as `ablate_heads`.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset: top[paragraph, depth, pos], whether the true token is the first choice; nll[paragraph, depth, pos] of
        the true token, nats (higher: less expected); first[paragraph, pos], the depth from which on the true token is
        the first choice up to the end (lower: decided earlier), n_layers + 1 where it is not at the end. `pos` is that
        of the token that is predicted.

    Raises:
        InputError: a head that the model does not have, or as `ablate_heads`.
    """
    check_fit(model, paragraphs)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    ablated = heads_of(model, without) if without else []
    size = chosen_batch_size(batch_size, model.W_E.device, 16)
    runs = AblationRuns(model, paragraphs, method=method, seed=seed, batch_size=size) if ablated else None
    gone = torch.zeros(layers, heads, dtype=torch.bool)
    for layer, head in ablated:
        gone[layer, head] = True
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(layers)]
    tops, losses = [], []
    for batch in batches(len(paragraphs), size, progress):
        rows = torch.arange(batch.start, batch.stop)
        hooks = {} if runs is None else runs.hooks(gone.expand(len(rows), -1, -1), rows)
        with torch.no_grad(), with_hooks(model, hooks):
            embedded = residual_before(model, paragraphs.tokens[rows].to(model.cfg.device), 0)
            with recording(model, names) as recorded:
                advance(model, embedded, 0, layers)
        depths = [embedded, *(recorded[name] for name in names)]
        found = [_read(model, depth, paragraphs.continuation[rows], paragraphs.prefix_len) for depth in depths]
        tops.append(torch.stack([top for top, _ in found], 1))
        losses.append(torch.stack([nll for _, nll in found], 1))
    return _dataset(torch.cat(tops).numpy(), torch.cat(losses).numpy(), paragraphs, ablated)


@torch.no_grad()
def _read(model: HookedTransformer, residual: Tensor, true: Tensor, prefix_len: int) -> tuple[Tensor, Tensor]:
    logits = unembed_continuation(model, residual, prefix_len)
    true = true.to(logits.device)
    nll = logits.logsumexp(-1) - logits.gather(-1, true[..., None])[..., 0]
    return (logits.argmax(-1) == true).cpu(), nll.cpu()


def _dataset(
    top: np.ndarray, nll: np.ndarray, paragraphs: Paragraphs, without: Sequence[tuple[int, int]]
) -> xr.Dataset:
    # From the end backwards: how many depths in a row have the true token on top.
    run = np.flip(np.cumprod(np.flip(top, 1), 1), 1).sum(1)
    depths = top.shape[1]
    data = {
        "top": (("paragraph", "depth", "pos"), top, {"higher": "the true token is the first choice"}),
        "nll": (("paragraph", "depth", "pos"), nll, {"units": "nats", "higher": "the true token is less expected"}),
        "first": (("paragraph", "pos"), depths - run, {"units": "depth", "higher": "decided later"}),
    }
    positions = np.arange(paragraphs.prefix_len, paragraphs.tokens.shape[1])
    coords = {"paragraph": paragraphs.ids, "depth": np.arange(depths), "pos": positions}
    return xr.Dataset(data, coords, {"without": str([tuple(pair) for pair in without])})
