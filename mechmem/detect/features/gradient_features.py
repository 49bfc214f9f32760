"""How hard a model's own text pulls at each layer's weights: a ceiling for detectors, one backward for every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.localize.paragraph_gradients import paragraph_gradients
from mechmem.model.load import HookedTransformer


def own_gradients(
    model: HookedTransformer,
    prefix: Int[torch.Tensor, "row prefix_pos"],
    said: Int[np.ndarray, "row pos"],
    first: Int[np.ndarray, " row"],
    ks: tuple[int, ...],
    progress: Sequence[Progress | None],
) -> Float[np.ndarray, "row k layer"]:
    """Euclidean norm, over each layer's weights, of the gradient of the mean NLL of what was said.

    Args:
        model: left as it is; hooks on it act as usual.
        prefix: what was given.
        said: the model's own tokens.
        first: its first choice after the prefix, which stands for what is said at k = 0.
        ks: numbers of own tokens whose NLL is differentiated.
        progress: of each k, called with (paragraphs done, paragraphs).

    Returns:
        In nats per token per unit of weight; higher: the text's likelihood depends more on the layer.
    """
    found = []
    for k, report in zip(ks, progress, strict=True):
        own = said[:, :k] if k else first[:, None]
        text = Paragraphs(torch.cat([prefix.cpu(), torch.from_numpy(own)], 1), prefix.shape[1])
        sizes = paragraph_gradients(model, text, reduction="norm", progress=report)
        found.append(np.sqrt(np.square(sizes.values).sum(2)))
    return np.stack(found, 1)
