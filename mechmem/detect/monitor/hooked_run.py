"""One call of `HookedTransformer.generate`, watched: what is said is what the model embeds next."""

from __future__ import annotations

import xarray as xr
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.monitor.generation import Generation, Plan, Prompt
from mechmem.detect.monitor.history import result
from mechmem.detect.monitor.padding import left_padding
from mechmem.detect.monitor.seen import Seen


class HookedRun:
    """Told of the tokens by a hook on the embedding, and of each step by one on the unembedding.

    Args:
        plan: of the monitor.
        seen: what its hooks fill.
        ends: tokens that end a text.
    """

    def __init__(self, plan: Plan, seen: Seen, *, ends: tuple[int, ...]) -> None:
        self._plan, self._seen, self._ends = plan, seen, ends
        self._generation: Generation | None = None
        self._prompt: Tensor | None = None
        self._said: Tensor | None = None

    def hear(self, tokens: Tensor) -> None:
        """Take in tokens that the model embeds: the prompt, then one of each row after every step."""
        if self._prompt is None:
            self._prompt = tokens
            if tokens.shape[1] > self._plan.source.n_ctx:
                # The generation says so; the model itself would fail before.
                Generation(self._plan, Prompt(tokens))
        else:
            self._said = tokens[:, -1]

    def choose(self, output: Tensor) -> None:
        """Score the latest forward, and change its logits in place at the newest position, as the action says."""
        states = self._seen.take()
        if self._generation is None:
            if self._prompt is None:
                raise InputError("got a prompt without token ids; need text or tokens, as the detector was trained on")
            padding = left_padding(self._seen.mask, self._prompt)
            self._generation = Generation(self._plan, Prompt(self._prompt, padding, self._ends))
            self._generation.read_prompt(self._seen.end)
            self._seen.end = None
        said, self._said, self._seen.mask = self._said, None, None
        logits = self._generation.step(states, said)
        if logits is not states.logits:
            output[:, -1] = logits

    def finish(self) -> xr.Dataset | None:
        """The result; None where no token was chosen."""
        if self._generation is None or not self._generation.history.steps:
            return None
        history = self._generation.history
        history.last = self._said
        places = history.rows()
        return result(history, places, history.said(places), self._plan.detector)
