"""The logit lens: what the model would predict after each layer, with or without some heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
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
        the true token, nats (higher: less expected), and its rank, 1 for the first choice; choice[paragraph, depth,
        pos], the id of the first choice; first[paragraph, pos], the depth from which on the true token is the first
        choice up to the end (lower: decided earlier), n_layers + 1 where it is not at the end. `pos` is that of the
        token that is predicted, and the coordinate token[paragraph, pos] its id.

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
    found = []
    for batch in batches(len(paragraphs), size, progress):
        rows = torch.arange(batch.start, batch.stop)
        hooks = {} if runs is None else runs.hooks(gone.expand(len(rows), -1, -1), rows)
        with torch.no_grad(), with_hooks(model, hooks):
            embedded = residual_before(model, paragraphs.tokens[rows].to(model.cfg.device), 0)
            with recording(model, names) as recorded:
                advance(model, embedded, 0, layers)
        depths = [embedded, *(recorded[name] for name in names)]
        read = [_read(model, depth, paragraphs.continuation[rows], paragraphs.prefix_len) for depth in depths]
        found.append([torch.stack(values, 1) for values in zip(*read, strict=True)])
    whole = [torch.cat(values).numpy() for values in zip(*found, strict=True)]
    return _dataset(*whole, paragraphs=paragraphs, without=ablated)


@torch.no_grad()
def _read(
    model: HookedTransformer, residual: Tensor, true: Tensor, prefix_len: int
) -> tuple[Int[Tensor, "row pos"], Float[Tensor, "row pos"], Int[Tensor, "row pos"]]:
    """The first choice, the true token's NLL, and how many tokens have a higher logit than it."""
    logits = unembed_continuation(model, residual, prefix_len)
    own = logits.gather(-1, true.to(logits.device)[..., None])
    nll = logits.logsumexp(-1) - own[..., 0]
    return logits.argmax(-1).cpu(), nll.cpu(), (logits > own).sum(-1).cpu()


def _dataset(
    choice: np.ndarray,
    nll: np.ndarray,
    above: np.ndarray,
    *,
    paragraphs: Paragraphs,
    without: Sequence[tuple[int, int]],
) -> xr.Dataset:
    true = paragraphs.continuation.cpu().numpy()
    top = choice == true[:, None]
    # From the end backwards: how many depths in a row have the true token on top.
    run = np.flip(np.cumprod(np.flip(top, 1), 1), 1).sum(1)
    depths = top.shape[1]
    data = {
        "top": (("paragraph", "depth", "pos"), top, {"higher": "the true token is the first choice"}),
        "nll": (("paragraph", "depth", "pos"), nll, {"units": "nats", "higher": "the true token is less expected"}),
        "rank": (("paragraph", "depth", "pos"), above + 1, {"units": "1", "higher": "the true token is less expected"}),
        "choice": (("paragraph", "depth", "pos"), choice, {"units": "token id"}),
        "first": (("paragraph", "pos"), depths - run, {"units": "depth", "higher": "decided later"}),
    }
    positions = np.arange(paragraphs.prefix_len, paragraphs.tokens.shape[1])
    coords = {"paragraph": paragraphs.ids, "depth": np.arange(depths), "pos": positions}
    coords |= {"token": (("paragraph", "pos"), true)}
    return xr.Dataset(data, coords, {"without": str([tuple(pair) for pair in without])})
