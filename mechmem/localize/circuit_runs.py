"""Runs of circuits: all heads and neurons outside a set are replaced at once, for many sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.localize.ablation_runs import AblationMethod, successors
from mechmem.localize.lean_ablation import HELD, em_and_nll, mean_activations
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.lean.trace import trace
from mechmem.model.load import HookedTransformer


@dataclass(frozen=True)
class Circuits:
    """Some sets of components; what a kind has no mask for stays in every set.

    Attributes:
        heads: whether each head is in each set.
        neurons: whether each neuron is.
    """

    heads: Bool[Tensor, "set layer head"] | None = None
    neurons: Bool[Tensor, "set layer neuron"] | None = None

    def __len__(self) -> int:
        masks = self.heads if self.heads is not None else self.neurons
        return 0 if masks is None else len(masks)

    @property
    def masks(self) -> dict[str, Tensor]:
        """By site, the masks that there are."""
        return {site: mask for site, mask in (("z", self.heads), ("mlp_post", self.neurons)) if mask is not None}


class CircuitRuns:
    """EM and NLL of paragraphs when everything outside a circuit is ablated at all positions.

    1. For "mean", run all paragraphs once and sum what the heads and the neurons give.
    2. Some paragraphs at a time: run those that stand in for them, for "resample".
    3. Rows of one forward are (circuit, paragraph): in each layer, the outputs of heads and neurons outside the row's
       circuit are replaced, and everything after is computed anew. The last layer runs at the scored columns alone.

    Args:
        model: without hooks, of a kind that the lean forward knows.
        paragraphs: that fit it.
        method: what replaces a component's activations.
        seed: of "resample".
        batch_size: rows of one forward; None: chosen for the machine.
    """

    def __init__(
        self,
        model: HookedTransformer,
        paragraphs: Paragraphs,
        *,
        method: AblationMethod,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        self._lean, self._paragraphs, self._method = LeanModel(model), paragraphs, method
        self._size = chosen_batch_size(batch_size, self._lean.device, 16)
        self._stands_in = successors(len(paragraphs), seed) if method == "resample" else None
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def scores(self, circuits: Circuits, report: Progress | None = None) -> Float[Tensor, "measure set paragraph"]:
        """EM and NLL of every paragraph under every circuit.

        Args:
            circuits: what stays.
            report: called with (rows done, rows); a row is a circuit and a paragraph.
        """
        count = len(self._paragraphs)
        result = torch.empty(2, len(circuits), count, dtype=torch.float64)
        masks = {site: mask.to(self._lean.device) for site, mask in circuits.masks.items()}
        with fast_float32(self._lean.device):
            self._find_means(masks)
            done = 0
            for first in range(0, count, HELD):
                held = torch.arange(first, min(first + HELD, count))
                other = self._other(held, list(masks))
                for number, paragraph in self._rows(len(circuits), len(held)):
                    final = self._run(held[paragraph], masks, number, other, paragraph)
                    true = self._paragraphs.continuation[held[paragraph]]
                    result[:, number, held[paragraph]] = em_and_nll(self._lean, final, true).double().cpu()
                    done += len(number)
                    if report is not None:
                        report(done, count * len(circuits))
        return result

    def _rows(self, sets: int, held: int) -> Iterator[tuple[Int[Tensor, " row"], Int[Tensor, " row"]]]:
        for rows in torch.cartesian_prod(torch.arange(sets), torch.arange(held)).view(-1, 2).split(self._size):
            yield rows[:, 0], rows[:, 1]

    def _find_means(self, sites: dict[str, Tensor]) -> None:
        """The mean over all paragraphs of what each site gives at each position, [layer, 1, ...]."""
        missing = [site for site in sites if site not in self._means]
        if self._method != "mean" or not missing:
            return
        self._means |= mean_activations(self._lean, self._paragraphs.tokens, missing)

    def _other(self, held: Int[Tensor, " paragraph"], sites: list[str]) -> Callable[[str, int, Tensor], Tensor]:
        """A function from site, layer and rows' places among the held to what replaces the site there."""
        if self._method == "zero":
            return lambda *_: torch.zeros((), dtype=self._lean.dtype, device=self._lean.device)
        if self._method == "mean":
            return lambda site, layer, _: self._means[site][layer]
        assert self._stands_in is not None
        run = trace(self._lean, self._paragraphs.tokens[self._stands_in[held]], sites)
        return lambda site, layer, row: run[site][layer][row.to(self._lean.device)]

    def _run(
        self,
        paragraph: Int[Tensor, " row"],
        masks: dict[str, Tensor],
        number: Int[Tensor, " row"],
        other: Callable[[str, int, Tensor], Tensor],
        place: Int[Tensor, " row"],
    ) -> Float[Tensor, "row column d_model"]:
        """The normalized end of the body at the scored columns."""
        lean, needed = self._lean, self._paragraphs.prefix_len - 1
        # The last token predicts nothing that is scored.
        residual = lean.embed(self._paragraphs.tokens[paragraph, :-1])
        stop = residual.shape[1]
        rotation = lean.rotation(0, stop, residual.dtype)

        def kept(site: str, depth: int, value: Tensor) -> Tensor:
            """The rows' own values inside their circuits, and what replaces them outside; positions are axis -2."""
            if site not in masks:
                return value
            inside = masks[site][number.to(lean.device), depth]
            inside = inside[:, :, None, None] if site == "z" else inside[:, None]
            if bool(inside.all()):
                return value
            instead = other(site, depth, place)
            start = stop - value.shape[-2]
            return torch.where(inside, value, instead[..., start:stop, :] if instead.ndim else instead)

        for depth, layer in enumerate(lean.layers):
            heads = lean.heads(depth, layer, residual, rotation, 0, needed)
            residual = residual[:, -heads.query.shape[2] :]
            attention = lean.attention_out(layer, kept("z", depth, heads.output))
            middle = residual if lean.parallel else residual + attention
            neurons = kept("mlp_post", depth, lean.neurons(layer, middle))
            residual = residual + attention + lean.mlp_out(layer, neurons)
        return lean.final_norm(residual)
