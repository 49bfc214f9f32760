"""The QK and the OV circuit of every head: which tokens it favours, and what it writes when it reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from mechmem.data.bounds import Count
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.data.token_counts import as_counts
from mechmem.localize.rarity import rarest_weight
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.forward import check_fit
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.lean.trace import Trace, trace
from mechmem.model.lean.weights import norm_weights, unsupported
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.vocabulary import vocabulary

RAREST = 0.1
# Keys of the vocabulary computed at once.
TOKENS = 4096
WORDS = {
    "qk_spearman": ("rank correlation", "the constant query favours frequent tokens"),
    "qk_rare": ("attention score, before softmax", "the constant query favours rare tokens"),
    "direct": ("logits", "the head itself raises the true next token"),
    "direct_rare": ("logits", "what the head reads from rare tokens raises the true next token"),
    "written": ("units of the residual stream", "the head writes more"),
    "written_rare": ("units of the residual stream", "the head writes more of what it reads from rare tokens"),
    "v_norm": ("Frobenius norm", "larger value weights"),
    "o_norm": ("Frobenius norm", "larger output weights"),
    "ov_norm": ("Frobenius norm", "larger product of value and output weights"),
}


@public("refuse", renamed={"paras": "paragraphs"})
def head_circuits(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    unigram_counts: Any,
    *,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Each head's QK circuit against token frequency, and its OV circuit at rare tokens (Elhage et al. 2021).

    QK: the constant part of a head's query is its mean over the paragraphs at position prefix_len. Its score with the
    key of every token that occurs in the corpus, the key taken from the token's embedding alone (with the mean position
    embedding of the prefix, normalized as the layer does), says which tokens the head favours before any
    context. This is the direct path: all there is in layer 0, and less in higher layers.

    OV: what the head writes at the continuation's columns, in total and of what it reads from the rarest 10 % of the
    prefix's tokens: its size, and its direct contribution to the true next token's logit above the mean logit, with the
    final norm's scale as it is. A head may matter without any direct contribution: later MLPs may read what it writes.

    Args:
        model: left as it is.
        paragraphs: whose queries, patterns and values are used.
        unigram_counts: how often each token id occurs in the corpus, [d_vocab]: any array-like.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset [layer, head]: qk_spearman (negative: rare tokens' keys score higher), qk_rare (mean score of the
        rarest 10 % of the tokens that occur minus that of all), direct, direct_rare (logits), written, written_rare
        (mean norm), v_norm, o_norm, ov_norm (weights as they are).

    Raises:
        InputError: counts that do not fit, fewer than two tokens that occur, or paragraphs or a model that cannot be
            used.
    """
    check_fit(model, paragraphs)
    counts = as_counts(unigram_counts, model.cfg.d_vocab, vocabulary(model))
    if (counts > 0).sum() < 2:
        raise InputError(
            f"got counts above zero for {(counts > 0).sum()} tokens; need at least 2: give the counts of the corpus"
        )
    reason = unsupported(model)
    if reason:
        raise InputError(f"{reason}; need a GPT-Neo, GPT-2 or GPT-NeoX")
    lean = LeanModel(model)
    size = chosen_batch_size(batch_size, lean.device, 8)
    rare = torch.from_numpy(rarest_weight(counts[paragraphs.prefix.cpu().numpy()], RAREST)).float()
    query: Tensor | float = 0.0
    writes: Tensor | float = 0.0
    with torch.no_grad(), fast_float32(lean.device):
        for rows in batches(len(paragraphs), size, progress):
            run = trace(lean, paragraphs.tokens[rows], ("q", "v", "z", "pattern", "resid_post"))
            query = query + run["q"][:, :, :, paragraphs.prefix_len].sum(1) / len(paragraphs)
            tokens, prefix_len = paragraphs.tokens[rows].to(lean.device), paragraphs.prefix_len
            target = _direction(model, run["resid_post"][-1], tokens, prefix_len)
            written = _writes(lean, run, target, rare[rows].to(lean.device), prefix_len)
            writes = writes + written / len(paragraphs)
        assert isinstance(query, Tensor) and isinstance(writes, Tensor)
        spearman, preference = _keys(lean, query, counts, paragraphs.prefix_len)
        values = [spearman, preference, *writes.double().cpu().numpy(), *_norms(lean)]
    data = {
        name: (("layer", "head"), value, {"units": unit, "higher": higher})
        for (name, (unit, higher)), value in zip(WORDS.items(), values, strict=True)
    }
    coords = {"layer": np.arange(model.cfg.n_layers), "head": np.arange(model.cfg.n_heads)}
    return xr.Dataset(data, coords, {"query_pos": paragraphs.prefix_len, "paragraphs": len(paragraphs)})


