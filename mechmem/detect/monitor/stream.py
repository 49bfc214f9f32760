"""One prompt decoded in a plain loop, token by token, each with its score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.decoding.decoding_settings import DecodingSettings
from mechmem.detect.decoding.token_choice import TokenChoice
from mechmem.detect.monitor.generation import Generation, Plan, Prompt
from mechmem.detect.monitor.history import result
from mechmem.detect.monitor.stepping import stepper

# Text or ids; anything else is refused with a sentence that says how to get them.
if TYPE_CHECKING:
    StreamPrompt = str | Sequence[int] | Tensor
else:
    StreamPrompt = Any


@dataclass(frozen=True)
class SpokenToken:
    """A token that a model said, or the mark where its text was stopped.

    Attributes:
        id: of the token; None for the mark.
        text: of the token; part of a character reads as U+FFFD.
        score: probability at even odds that the text is recited, from before the token was chosen.
        p_value: how often text that is not recited gets so far.
        flagged: an alarm now or before.
        k: tokens said before this one.
    """

    id: int | None
    text: str
    score: float
    p_value: float
    flagged: bool
    k: int


class Stream:
    """An iterable of what one prompt's text goes on with.

    Args:
        plan: of the monitor.
        prompt: text, or ids.
        settings: how the next token is chosen.
        length: tokens said at most.
        keep: is given the result at the end, also where the loop was left early.
    """

    def __init__(
        self,
        plan: Plan,
        prompt: StreamPrompt,
        settings: DecodingSettings,
        length: int,
        keep: Callable[[xr.Dataset | None], None],
    ) -> None:
        self._plan, self._settings, self._length, self._keep = plan, settings, length, keep
        self._tokenizer = plan.source.tokenizer(plan.detector.identity.tokenizer)
        tokens = _ids(prompt, self._tokenizer, plan.detector.identity.d_vocab).to(plan.source.device)
        if tokens.shape[1] + length > plan.source.n_ctx:
            raise InputError(
                f"got a prompt of {tokens.shape[1]} tokens and {length} to say for a model with a context of "
                f"{plan.source.n_ctx}; need at most the context: cut the prompt, or a smaller max_new_tokens"
            )
        self._prompt = Prompt(tokens, None, plan.source.ends(self._tokenizer))

    def __iter__(self) -> Iterator[SpokenToken]:
        plan, prompt = self._plan, self._prompt
        generation = Generation(plan, prompt)
        step = stepper(plan, self._length + prompt.tokens.shape[1])
        choice = TokenChoice(self._settings, prompt.tokens)
        said: Tensor | None = None
        try:
            for k in range(self._length):
                with torch.no_grad():
                    states, end = step(prompt.tokens if said is None else said[:, None])
                    if end is not None and said is None:
                        generation.read_prompt(end)
                    logits = generation.step(states, said)
                    if plan.stops and bool(generation.flagged[0]):
                        generation.history.last = None
                        yield self._token(None, generation, k)
                        return
                    said = generation.history.last = choice(logits)
                yield self._token(int(said[0]), generation, k)
                if int(said[0]) in prompt.ends:
                    return
        finally:
            if plan.steering is not None:
                plan.steering.stop()
            history = generation.history
            places = history.rows() if history.steps else None
            self._keep(None if places is None else result(history, places, history.said(places), plan.detector))

    def _token(self, token: int | None, generation: Generation, k: int) -> SpokenToken:
        step = generation.history.steps[-1]
        text = "" if token is None else str(token)
        if token is not None and self._tokenizer is not None:
            text = str(self._tokenizer.decode([token]))
        p_value = float(self._plan.detector.p_value(step.statistic)[0])
        return SpokenToken(token, text, float(step.score[0]), p_value, bool(step.flagged[0]), k)


def _ids(prompt: Any, tokenizer: Any, d_vocab: int) -> Int[Tensor, "1 pos"]:
    if isinstance(prompt, str):
        if tokenizer is None:
            raise InputError("got text for a model without a tokenizer; need token ids: stream([id, ...])")
        if not prompt:
            raise InputError("got a prompt without text; need at least one token: the model goes on with it")
        prompt = tokenizer.encode(prompt, add_special_tokens=False)
    shape = getattr(prompt, "shape", None)
    try:
        tokens = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError):
        tokens = torch.zeros(0)
    whole = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    if not whole or not tokens.numel() or tokens.ndim > 2 or (tokens.ndim == 2 and len(tokens) != 1):
        came = type(prompt).__name__ + ("" if shape is None else f" of shape {list(shape)}")
        raise InputError(
            f"got {came} as prompt; need text, or the ids of one prompt, at least one: paragraphs.prefix[0], or "
            "[id, ...]"
        )
    wrong = tokens[(tokens < 0) | (tokens >= d_vocab)]
    if len(wrong):
        raise InputError(f"got the token id {int(wrong[0])}; need ids from 0 to {d_vocab - 1}: encode the text anew")
    return tokens.long().reshape(1, -1)
