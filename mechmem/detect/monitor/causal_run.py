"""One call of transformers' `generate`, watched: rows, beams and finished texts are followed by their token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.monitor.generation import Generation, Plan, Prompt
from mechmem.detect.monitor.history import result
from mechmem.detect.monitor.padding import left_padding
from mechmem.detect.monitor.seen import Seen


class CausalRun:
    """Told of every step by the logits processor, which sees all ids so far.

    Args:
        plan: of the monitor.
        seen: what its hooks fill.
        ends: tokens that end a text.
        beams: of beam search; 1: greedy decoding or sampling.
    """

    def __init__(self, plan: Plan, seen: Seen, *, ends: tuple[int, ...], beams: int) -> None:
        self._plan, self._seen, self._ends, self._beams = plan, seen, ends, beams
        self._generation: Generation | None = None
        self._ids: Tensor | None = None

    def choose(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row d_vocab"]
    ) -> Float[Tensor, "row d_vocab"]:
        """Score the latest forward, and change the scores that the next token is chosen by, as the action says."""
        states = self._seen.take()
        before, self._ids = self._ids, input_ids
        if before is None or self._generation is None:
            self._generation = self._begun(input_ids)
            return self._generation.step(states, None, logits=scores)
        if input_ids.shape[1] != before.shape[1] + 1:
            raise InputError(
                f"got {input_ids.shape[1]} tokens after {before.shape[1]}; need one token at a time: decode without an "
                "assistant or prompt lookup"
            )
        parents = None
        if self._beams > 1:
            found = parents_of(input_ids, before, len(before) // self._beams)
            parents = None if torch.equal(found, torch.arange(len(found), device=found.device)) else found
        return self._generation.step(states, input_ids[:, -1], parents, scores)

    def stops(self, input_ids: Int[Tensor, "row pos"]) -> Bool[Tensor, " row"]:
        """Whether each row continues one with an alarm; beam search asks about more rows than it keeps."""
        assert self._generation is not None and self._ids is not None
        flagged = self._generation.flagged.to(input_ids.device)
        if self._beams == 1:
            return flagged
        return flagged[parents_of(input_ids, self._ids, len(self._ids) // self._beams)]

    def finish(self, output: Any) -> xr.Dataset | None:
        """The result, given what `generate` returned; None where no token was chosen."""
        generation = self._generation
        if generation is None or not generation.history.steps:
            return None
        sequences = output if isinstance(output, Tensor) else output.sequences
        own = sequences[:, generation.prompt.tokens.shape[1] :]
        history, steps = generation.history, generation.k
        if self._beams == 1:
            history.last = own[:, steps - 1] if own.shape[1] >= steps else None
            places = history.rows()
            said = history.said(places)
        else:
            said = np.full((len(own), steps), -1)
            said[:, : own.shape[1]] = own.cpu().numpy()
            texts = len(own) // (len(generation.prompt.tokens) // self._beams)
            places = history.hypotheses(said, np.arange(len(own)) // texts * self._beams)
            ended = np.isin(said, self._ends).cumsum(1) - np.isin(said, self._ends) > 0
            places[ended | (np.arange(steps) >= own.shape[1])] = -1
        return result(history, places, said, self._plan.detector)

    def _begun(self, input_ids: Tensor) -> Generation:
        if not input_ids.shape[1]:
            raise InputError("got a prompt without token ids; need input_ids: the detector was trained on tokens")
        if self._plan.stops and not self._ends and len(input_ids) > 1:
            raise InputError(
                f"got action 'stop' for {len(input_ids)} rows that no token ends; need one that fills a row behind its "
                "end: generate(eos_token_id=...)"
            )
        padding = left_padding(self._seen.mask, input_ids)
        generation = Generation(self._plan, Prompt(input_ids, padding, self._ends))
        generation.read_prompt(self._seen.end)
        self._seen.end = self._seen.mask = None
        return generation


def parents_of(ids: Int[Tensor, "row pos"], before: Int[Tensor, "kept earlier_pos"], texts: int) -> Int[Tensor, " row"]:
    """Which row of the step before each row continues.

    Beam search returns its rows in a new order, some twice and some not at all, but never mixes the beams of one
    prompt with another's.

    Args:
        ids: of each row, with its newest token.
        before: of the rows one token earlier.
        texts: prompts; rows of both are grouped by them.

    Raises:
        InputError: a row continues none.
    """
    beams = len(before) // texts
    new, old = ids[:, :-1].reshape(texts, -1, 1, ids.shape[1] - 1), before.reshape(texts, 1, beams, -1)
    same = (new == old).all(-1)
    if not bool(same.any(-1).all()):
        raise InputError("got a row that continues none of the step before; need one call of generate at a time")
    first = torch.arange(texts, device=ids.device)[:, None] * beams
    return (same.int().argmax(-1) + first).flatten()