def _keys(
    lean: LeanModel, query: Float[Tensor, "layer head d_head"], counts: Float[np.ndarray, " d_vocab"], prefix_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's correlation of score and count over the tokens that occur, and what the rarest have above the mean."""
    known = np.flatnonzero(counts)
    # Models with rotary positions turn keys: one in the middle of the prefix stands for all.
    rotation = lean.rotation(prefix_len // 2, 1, lean.dtype)
    scores = []
    for chunk in torch.from_numpy(known).to(lean.device).split(TOKENS):
        embedded = lean.embed(chunk[:, None], past=0)
        if lean.positions is not None:
            embedded += lean.positions[:prefix_len].mean(0) - lean.positions[0]
        keys = [lean.queries_keys_values(layer, embedded, rotation)[1][:, :, 0] for layer in lean.layers]
        scale = torch.tensor([layer.scale for layer in lean.layers], device=lean.device)[:, None, None]
        scores.append(torch.einsum("ltha,lha->lht", torch.stack(keys), query) * scale)
    score = torch.cat(scores, -1).double().cpu().numpy()
    ranked, frequency = rankdata(score, axis=-1), rankdata(counts[known])
    ranked, frequency = ranked - ranked.mean(-1, keepdims=True), frequency - frequency.mean()
    length = np.linalg.norm(ranked, axis=-1) * np.linalg.norm(frequency)
    with np.errstate(invalid="ignore"):
        spearman = ranked @ frequency / np.where(length == 0, np.nan, length)
    weight = rarest_weight(counts[known], RAREST)
    return spearman, score @ weight / weight.sum() - score.mean(-1)


def _direction(
    model: HookedTransformer,
    end: Float[Tensor, "pair pos d_model"],
    tokens: Int[Tensor, "pair pos"],
    prefix_len: int,
) -> Float[Tensor, "pair column d_model"]:
    """What one more unit of the residual stream does to the true next token's logit above the mean logit."""
    unembed = model.W_U.detach()
    target = unembed.T[tokens[:, prefix_len:]] - unembed[:, : vocabulary(model)].mean(-1)
    norm = norm_weights(model.ln_final, unembed.dtype)
    target = target if norm is None else target * norm[0]
    target = target - target.mean(-1, keepdim=True)
    residual = end[:, prefix_len - 1 : -1]
    return target / (residual.var(-1, correction=0, keepdim=True) + model.cfg.eps).sqrt()


def _writes(
    lean: LeanModel,
    run: Trace,
    target: Float[Tensor, "pair column d_model"],
    rare: Float[Tensor, "pair key_pos"],
    prefix_len: int,
) -> Float[Tensor, "measure layer head"]:
    """direct, direct_rare, written and written_rare: sums over paragraphs of means over the continuation's columns."""
    rows = []
    for number, layer in enumerate(lean.layers):
        output = layer.w_o.view(lean.n_heads, lean.d_head, -1)
        toward = torch.einsum("pcm,ham->phca", target, output)
        # |z W_O|^2 = z (W_O W_O^T) z: no need of what every head writes at every column.
        square = output @ output.mT
        z = run["z"][number][:, :, prefix_len - 1 : -1]
        seen = run["pattern"][number][:, :, prefix_len - 1 : -1, :prefix_len] * rare[:, None, None]
        read = seen @ run["v"][number][:, :, :prefix_len]
        direct = [torch.einsum("phca,phca->phc", part, toward) for part in (z, read)]
        size = [torch.einsum("phca,hab,phcb->phc", part, square, part).clamp(min=0).sqrt() for part in (z, read)]
        rows.append(torch.stack([*direct, *size]).mean(-1).sum(1))
    return torch.stack(rows, 1)


def _norms(lean: LeanModel) -> list[np.ndarray]:
    """Frobenius norms of W_V, W_O and their product, [layer, head] each."""
    rows = []
    for layer in lean.layers:
        width = lean.n_heads * lean.d_head
        value = layer.w_qkv[:, 2 * width :].reshape(-1, lean.n_heads, lean.d_head).permute(1, 0, 2).double()
        output = layer.w_o.view(lean.n_heads, lean.d_head, -1).double()
        # |V O|^2 = trace(V^T V O O^T)
        product = torch.einsum("hab,hba->h", value.mT @ value, output @ output.mT).clamp(min=0).sqrt()
        rows.append(torch.stack([value.norm(dim=(1, 2)), output.norm(dim=(1, 2)), product]))
    return list(torch.stack(rows, 1).cpu().numpy())
