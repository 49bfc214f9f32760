"""What a detector is trained on: both sets and predictable copies, as one set of paragraphs with clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from mechmem.data.counts import cluster
from mechmem.data.errors import InputError
from mechmem.data.hashes import row_hashes
from mechmem.data.paragraphs import Paragraphs
from mechmem.detect.training.predictable import predictable_copies


@dataclass(frozen=True, eq=False)
class TrainingTexts:
    """Paragraphs of both sets and the copies, in this order.

    Attributes:
        paragraphs: all of them.
        clusters: label of each one's cluster; a copy is in that of its original.
        memorized: whether it was given as memorized: which part it goes to is decided before the model has spoken.
    """

    paragraphs: Paragraphs
    clusters: Int[np.ndarray, " paragraph"]
    memorized: Bool[np.ndarray, " paragraph"]

    def select(self, rows: Int[np.ndarray, " chosen"]) -> TrainingTexts:
        """Some of them."""
        return TrainingTexts(self.paragraphs.select(rows), self.clusters[rows], self.memorized[rows])


def training_texts(memorized: Paragraphs, other: Paragraphs, predictable: float, seed: int) -> TrainingTexts:
    """Put both sets together, and add predictable copies of the others.

    Near-duplicates are those of the column `cluster`, where both sets have it, or else those that `mechmem.cluster`
    finds among both.

    Args:
        memorized: one set.
        other: the other.
        predictable: how many copies, as a share of the others.
        seed: of which are copied and how.

    Raises:
        InputError: sets of other lengths, prefixes or tokenizers, or a paragraph that is in both.
    """
    shapes = [(each.tokens.shape[1], each.prefix_len) for each in (memorized, other)]
    if shapes[0] != shapes[1] and len(memorized) and len(other):
        (length, prefix), (other_length, other_prefix) = shapes
        raise InputError(
            f"got memorized paragraphs of {length} tokens with a prefix of {prefix} and others of {other_length} with "
            f"{other_prefix}; need both alike: cut them to one length"
        )
    if not (memorized.tokenizer is None or other.tokenizer is None or memorized.tokenizer == other.tokenizer):
        raise InputError(
            f"got paragraphs of the tokenizers {memorized.tokenizer} and {other.tokenizer}; need one tokenizer's"
        )
    tokens = torch.cat([memorized.tokens.cpu(), other.tokens.cpu()]) if len(other) else memorized.tokens.cpu()
    _refuse_shared(tokens, len(memorized))
    both = Paragraphs(tokens, memorized.prefix_len, tokenizer=memorized.tokenizer or other.tokenizer)
    if memorized.has("cluster") and other.has("cluster"):
        labels = np.concatenate([memorized.clusters, other.clusters])
        _, clusters = np.unique(labels, return_inverse=True)
    else:
        clusters = cluster(both, run=min(25, tokens.shape[1])) if len(both) else np.zeros(0, dtype=np.int64)
    truth = np.arange(len(both)) < len(memorized)
    if not len(other):
        return TrainingTexts(both, clusters, truth)
    copies, rows = predictable_copies(other, round(predictable * len(other)), seed)
    whole = Paragraphs(torch.cat([tokens, copies.tokens.cpu()]), both.prefix_len, tokenizer=both.tokenizer)
    of_copies = clusters[len(memorized) + rows]
    return TrainingTexts(
        whole, np.concatenate([clusters, of_copies]), np.concatenate([truth, np.zeros(len(rows), dtype=bool)])
    )


def prefix_hashes(paragraphs: Paragraphs) -> Int64[np.ndarray, " paragraph"]:
    """A number for each prefix, by which a detector knows what it was trained on."""
    return row_hashes(paragraphs.prefix.cpu().numpy()).view(np.int64)


def _refuse_shared(tokens: Int[Tensor, "paragraph pos"], memorized: int) -> None:
    hashes = row_hashes(tokens.numpy())
    shared = np.isin(hashes[memorized:], hashes[:memorized])
    if shared.any():
        raise InputError(
            f"got {int(shared.sum())} paragraphs that are in memorized and in other; need sets without common "
            "paragraphs: mechmem.split(paragraphs, scores) makes such"
        )
