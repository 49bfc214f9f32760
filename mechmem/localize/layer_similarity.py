"""How much the inside of two models differs, layer by layer: linear centred kernel alignment."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mechmem.data.bounds import Count
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, batches
from mechmem.model.forward import advance, check_fit, residual_before
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

BATCH = 16
# Columns of fewer have no unbiased estimate.
LEAST = 4


@public("run")
def layer_similarity(
    first: HookedTransformer,
    second: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.DataArray:
    """Linear CKA between two models' residual streams at each layer boundary.

    Centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414) is the correlation of two similarity matrices:
    which columns of text are alike in one model, and which in the other. A rotation or scaling of the residual stream
    changes nothing. The plain estimate is biased upwards where columns are few for the width: two unrelated models of
    768 dimensions are near 0.5 at 800 columns. This one takes the unbiased estimate of each term (Song et al. 2012,
    JMLR 13): unrelated models are at 0 on average, and equal ones at 1.

    Args:
        first: hooks on it and on `second` are run.
        second: of any width, of as many layers, with the same vocabulary; both raw or both folded.
        paragraphs: both models see the true text; the columns that score the continuation are compared.
        batch_size: paragraphs of one forward; None: 16.
        progress: called with (boundaries done, boundaries).

    Returns:
        DataArray [boundary] 0 ... n_layers (layers that ran; 0: the embedding), 1 at most apart from rounding; higher:
        the models are more alike. NaN where a model's residual stream does not vary.

    Raises:
        InputError: models of different depth, one folded and one raw, fewer than four columns, shortformer positions,
            or paragraphs that do not fit.
    """
    check_fit(first, paragraphs)
    check_fit(second, paragraphs)
    _check(first, second, paragraphs)
    report, models, layers = as_callback(progress, "layer similarity"), (first, second), first.cfg.n_layers
    size = batch_size or BATCH
    residuals: list[list[Tensor]] = [[], []]
    values = []
    with torch.no_grad():
        for boundary in range(layers + 1):
            for model, kept in zip(models, residuals, strict=True):
                kept[:] = _next(model, paragraphs, kept, boundary, size)
            columns = [torch.cat([part[:, paragraphs.prefix_len - 1 : -1] for part in kept]) for kept in residuals]
            values.append(cka(*(column.flatten(0, 1).double().cpu().numpy() for column in columns)))
            if report is not None:
                report(boundary + 1, layers + 1)
    attrs = {
        "units": "1",
        "higher": "the models are more alike",
        "columns": len(paragraphs) * paragraphs.continuation_len,
    }
    return xr.DataArray(np.array(values), {"boundary": np.arange(layers + 1)}, ("boundary",), "cka", attrs)


def _next(
    model: HookedTransformer, paragraphs: Paragraphs, kept: list[Tensor], boundary: int, size: int
) -> list[Tensor]:
    """The residual stream at a boundary, from that at the one before, in batches."""
    if boundary == 0:
        rows = batches(len(paragraphs), size)
        return [residual_before(model, paragraphs.tokens[part].to(model.cfg.device), 0) for part in rows]
    return [advance(model, part, boundary - 1, boundary) for part in kept]


def cka(first: Float[np.ndarray, "column d"], second: Float[np.ndarray, "column e"]) -> float:
    """Linear CKA of two models' activations on the same columns, each term by its unbiased estimate.

    The terms are computed from sums over dimensions, without the matrix of all pairs of columns.
    """
    centred = [values - values.mean(0) for values in (first, second)]
    own = [_hsic(one, one) for one in centred]
    return _hsic(*centred) / float(np.sqrt(own[0] * own[1])) if min(own) > 0 else float("nan")


def _hsic(first: Float[np.ndarray, "column d"], second: Float[np.ndarray, "column e"]) -> float:
    """Hilbert-Schmidt independence of two linear kernels whose diagonals are left out (Song et al. 2012, eq. 5)."""
    count = len(first)
    diagonals = [(one * one).sum(1) for one in (first, second)]
    rows = [one @ one.sum(0) - diagonal for one, diagonal in zip((first, second), diagonals, strict=True)]
    trace = float(((first.T @ second) ** 2).sum() - (diagonals[0] * diagonals[1]).sum())
    whole = float(rows[0].sum() * rows[1].sum()) / ((count - 1) * (count - 2))
    return (trace + whole - 2 / (count - 2) * float(rows[0] @ rows[1])) / (count * (count - 3))


def _check(first: HookedTransformer, second: HookedTransformer, paragraphs: Paragraphs) -> None:
    if first.cfg.n_layers != second.cfg.n_layers:
        raise InputError(
            f"got models of {first.cfg.n_layers} and {second.cfg.n_layers} layers; need as many in both: layers are "
            "compared one by one"
        )
    kinds = [model.cfg.normalization_type for model in (first, second)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"got models with {kinds[0]} and {kinds[1]} normalization, one raw and one folded; need both alike: "
            "folding changes the residual stream"
        )
    columns = len(paragraphs) * paragraphs.continuation_len
    if columns < LEAST:
        raise InputError(f"got {columns} columns of text; need at least {LEAST}: give more paragraphs")
