"""How deep an edit goes: the edited model's activations, read on by the original's layers."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.bounds import Count
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.measure.scores import score_logits
from mechmem.model.forward import advance, check_fit, residual_before, unembed_continuation
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

# Damage, nats per token, below which its place is noise: rounding moves the NLL by about a thousandth of it.
LEAST_DAMAGE = 1e-3
BATCH = 16


@public("refuse", renamed={"paras": "paragraphs"})
def depth_score(
    original: HookedTransformer,
    edited: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Patch the edited model's residual stream into the original at each layer boundary: is the text still inside?

    An output that no longer says a text does not mean that the activations no longer carry it: Patil et al. 2023
    (arXiv 2309.17410) read deleted facts from intermediate layers, and Hong et al. 2024 (arXiv 2406.11614) ask for
    measures inside the model. Here the original's own layers are the reader:

    1. Run the edited model's layers 0 ... l - 1 on the true text, then the original's layers l ... n_layers - 1, its
       final norm and its unembedding. Boundary 0 is the original itself, its embedding included; at boundary n_layers
       only the norm and the unembedding are the original's. A change of the embedding counts to layer 0.
    2. damage[l] = nll[l] - nll[0]; the whole damage is that of the edited model itself; damage_share = damage / whole.
    3. The rise of damage_share from one boundary to the next is what the layer between them does. Its mean layer is
       depth = n_layers - sum of damage_share[1 ... n_layers], with shares cut to 0 ... 1: exactly k for an edit inside
       layer k alone, n_layers for an edit of the unembedding alone.

    The reader's layers know the text themselves, so early boundaries recover it after any edit; what tells is how few
    of the original's layers are enough. A text that n_layers - 1 edited layers still carry was hidden behind the last.
    The reverse does not hold: damage at an early boundary says that later layers of the original do not mend it, not
    that nothing of the text is left.

    Args:
        original: the model before the edit; left as it is.
        edited: the model after it, of the same shape; left as it is.
        paragraphs: what the edited model should not know.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset with the coordinate `boundary` 0 ... n_layers (layers of the edited model that ran): em (tokens),
        nll (nats per token), damage_share [boundary, paragraph]; em_edited, nll_edited [paragraph], of the edited model
        itself; depth[paragraph] (layers, higher: the edit acts later, the text is in more of its layers) and
        hidden_until[paragraph] (the last boundary with at most half of the damage: up to there the text is inside).
        damage_share, depth and hidden_until are NaN where the edit does not raise the NLL by 0.001 nats.

    Raises:
        InputError: models of different shapes, a model with shortformer positions, or paragraphs that do not fit.
    """
    check_fit(original, paragraphs)
    check_pair(original, edited)
    parts = []
    for rows in batches(len(paragraphs), batch_size or BATCH, progress):
        parts.append(_boundary_scores(original, edited, paragraphs.tokens[rows], paragraphs.prefix_len))
    em, nll = (np.concatenate([part[which] for part in parts], 1) for which in (0, 1))
    return _dataset(em, nll).assign_coords(paragraph=paragraphs.ids)


def check_pair(original: HookedTransformer, edited: HookedTransformer) -> None:
    """Refuse two models of which one cannot be an edit of the other.

    Raises:
        InputError: their tensors differ in name or shape.
    """
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (original, edited)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"got an original of {len(shapes[0])} tensors and an edited model of {len(shapes[1])}, with other names "
            "or shapes; need a model and an edit of it: load both in the same way"
        )


@torch.no_grad()
def _boundary_scores(
    original: HookedTransformer, edited: HookedTransformer, tokens: Int[Tensor, "paragraph pos"], prefix_len: int
) -> tuple[Int[np.ndarray, "run paragraph"], Float[np.ndarray, "run paragraph"]]:
    """EM and NLL at each boundary and, last, of the edited model itself."""
    layers, device = original.cfg.n_layers, original.cfg.device
    rows = []

    def finish(residual: Tensor, start: int, reader: HookedTransformer) -> None:
        whole = advance(reader, residual.to(reader.cfg.device), start, layers)
        found = score_logits(unembed_continuation(reader, whole, prefix_len), tokens[:, prefix_len:])
        rows.append((found["em"].cpu().numpy(), found["nll"].cpu().numpy()))

    finish(residual_before(original, tokens.to(device), 0), 0, original)
    residual = residual_before(edited, tokens.to(edited.cfg.device), 0)
    for layer in range(layers):
        residual = advance(edited, residual, layer, layer + 1)
        finish(residual, layer + 1, original)
    finish(residual, layers, edited)
    em, nll = zip(*rows, strict=True)
    return np.stack(em), np.stack(nll)


def _dataset(em: Int[np.ndarray, "run paragraph"], nll: Float[np.ndarray, "run paragraph"]) -> xr.Dataset:
    layers = len(em) - 2
    whole = (nll[-1] - nll[0]).astype(np.float64)
    share = (nll[:-1] - nll[0]) / np.where(whole >= LEAST_DAMAGE, whole, np.nan)
    last = layers - np.argmax(share[::-1] <= 0.5, axis=0)
    both, there = ("boundary", "paragraph"), "more of the text is still there"
    variables = {
        "em": (both, em[:-1], {"units": "tokens", "higher": there}),
        "nll": (both, nll[:-1], {"units": "nats per token", "higher": "less of the text is still there"}),
        "damage_share": (both, share, {"units": "1", "higher": "more of the damage is done by the layers before"}),
        "em_edited": ("paragraph", em[-1], {"units": "tokens", "higher": there}),
        "nll_edited": ("paragraph", nll[-1], {"units": "nats per token", "higher": "less of the text is still there"}),
        "depth": (
            "paragraph",
            layers - share[1:].clip(0, 1).sum(0),
            {"units": "layers", "higher": "the edit acts later and more of its layers carry the text"},
        ),
        "hidden_until": (
            "paragraph",
            np.where(np.isnan(share[0]), np.nan, last),
            {"units": "layers", "higher": "more layers of the edited model carry the text"},
        ),
    }
    coords = {"boundary": np.arange(layers + 1), "paragraph": np.arange(em.shape[1])}
    return xr.Dataset(variables, coords, {"boundary_means": "layers of the edited model before those of the original"})
