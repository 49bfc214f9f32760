"""Component scores of the gradient of a mean, with intervals: a jackknife over blocks of clusters.

The score of a component is the largest |entry| of the gradient of the mean NLL. Resampling paragraphs would need every
paragraph's own gradient of every weight; leaving out one block of clusters at a time needs one gradient a block.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from scipy.stats import t
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.gradients import weight_gradients
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import reduce_by_component

BLOCKS, LEVEL = 8, 0.95


@dataclass(frozen=True)
class Jackknife:
    """Scores of all paragraphs, and without each block.

    Attributes:
        scores: [layer, component], largest |gradient| of the mean NLL over all paragraphs.
        without: [block, layer, component], the same over the paragraphs of all other blocks.
    """

    scores: xr.DataArray
    without: Float[np.ndarray, "block layer component"]

    def estimate(self, statistic: Callable[[np.ndarray], float]) -> tuple[float, float | None, float | None]:
        """A statistic of the scores [layer, component] with the ends of its 95 % interval; None: one block alone.

        The interval is the value ± t * SE with SE² = (K - 1) / K * the sum of squared deviations of the K values
        without a block from their mean.
        """
        value, count = float(statistic(self.scores.values)), len(self.without)
        if count < 2:
            return value, None, None
        others = np.array([statistic(scores) for scores in self.without])
        error = np.sqrt((count - 1) / count * ((others - others.mean()) ** 2).sum())
        half = float(t.ppf((1 + LEVEL) / 2, count - 1) * error)
        return value, value - half, value + half


def component_jackknife(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    seed: int = 0,
    blocks: int = BLOCKS,
    progress: Callable[[int, int], None] | None = None,
) -> Jackknife:
    """Gradients of the mean NLL, block by block, reduced to component scores.

    1. Whole clusters are dealt to blocks, the largest first, each to the block with the fewest paragraphs.
    2. Each block's gradient of the sum of its paragraphs' NLL is kept on disk, 4 bytes a weight.
    3. The scores of all, and without each block, come from the total.

    Args:
        model: left as it is.
        paragraphs: with clusters; at least two.
        seed: of the order among clusters of one size.
        blocks: at most this many.
        progress: called with (paragraphs done, paragraphs).
    """
    members = block_labels(paragraphs.clusters, blocks, seed)
    count, done = len(paragraphs), 0
    with tempfile.TemporaryDirectory(prefix="mechmem-") as place:
        files: list[Path] = []
        total: dict[str, Tensor] = {}
        for block in range(int(members.max()) + 1):
            part = paragraphs.select(np.flatnonzero(members == block))
            found = {name: value * len(part) for name, value in weight_gradients(model, part).items()}
            total = {name: value + total[name] for name, value in found.items()} if total else found
            files.append(Path(place) / f"{block}.pt")
            torch.save({name: value.cpu() for name, value in found.items()}, files[-1])
            done += len(part)
            if progress is not None:
                progress(done, count)
        scores = reduce_by_component(model, {name: value / count for name, value in total.items()}, "max")
        without = []
        for block, file in enumerate(files if len(files) > 1 else ()):
            own = torch.load(file, mmap=True, weights_only=True)
            left = count - int((members == block).sum())
            rest = {name: (value - own[name].to(value.device)) / left for name, value in total.items()}
            without.append(reduce_by_component(model, rest, "max").values)
    return Jackknife(scores, np.array(without))


def block_labels(clusters: np.ndarray, blocks: int, seed: int) -> np.ndarray:
    """The block of each paragraph: whole clusters, blocks of about one size, none empty."""
    labels, members = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(members)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(-sizes[order], kind="stable")]
    held, block = np.zeros(min(blocks, len(labels))), np.zeros(len(labels), dtype=np.int64)
    for label in order:
        block[label] = int(held.argmin())
        held[block[label]] += sizes[label]
    return block[members]
