"""Exact match that does not depend on how it was computed: float32 where that is certain, else float64."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress, batches
from mechmem.measure.margins import leading_matches, margins, uncertain
from mechmem.measure.tolerance import tolerance
from mechmem.model.lean.model import KeyValues, LeanModel, fast_float32
from mechmem.model.load import HookedTransformer

Method = Literal["full", "cascade"]
Precision = Literal["float32", "bfloat16"]
# Continuation tokens after which the cascade looks who is left; at the end of the last, all.
STAGES = (4, 14)
# Activations of one MLP held at once, in bytes: larger blocks go back to the operating system after every operation.
BLOCK = 8e6


@dataclass(frozen=True)
class Scores:
    """Scores of some paragraphs, [paragraph].

    Attributes:
        em: leading continuation tokens that greedy decoding reproduces.
        nll: mean over the continuation of -log p(token | true tokens before), nats; NaN where the cascade stopped.
        match_fraction: share of continuation tokens that are the teacher-forced argmax; NaN where the cascade stopped.
        rival: what greedy decoding says at the first mismatch (near-ties between tokens that are both wrong are not
            settled); -1 where there is no mismatch or the cascade stopped.
    """

    em: Int[np.ndarray, " paragraph"]
    nll: Float[np.ndarray, " paragraph"]
    match_fraction: Float[np.ndarray, " paragraph"]
    rival: Int[np.ndarray, " paragraph"]


@dataclass(frozen=True)
class TokenScores:
    """What the model makes of every continuation token given the true ones before it, [paragraph, column].

    Attributes:
        match: whether the token is the argmax; the leading matches are those of greedy decoding, near-ties settled.
        token_nll: -log p(token), nats.
        greedy: the argmax.
    """

    match: Bool[Tensor, "paragraph column"]
    token_nll: Float[Tensor, "paragraph column"]
    greedy: Int[Tensor, "paragraph column"]


class ExactScorer:
    """Scores paragraphs in one precision and settles near-ties in a wider one.

    1. A margin is the true token's logit minus the largest other. Calibration measures how far the margins of a few
       paragraphs lie from float64's; several times the largest error is the tolerance. It is measured once for a
       model, as long as its weights stay as they are.
    2. A paragraph whose EM could change within the tolerance is scored again: after bfloat16 in float32, after float32
       in float64. What float64 says stands, and of equal logits the lowest id: EM does not depend on batch size,
       precision, cascade or thread count.
    3. `cascade` runs the prefix and a few continuation tokens, keeps keys and values, and goes on with those that are
       not certainly lost. Their EM is exact, too; their NLL is not computed. In bfloat16, those that pass and those
       that are uncertain are confirmed in float32 from the start, which gives their NLL.

    Attributes:
        lean: the model in its own type, float32 as a rule.
        first: the model that looks first: `lean`, or its bfloat16 copy.
        tolerance: by precision, in logits.
        settled: paragraphs scored again, by the precision that settled them.

    Raises:
        InputError: an unknown method or precision, bfloat16 without the cascade, no paragraph to calibrate on, a batch
            of none, stages that do not rise, or a model that is not supported.
    """

    def __init__(
        self,
        model: HookedTransformer,
        calibration: Paragraphs,
        *,
        method: Method = "full",
        precision: Precision = "float32",
        batch_size: int | None = None,
        stages: tuple[int, ...] = STAGES,
    ):
        check_method(method, precision)
        _check_sizes(calibration, batch_size, stages)
        self.method, self.precision, self._batch_size, self._stages = method, precision, batch_size, stages
        self.lean = LeanModel(model)
        self.first = LeanModel(model, torch.bfloat16) if precision == "bfloat16" else self.lean
        self.settled = {"float32": 0, "float64": 0}
        found = {"float32": tolerance(model, self.lean, calibration, fast_float32)}
        # oneDNN changes products of float32 alone; where its products are not float32, they are left.
        self._fast = self.lean.dtype == torch.float32 and found["float32"].fast
        if precision == "bfloat16":
            found["bfloat16"] = tolerance(model, self.first, calibration, fast_float32)
        self.tolerance = {name: each.margin for name, each in found.items()}

    def score(
        self,
        paras: Paragraphs,
        progress: Progress | None = None,
        *,
        each: Callable[[TokenScores], None] | None = None,
    ) -> Scores:
        """Score paragraphs, in the order given.

        Args:
            paras: the paragraphs.
            progress: called with (paragraphs done, paragraphs).
            each: called with the scores of every token of each batch, in order; the method "full" alone has them.
        """
        assert each is None or self.method == "full"
        parts = [
            self._batch(paras.tokens[rows], paras.prefix_len, each)
            for rows in batches(len(paras), self.batch_size(paras), progress)
        ]
        if not parts:
            return Scores(np.zeros(0, int), np.zeros(0), np.zeros(0), np.zeros(0, int))
        values = [torch.cat([part[i] for part in parts]).cpu().numpy() for i in range(4)]
        return Scores(values[0], values[1].astype(np.float64), values[2].astype(np.float64), values[3])

    def batch_size(self, paras: Paragraphs) -> int:
        """Paragraphs of one forward: as many as were asked for, or as many as stay near the cache."""
        if self._batch_size is not None:
            return self._batch_size
        if self.lean.device.type != "cpu":
            return 256
        run = paras.tokens.shape[1] if self.method == "full" else paras.prefix_len + self._stages[0]
        widest = max(layer.w_in.shape[1] for layer in self.lean.layers)
        return max(1, int(BLOCK / (run * widest * self.first.dtype.itemsize)))

    def _batch(
        self, tokens: Int[Tensor, "paragraph pos"], prefix_len: int, each: Callable[[TokenScores], None] | None
    ) -> tuple[Tensor, ...]:
        tokens = tokens.to(self.lean.device)
        return self._whole(tokens, prefix_len, each) if self.method == "full" else self._cascade(tokens, prefix_len)

    def tokens(self, tokens: Int[Tensor, "paragraph pos"], prefix_len: int) -> TokenScores:
        """Score every continuation token of some paragraphs: in the model's type, near-ties of EM in float64."""
        tokens = tokens.to(self.lean.device)
        true = tokens[:, prefix_len:]
        with self.fast():
            result = margins(self.lean, self.lean.forward(tokens[:, :-1], needed=prefix_len - 1), true)
        assert result.token_nll is not None
        match, greedy = result.matches(true), result.greedy(true)
        near, _ = uncertain(result.margin, self.tolerance["float32"])
        if bool(near.any()):
            rows = near.nonzero().squeeze(1)
            match[rows], greedy[rows] = self.settle(tokens[rows], prefix_len)
        return TokenScores(match, result.token_nll, greedy)

    def fast(self) -> AbstractContextManager[None]:
        """The fastest float32 products that are float32 here."""
        return fast_float32(self.lean.device) if self._fast else nullcontext()

    def settle(self, tokens: Int[Tensor, "paragraph pos"], prefix_len: int) -> tuple[Tensor, Tensor]:
        """Whether each continuation token is the argmax, and the argmax, [paragraph, column], in float64."""
        self.settled["float64"] += len(tokens)
        true = tokens[:, prefix_len:].to(self.lean.device)
        hidden = self.lean.forward(tokens[:, :-1], needed=prefix_len - 1, dtype=torch.float64)
        result = margins(self.lean, hidden, true, nll=False)
        return result.matches(true), result.greedy(true)

    def _whole(
        self,
        tokens: Int[Tensor, "paragraph pos"],
        prefix_len: int,
        each: Callable[[TokenScores], None] | None = None,
    ) -> tuple[Tensor, ...]:
        """EM, NLL, share of matches and rival from all columns."""
        found = self.tokens(tokens, prefix_len)
        if each is not None:
            each(found)
        em = leading_matches(found.match)
        share = found.match.to(found.token_nll.dtype).mean(-1)
        return em, found.token_nll.mean(-1), share, _at_mismatch(found.greedy, em)

    def _cascade(self, tokens: Int[Tensor, "paragraph pos"], prefix_len: int) -> tuple[Tensor, ...]:
        """The same, stage by stage, for those that are not certainly lost."""
        count, length = len(tokens), tokens.shape[1] - prefix_len
        confirm = self.precision == "bfloat16"
        em = torch.zeros(count, dtype=torch.long, device=tokens.device)
        rival, again = torch.full_like(em, -1), torch.zeros_like(em, dtype=torch.bool)
        # As wide as what `margins` gives for a model of sixteen bits, too.
        wide = torch.promote_types(self.lean.dtype, torch.float32)
        token_nll, match = torch.full((2, count, length), torch.nan, device=tokens.device, dtype=wide)
        left, kept, done = torch.arange(count, device=tokens.device), None, 0
        for stop in [*(stage for stage in self._stages if stage < length), length]:
            kept = kept or KeyValues(self.first, count, tokens.shape[1])
            true = tokens[left, prefix_len + done : prefix_len + stop]
            with self.fast():
                hidden = self.first.forward(tokens[left, kept.length : prefix_len + stop - 1], kept)
                result = margins(self.first, hidden[:, done - stop :], true, nll=not confirm)
            near, lost = uncertain(result.margin, self.tolerance[self.precision])
            matches = result.matches(true)
            matched = leading_matches(matches)
            em[left], rival[left] = done + matched, _at_mismatch(result.rival, matched)
            again[left] |= near
            if result.token_nll is not None:
                token_nll[left, done:stop], match[left, done:stop] = result.token_nll, matches.to(match.dtype)
            # Those in doubt are confirmed from the start after bfloat16; in float32 only their EM is to be settled.
            going = (~lost & ~near if confirm else ~lost).nonzero().squeeze(1)
            if len(going) < len(left) and stop < length:
                kept = kept.select(going)
            left, done = left[going], stop
            if len(left) == 0:
                break
        rival[token_nll.isnan().any(-1)] = -1
        nll, share = token_nll.mean(-1), match.mean(-1)
        if confirm:
            again[left] = True
        for rows in again.nonzero().squeeze(1).split(max(1, count // 4)):
            if confirm:
                self.settled["float32"] += len(rows)
                em[rows], nll[rows], share[rows], rival[rows] = self._whole(tokens[rows], prefix_len)
            else:
                match_64, greedy_64 = self.settle(tokens[rows], prefix_len)
                em[rows] = leading_matches(match_64)
                rival[rows] = _at_mismatch(greedy_64, em[rows]).where(~nll[rows].isnan(), -1)
        return em, nll, share, rival


def _at_mismatch(
    greedy: Int[Tensor, "paragraph column"], matched: Int[Tensor, " paragraph"]
) -> Int[Tensor, " paragraph"]:
    """The argmax at the first mismatch; -1 where every column matched."""
    last = greedy.shape[1] - 1
    found = greedy.gather(1, matched.clamp(max=last)[:, None]).squeeze(1)
    return found.where(matched <= last, -1)


def check_method(method: str, precision: str) -> None:
    """Refuse with InputError what `ExactScorer` does not know."""
    if method not in get_args(Method) or precision not in get_args(Precision):
        raise InputError(
            f"method is {method!r} and precision {precision!r}; need a method of {', '.join(get_args(Method))} and a "
            f"precision of {', '.join(get_args(Precision))}"
        )
    if method == "full" and precision == "bfloat16":
        raise InputError(
            "got precision 'bfloat16' with method 'full'; bfloat16 only chooses the paragraphs to confirm in float32: "
            "need the method 'cascade' with it"
        )


def _check_sizes(calibration: Paragraphs, batch_size: int | None, stages: tuple[int, ...]) -> None:
    if not len(calibration):
        raise InputError("got 0 paragraphs to calibrate on; need at least 1: give some of those to be scored")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; need at least 1 paragraph, or None for as many as fit the cache")
    if not stages or any(stop <= start for start, stop in pairwise((0, *stages))):
        raise InputError(
            f"stages are {stages}; need rising numbers of continuation tokens after which to look who is left, from 1"
        )
