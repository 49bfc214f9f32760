"""Ablate one part of one layer at a time without hooks: what is replaced is restarted from its own layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.localize.ablation_runs import AblationMethod, successors
from mechmem.localize.lean_ablation import HELD, em_and_nll, mean_activations
from mechmem.localize.patched_streams import Cells, after_heads, after_written, head_change
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.lean.trace import Trace, resume, trace
from mechmem.model.load import HookedTransformer

# What a run keeps to begin again after a layer, where attention and MLP follow each other and where they do not.
SERIAL, PARALLEL = ("resid_pre", "resid_mid"), ("resid_post",)
# What else it keeps, by site.
KEPT = {"z": ("z",), "pattern": ("z", "v", "pattern"), "v": ("z", "v", "pattern"), "attention": ("z",)}
KEPT |= {"mlp_out": ("mlp_out", "resid_post")}


class AblatedRuns:
    """EM and NLL of paragraphs when a head, all heads of a layer, or an MLP is ablated: one part at a time.

    1. For "mean", run all paragraphs once and sum what the site gives.
    2. Some paragraphs at a time: run them as they are, and those that stand in for them.
    3. A part of a layer changes nothing below it: its own output is replaced, the MLP of its layer follows, and the
       layers above. Rows of one forward are (part, paragraph). The last layer and the unembedding run at the scored
       columns alone.

    Args:
        model: without hooks, of a kind that the lean forward knows.
        paragraphs: that fit it.
        method: what replaces the part's activations.
        site: "z", "pattern" or "v" of a head; "attention" or "mlp_out" of a layer, whose only part is 0.
        seed: of "resample".
        batch_size: rows of one forward; None: chosen for the machine.
    """

    def __init__(
        self,
        model: HookedTransformer,
        paragraphs: Paragraphs,
        *,
        method: AblationMethod,
        site: str,
        seed: int,
        batch_size: int | None,
    ) -> None:
        self._lean, self._paragraphs, self._method, self._site = LeanModel(model), paragraphs, method, site
        self._size = chosen_batch_size(batch_size, self._lean.device, 16)
        self._stored = "z" if site == "attention" else site
        self._stands_in = successors(len(paragraphs), seed) if method == "resample" else None

    @torch.no_grad()
    def changes(
        self, cells: Sequence[tuple[int, int]], progress: ProgressLike = None, *, rows: slice | None = None
    ) -> Float[Tensor, "measure cell paragraph"]:
        """EM and NLL of every paragraph with each (layer, part) ablated, minus those of the intact run.

        Args:
            cells: which parts, each alone.
            progress: called with (rows done, rows); a row is a part and a paragraph.
            rows: only these paragraphs; the mean stays that of all.
        """
        rows = slice(0, len(self._paragraphs)) if rows is None else rows
        report, done, total = as_callback(progress, "ablation"), 0, (rows.stop - rows.start) * len(cells)
        result = torch.empty(2, len(cells), rows.stop - rows.start, dtype=torch.float64)
        with fast_float32(self._lean.device):
            for first in range(rows.start, rows.stop, HELD):
                held = slice(first, min(first + HELD, rows.stop))
                base, other = self._base(held), self._other(held)
                every = torch.arange(held.stop - first, device=self._lean.device)
                intact = self._scores(base.final[:, self._columns], every + first)
                for number, batch in self._batches(cells, every):
                    final = self._ablated(base, other, batch)
                    change = self._scores(final, batch.pair + first) - intact[:, batch.pair]
                    result[:, number, (batch.pair + first - rows.start).cpu()] = change.double().cpu()
                    done += len(batch.pair)
                    if report is not None:
                        report(done, total)
        return result

    @property
    def _columns(self) -> slice:
        return slice(self._paragraphs.prefix_len - 1, -1)

    def _batches(self, cells: Sequence[tuple[int, int]], every: Tensor) -> Iterator[tuple[Tensor, Cells]]:
        """Rows of one layer, with the number of each row's cell."""
        table = torch.tensor(cells)
        stop = self._paragraphs.tokens.shape[1] - 1
        for layer in table[:, 0].unique().tolist():
            numbers = (table[:, 0] == layer).nonzero()[:, 0]
            for chosen in torch.cartesian_prod(numbers, every.cpu()).view(-1, 2).split(self._size):
                number, pair = chosen[:, 0], chosen[:, 1].to(every.device)
                part = table[number, 1].to(every.device)
                yield number, Cells(layer, 0, stop, pair, part, torch.zeros_like(pair))

    @cached_property
    def _mean(self) -> Float[Tensor, "layer 1 ..."]:
        """The mean over all paragraphs of what the site gives at each position."""
        return mean_activations(self._lean, self._paragraphs.tokens, (self._stored,))[self._stored]

    def _base(self, rows: slice) -> Trace:
        around = PARALLEL if self._lean.parallel else SERIAL
        return trace(self._lean, self._paragraphs.tokens[rows], {*around, *KEPT[self._site]})

    def _other(self, rows: slice) -> Callable[..., Tensor] | None:
        """A function from layer, pair (and head) to what replaces the site there, [row, ...]; None for zeros."""
        if self._method == "zero":
            return None
        if self._method == "mean":
            mean = self._mean
            return lambda layer, pair, *part: mean[layer][(torch.zeros_like(pair), *part)]
        assert self._stands_in is not None
        run = trace(self._lean, self._paragraphs.tokens[self._stands_in[rows]], (self._stored,))[self._stored]
        return lambda layer, *index: run[layer][index]

    def _ablated(self, base: Trace, other: Callable[..., Tensor] | None, cells: Cells) -> Tensor:
        """The normalized end of the body at the scored columns, with each row's part replaced."""
        lean, layer, pair, window = self._lean, cells.layer, cells.pair, slice(0, cells.stop)
        index = (pair,) if self._site in ("mlp_out", "attention") else (pair, cells.part)
        own = base[self._stored][layer][index]
        value = torch.zeros_like(own) if other is None else other(layer, *index)
        if self._site == "mlp_out":
            residual = base["resid_post"][layer, pair, window] + (value - own)[:, window]
        elif self._site == "attention":
            change = (value - own)[:, :, window].transpose(1, 2).flatten(2)
            residual = after_written(lean, base, cells, change @ lean.layers[layer].w_o)
        else:
            residual = after_heads(lean, base, cells, head_change(lean, self._site, base, value, cells))
        return resume(lean, residual, layer + 1, 0, base, pair, needed=self._paragraphs.prefix_len - 1)

    def _scores(self, final: Tensor, paragraph: Int[Tensor, " row"]) -> Float[Tensor, "measure row"]:
        return em_and_nll(self._lean, final, self._paragraphs.continuation[paragraph.cpu()])
