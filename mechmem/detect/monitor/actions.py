"""What a monitor does to the next token's logits: nothing, an end of the text, or a ban on known n-grams."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.monitor.ngram_filter import NgramFilter


class Watch:
    """Change no logits: for "flag", and for "steer", which acts in the forward."""

    def __init__(self, *, steers: bool = False) -> None:
        self._steers = steers
        self._none: Tensor | None = None

    def hear(self, said: Tensor) -> None:
        """Nothing depends on it."""

    def choose(self, logits: Tensor, flagged: Tensor) -> tuple[Tensor, Tensor]:
        """The logits as they are; a flagged row is steered from its next token on."""
        if self._steers:
            return logits, flagged
        if self._none is None or len(self._none) != len(flagged):
            self._none = torch.zeros_like(flagged)
        return logits, self._none

    def select(self, rows: Tensor) -> None:
        """There is no state."""


class Stop:
    """Leave flagged rows one choice, the end of the text.

    Args:
        end: its token; None: there is none, and whoever decodes ends flagged rows.
    """

    def __init__(self, end: int | None) -> None:
        self._end = end

    def hear(self, said: Tensor) -> None:
        """Nothing depends on it."""

    def choose(self, logits: Tensor, flagged: Tensor) -> tuple[Tensor, Tensor]:
        """Minus infinity for all tokens but the end, in flagged rows."""
        if self._end is not None and bool(flagged.any()):
            only = torch.full_like(logits[:1], -torch.inf)
            only[:, self._end] = 0.0
            logits = torch.where(flagged[:, None].to(logits.device), only, logits)
        return logits, flagged

    def select(self, rows: Tensor) -> None:
        """There is no state."""


class Block:
    """Never complete an n-gram, in any row, whatever the detector says.

    Args:
        known: the n-grams.
        prompt: what the rows were given, padded at the left.
        padding: positions of padding of each row; None: there are none.
    """

    def __init__(self, known: NgramFilter, prompt: Int[Tensor, "row pos"], padding: Int[Tensor, " row"] | None) -> None:
        self._known = known.to(prompt.device)
        self._vocabulary = torch.arange(0, device=prompt.device)
        tail = prompt.clone()
        if padding is not None:
            tail[torch.arange(prompt.shape[1], device=prompt.device) < padding[:, None]] = -1
        length = known.n - 1
        missing = tail.new_full((len(tail), max(0, length - tail.shape[1])), -1)
        self._tail = torch.cat([missing, tail], 1)[:, missing.shape[1] + tail.shape[1] - length :]

    def hear(self, said: Tensor) -> None:
        """The n-gram goes on with it."""
        if self._known.n > 1:
            self._tail = torch.cat([self._tail[:, 1:], said[:, None].to(self._tail.device)], 1)

    def choose(self, logits: Tensor, flagged: Tensor) -> tuple[Tensor, Tensor]:
        """Minus infinity for every token that would complete an n-gram.

        Raises:
            InputError: every token of a row would.
        """
        if len(self._vocabulary) != logits.shape[1]:
            self._vocabulary = torch.arange(logits.shape[1], device=self._tail.device)
        rows, completing = self._known.completing(self._tail, self._vocabulary)
        acted = torch.zeros_like(flagged)
        if len(rows):
            logits = logits.clone()
            logits[rows] = logits[rows].masked_fill(completing.to(logits.device), -torch.inf)
            acted[rows] = completing.any(1)
            if bool((logits[rows] == -torch.inf).all(1).any()):
                raise InputError(
                    f"every token would complete one of the {self._known.count:,} n-grams of {self._known.n} tokens "
                    "that are blocked; need a larger n"
                )
        return logits, acted

    def select(self, rows: Tensor) -> None:
        """Keep the last tokens of these rows."""
        self._tail = self._tail[rows.to(self._tail.device)]


# One generation's action: it hears what every row said, and chooses the logits of the next token. Rows of its state are
# taken by index as rows of the batch are.
Action = Watch | Stop | Block
