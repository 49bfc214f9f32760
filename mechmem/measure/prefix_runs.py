"""Runs of paragraphs whose prefix was changed from some place on, sharing what comes before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.decode import greedy_continuations
from mechmem.measure.exact import ExactScorer
from mechmem.measure.margins import margins, uncertain
from mechmem.measure.scores import leading_matches, score_logits
from mechmem.measure.tolerance import calibration_sample
from mechmem.model.forward import continuation_logits
from mechmem.model.lean.model import KeyValues, runs_lean
from mechmem.model.load import HookedTransformer

# Rows of one forward of the hooked model while it decodes.
ROWS = 64


@dataclass(frozen=True)
class PrefixRun:
    """What the model makes of some continuations, on the CPU.

    Attributes:
        em: leading matches, near-ties settled.
        token_nll: -log p of each true token, nats.
        match: whether it is the argmax.
        predicted: the argmax.
        rival: what greedy decoding says at the first mismatch; any id where there is none.
    """

    em: Int[Tensor, " paragraph"]
    token_nll: Float[Tensor, "paragraph continuation_pos"]
    match: Bool[Tensor, "paragraph continuation_pos"]
    predicted: Int[Tensor, "paragraph continuation_pos"]
    rival: Int[Tensor, " paragraph"]


@runtime_checkable
class PrefixRuns(Protocol):
    """Some paragraphs, to be run with their prefixes changed."""

    clean: PrefixRun

    def score(self, changed: Int[Tensor, "paragraph pos"], place: int) -> PrefixRun:
        """Run them changed at `place` or behind it, where `place` is not behind that of any earlier call."""
        ...

    def decode(
        self, changed: Int[Tensor, "row pos"], em: Int[Tensor, " row"], rival: Int[Tensor, " row"]
    ) -> Int[np.ndarray, "row continuation_pos"]:
        """What greedy decoding writes after any changed prefixes, given what their runs said."""
        ...


def prefix_runs(model: HookedTransformer, paragraphs: Paragraphs) -> Callable[[Tensor], PrefixRuns]:
    """How rows of these paragraphs are best run: with kept keys and values, or whole where hooks must act."""
    if not runs_lean(model):
        return lambda tokens: _WholeRuns(model, tokens, paragraphs.prefix_len)
    scorer = ExactScorer(model, calibration_sample(paragraphs))
    return lambda tokens: _KeptRuns(scorer, tokens, paragraphs.prefix_len)


class _KeptRuns:
    def __init__(self, scorer: ExactScorer, tokens: Int[Tensor, "paragraph pos"], prefix_len: int):
        self._scorer, self._prefix_len = scorer, prefix_len
        self._kept = KeyValues(scorer.lean, *tokens.shape)
        self.clean = self.score(tokens, 0)

    def score(self, changed: Int[Tensor, "paragraph pos"], place: int) -> PrefixRun:
        lean, prefix_len = self._scorer.lean, self._prefix_len
        # The positions before the place are clean and kept; those from it on are written over.
        self._kept.length = place
        with self._scorer.fast():
            hidden = lean.forward(changed[:, place:-1], self._kept, needed=prefix_len - 1)
            true = changed[:, prefix_len:].to(hidden.device)
            result = margins(lean, hidden, true)
        assert result.token_nll is not None
        match, predicted = result.matches(true), result.greedy(true)
        near, _ = uncertain(result.margin, self._scorer.tolerance["float32"])
        if bool(near.any()):
            rows = near.nonzero().squeeze(1)
            match[rows], predicted[rows] = self._scorer.settle(changed[rows], prefix_len)
        em = leading_matches(match)
        rival = predicted.gather(1, em.clamp(max=true.shape[1] - 1)[:, None]).squeeze(1)
        return PrefixRun(em.cpu(), result.token_nll.cpu(), match.cpu(), predicted.cpu(), rival.cpu())

    def decode(
        self, changed: Int[Tensor, "row pos"], em: Int[Tensor, " row"], rival: Int[Tensor, " row"]
    ) -> Int[np.ndarray, "row continuation_pos"]:
        return greedy_continuations(self._scorer.lean, changed, self._prefix_len, em.numpy(), rival.numpy())


class _WholeRuns:
    def __init__(self, model: HookedTransformer, tokens: Int[Tensor, "paragraph pos"], prefix_len: int):
        self._model, self._prefix_len = model, prefix_len
        self.clean = self.score(tokens, 0)

    @torch.no_grad()
    def score(self, changed: Int[Tensor, "paragraph pos"], place: int) -> PrefixRun:  # noqa: ARG002
        logits = continuation_logits(self._model, changed, self._prefix_len)
        found = {name: values.cpu() for name, values in score_logits(logits, changed[:, self._prefix_len :]).items()}
        last = found["greedy"].shape[1] - 1
        rival = found["greedy"].gather(1, found["em"].clamp(max=last)[:, None]).squeeze(1)
        return PrefixRun(found["em"], found["token_nll"], found["match"], found["greedy"], rival)

    @torch.no_grad()
    def decode(
        self,
        changed: Int[Tensor, "row pos"],
        em: Int[Tensor, " row"],  # noqa: ARG002
        rival: Int[Tensor, " row"],  # noqa: ARG002
    ) -> Int[np.ndarray, "row continuation_pos"]:
        text = changed.clone()
        for part in text.split(ROWS):
            for stop in range(self._prefix_len, changed.shape[1]):
                # One column: the last, of the tokens before and any one token behind them.
                logits = continuation_logits(self._model, part[:, : stop + 1], stop)
                part[:, stop] = logits[:, 0].argmax(-1).cpu()
        return text[:, self._prefix_len :].numpy()
