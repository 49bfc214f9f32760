"""What a model writes after each prefix, how likely it finds that, and how far it is from the true text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress, batches
from mechmem.measure.decode import edit_distances
from mechmem.measure.prefix_runs import prefix_runs
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer

# Paragraphs whose keys and values are held at once.
ROWS = 64
NATS = {"units": "nats", "higher": "less memorized"}
ATTRIBUTES: dict[str, dict[str, str]] = {
    "em": {"units": "tokens", "higher": "more memorized"},
    "nll": {"units": "nats per token", "higher": "less memorized"},
    "token_nll": NATS | {"long_name": "negative log-likelihood of the true token given the true ones before it"},
    "said": {"units": "token id", "long_name": "greedy continuation"},
    "said_nll": {
        "units": "nats",
        "higher": "the model is less certain of what it says",
        "long_name": "negative log-likelihood of the greedy token given the greedy ones before it",
    },
    "edit_distance": {"units": "tokens", "higher": "less memorized"},
}


def greedy_texts(model: HookedTransformer, paragraphs: Paragraphs, *, progress: Progress | None = None) -> xr.Dataset:
    """Score and decode paragraphs together: what is the same in both runs is computed once.

    Args:
        model: any; hooks on it act as usual.
        paragraphs: with their true continuations.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset with coordinates `paragraph` (ids) and `pos` (prefix_len ... n - 1): em, nll, edit_distance [paragraph],
        token_nll, said, said_nll [paragraph, pos].

    Raises:
        InputError: paragraphs that do not fit the model.
    """
    check_fit(model, paragraphs)
    prefix_len = paragraphs.prefix_len
    found: dict[str, list[np.ndarray]] = {name: [] for name in ATTRIBUTES}
    start = prefix_runs(model, paragraphs)
    for rows in batches(len(paragraphs), ROWS, progress):
        tokens = paragraphs.tokens[rows].cpu()
        runs = start(tokens)
        clean = runs.clean
        said = np.asarray(runs.decode(tokens, clean.em, clean.rival))
        own = runs.score(torch.cat([tokens[:, :prefix_len], torch.from_numpy(said)], 1), prefix_len - 1)
        values: dict[str, Any] = {
            "em": clean.em.numpy(),
            "nll": clean.token_nll.double().mean(-1).numpy(),
            "token_nll": clean.token_nll.numpy(),
            "said": said,
            "said_nll": own.token_nll.numpy(),
            "edit_distance": edit_distances(said, tokens[:, prefix_len:].numpy()),
        }
        for name, value in values.items():
            found[name].append(value)
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    coords = {"paragraph": paragraphs.ids, "pos": np.arange(prefix_len, paragraphs.tokens.shape[1])}
    data = {name: (("paragraph", "pos")[: array.ndim], array, ATTRIBUTES[name]) for name, array in arrays.items()}
    return xr.Dataset(data, coords)
