"""Run paragraphs with parts of layers replaced through hooks: any sets of parts, many sets per forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.measure.scores import score_logits
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.forward import advance, check_fit, residual_before, unembed_continuation
from mechmem.model.hooks import Hook, recording, with_hooks
from mechmem.model.lean.trace import HOOKS
from mechmem.model.load import HookedTransformer

AblationMethod = Literal["mean", "zero", "resample"]
# Which axis of a hook point is the head's; MLPs have none.
HEAD_AXIS = {"z": 2, "v": 2, "pattern": 1, "mlp_out": None}


class AblationRuns:
    """Scores of paragraphs under any sets of ablated parts, a part being one head, or one MLP, of one layer.

    1. Once: run the intact model and keep what replaces each part.
    2. A set changes nothing below its lowest layer: runs begin there, from the residual stream that they share.
    3. Rows of one forward are (set, paragraph); each has its own parts replaced.

    Attributes:
        shape: layers, and parts of a layer.
        intact: EM and NLL with nothing replaced, [measure, paragraph].

    Raises:
        InputError: an unknown method, too few paragraphs for the method, or paragraphs that do not fit.
    """

    def __init__(
        self,
        model: HookedTransformer,
        paragraphs: Paragraphs,
        *,
        method: AblationMethod,
        site: str = "z",
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        check_ablation(model, paragraphs, method)
        stand_in = _stand_in(method, len(paragraphs), seed)
        batch_size = chosen_batch_size(batch_size, model.W_E.device, 32)
        self._model, self._paragraphs, self._batch_size = model, paragraphs, batch_size
        self._axis = HEAD_AXIS[site]
        self.shape = model.cfg.n_layers, 1 if self._axis is None else model.cfg.n_heads
        self._names = [f"blocks.{layer}.{HOOKS[site]}" for layer in range(model.cfg.n_layers)]
        with torch.no_grad():
            parts = paragraphs.tokens.to(model.cfg.device).split(batch_size)
            self._embedded = torch.cat([residual_before(model, part, 0) for part in parts])
            self._replacements = []
            residual = self._embedded
            for layer, name in enumerate(self._names):
                outputs, after = [], []
                with recording(model, [name]) as recorded:
                    for rows, _ in self._batches(residual):
                        after.append(advance(model, rows, layer, layer + 1))
                        outputs.append(recorded[name])
                residual = torch.cat(after)
                self._replacements.append(stand_in(torch.cat(outputs)))
            self.intact = torch.cat([self._scores(rows, paragraph) for rows, paragraph in self._batches(residual)], 1)

    @torch.no_grad()
    def scores(
        self, sets: Bool[Tensor, "set layer part"], progress: ProgressLike = None
    ) -> Float[Tensor, "measure set paragraph"]:
        """EM and NLL of every paragraph under every set.

        Args:
            sets: which parts are replaced together; what all of them share is computed once.
            progress: called with (rows done, rows); a row is a set and a paragraph.
        """
        count, layers = len(self._paragraphs), self.shape[0]
        report = as_callback(progress, "ablation")
        result = self.intact.new_empty(2, len(sets), count)
        shared = sets.all(0)
        # Where a set first differs from what all share; n_layers if nowhere.
        own = (sets & ~shared).any(-1).long()
        lowest = torch.where(own.any(-1), own.argmax(-1), layers)
        residual, done = self._embedded, 0
        for layer in range(layers + 1):
            rows = torch.cartesian_prod((lowest == layer).nonzero()[:, 0], torch.arange(count)).view(-1, 2)
            for chosen in rows.split(self._batch_size) if len(rows) else []:
                number, paragraph = chosen[:, 0], chosen[:, 1]
                with with_hooks(self._model, self.hooks(sets[number], paragraph, first=layer)):
                    end = advance(self._model, residual[paragraph.to(residual.device)], layer, layers)
                    result[:, number, paragraph] = self._scores(end, paragraph)
                done += len(chosen)
                if report is not None:
                    report(done, len(sets) * count)
            if layer < layers:
                parts = []
                for batch, paragraph in self._batches(residual):
                    with with_hooks(self._model, self.hooks(shared.expand(len(batch), -1, -1), paragraph)):
                        parts.append(advance(self._model, batch, layer, layer + 1))
                residual = torch.cat(parts)
        return result

    def hooks(
        self, gone: Bool[Tensor, "row layer part"], paragraph: Int[Tensor, " row"], *, first: int = 0
    ) -> dict[str, Hook]:
        """Hooks that replace, in each row of a forward, its parts from layer `first` on."""
        return {
            name: self._replacing(gone[:, layer], self._replacements[layer], paragraph)
            for layer, name in enumerate(self._names)
            if layer >= first and bool(gone[:, layer].any())
        }

    def _replacing(self, gone: Tensor, replacement: Tensor, paragraph: Tensor) -> Hook:
        def replace(value: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens passes both
            shape = [1] * value.ndim
            shape[0] = len(gone)
            if self._axis is not None:
                shape[self._axis] = gone.shape[1]
            mask = gone.to(value.device).view(shape)
            return torch.where(mask, replacement[paragraph.to(value.device)], value)

        return replace

    def _scores(
        self, residual: Float[Tensor, "row pos d_model"], paragraph: Int[Tensor, " row"]
    ) -> Float[Tensor, "measure row"]:
        logits = unembed_continuation(self._model, residual, self._paragraphs.prefix_len)
        scores = score_logits(logits, self._paragraphs.continuation[paragraph])
        return torch.stack([scores[name].cpu().double() for name in ("em", "nll")])

    def _batches(self, rows: Tensor) -> Iterator[tuple[Tensor, Int[Tensor, " row"]]]:
        """Views of at most `batch_size` rows, with the rows' numbers."""
        return zip(rows.split(self._batch_size), torch.arange(len(rows)).split(self._batch_size), strict=True)


def check_ablation(model: HookedTransformer, paragraphs: Paragraphs, method: str) -> None:
    """Refuse what cannot be ablated.

    Raises:
        InputError: an unknown method, too few paragraphs for it, or paragraphs that do not fit.
    """
    check_fit(model, paragraphs)
    check_choice("method", method, AblationMethod)
    if method != "zero" and len(paragraphs) < 2:
        raise InputError(
            f"got 1 paragraph for method {method!r}, which takes the output of others; need at least 2: give more "
            "paragraphs or use method='zero'"
        )


def successors(count: int, seed: int) -> Int[Tensor, " paragraph"]:
    """Which paragraph stands in for each: the next on one cycle through all in random order, so none for itself."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[order] = np.roll(order, -1)
    return torch.from_numpy(other)


def _stand_in(method: AblationMethod, count: int, seed: int) -> Callable[[Tensor], Tensor]:
    """The function that turns a layer's activations, [paragraph, ...], into what replaces them."""
    if method == "zero":
        return lambda value: value.new_zeros(1, *value.shape[1:]).expand_as(value)
    if method == "mean":
        return lambda value: value.mean(0, keepdim=True).expand_as(value)
    index = successors(count, seed)
    return lambda value: value[index.to(value.device)]
