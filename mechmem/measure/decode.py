"""What the model really says: greedy decoding with kept keys and values, and how far it is from the true text."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from mechmem.data.progress import Progress
from mechmem.model.lean.model import KeyValues, LeanModel, fast_float32


def greedy_continuations(
    lean: LeanModel,
    tokens: Int[Tensor, "paragraph pos"],
    prefix_len: int,
    em: Int[np.ndarray, " paragraph"],
    rival: Int[np.ndarray, " paragraph"],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Int[np.ndarray, "paragraph continuation_pos"]:
    """Greedy continuations of paragraphs whose leading matches are known: only what follows them is decoded.

    Args:
        lean: the model.
        tokens: prefix and true continuation, on any device.
        prefix_len: tokens of the prefix.
        em: leading matches of each paragraph; up to there the greedy continuation is the true one.
        rival: what the model says instead at the first mismatch (any value where there is none).
        batch_size: paragraphs decoded together, those with like EM beside one another.
        progress: called with (paragraphs decoded, paragraphs to decode).

    Returns:
        Ids. Ties after the first mismatch are settled in the model's own precision.
    """
    count, length = len(tokens), tokens.shape[1] - prefix_len
    tokens = tokens.cpu()
    said = tokens[:, prefix_len:].clone()
    matched, first = torch.as_tensor(em), torch.as_tensor(rival)
    order = torch.argsort(matched, stable=True)
    order = order[matched[order] < length]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        said[rows] = _decode(lean, tokens[rows], prefix_len, matched[rows], first[rows])
        if progress is not None:
            progress(min(start + batch_size, len(order)), len(order))
    assert said.shape == (count, length)
    return said.numpy()


def _decode(
    lean: LeanModel,
    tokens: Int[Tensor, "paragraph pos"],
    prefix_len: int,
    matched: Int[Tensor, " paragraph"],
    rival: Int[Tensor, " paragraph"],
) -> Int[Tensor, "paragraph continuation_pos"]:
    length = tokens.shape[1] - prefix_len
    said = tokens[:, prefix_len:].clone()
    said[torch.arange(len(said)), matched] = rival
    known = int(matched.min()) + 1
    kept = KeyValues(lean, len(tokens), tokens.shape[1])
    new = torch.cat([tokens[:, :prefix_len], said[:, :known]], 1)
    with fast_float32(lean.device):
        for step in range(known, length):
            best = lean.unembed(lean.forward(new, kept)[:, -1]).argmax(-1).cpu()
            said[:, step] = torch.where(step > matched, best, said[:, step])
            new = said[:, step : step + 1]
    return said


def edit_distances(
    said: Int[np.ndarray, "paragraph pos"], true: Int[np.ndarray, "paragraph pos"]
) -> Int[np.ndarray, " paragraph"]:
    """Levenshtein distance in tokens: insertions, deletions and substitutions that turn one text into the other."""
    pairs = zip(said.tolist(), true.tolist(), strict=True)
    return np.array([Levenshtein.distance(first, second) for first, second in pairs], dtype=np.int64)
