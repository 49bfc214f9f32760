"""Document mode: every stretch of a document that the model continues word for word, at any offset.

A scan of windows scores every fiftieth or hundredth offset and runs each window's prefix. Here the model reads
long stretches once; where it predicts nearly every token, all windows are scored with their exact prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from torch.nn import functional

from mechmem.data.bounds import Count, check_fields, checked
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress, batches
from mechmem.data.shards import Documents
from mechmem.measure.exact import ExactScorer
from mechmem.measure.margins import margins

# Tokens read by one forward on a CPU, and on other devices.
TOKENS_AT_ONCE = {"cpu": 2**11}
OTHERWISE = 2**16
CONTEXT = 512
# Windows that are confirmed at once; equal ones among them are scored once.
CANDIDATES = 2**14
# Columns whose logits are asked for: first every eighth, in the end those that are left.
STEPS = (8, 4, 2, 1)


@dataclass(frozen=True)
class SpanSettings:
    """How documents are read and what counts as found.

    Attributes:
        prefix_len: tokens that the model is given when a window is confirmed.
        continuation_len: tokens that it must then reproduce.
        min_match: a window is confirmed if reading predicts this many of its continuation tokens; lower finds more of
            what only the exact prefix brings out, and costs more. None: nine tenths of them, 45 of 50.
        context: tokens read at once; None: 512, or twice a prefix and a continuation if that is more, or the model's
            context if that is less.

    Raises:
        InputError: a value out of its range.
    """

    prefix_len: Count = 50
    continuation_len: Count = 50
    min_match: Count | None = None
    context: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.min_match is not None and self.min_match > self.continuation_len:
            raise InputError(
                f"got min_match {self.min_match}; need 1 to {self.continuation_len}, the tokens of a continuation"
            )

    @property
    def matches(self) -> int:
        """How many of a continuation's tokens must be predicted."""
        # Nine tenths, rounded up.
        return -(-9 * self.continuation_len // 10) if self.min_match is None else self.min_match

    @checked
    def context_of(self, n_ctx: Count) -> int:
        """Tokens read at once by a model of this context.

        Raises:
            InputError: it does not hold a prefix and a continuation, or the model's does not hold it.
        """
        least = self.prefix_len + self.continuation_len
        context = min(n_ctx, max(CONTEXT, 2 * least)) if self.context is None else self.context
        if not least <= context <= n_ctx:
            raise InputError(
                f"got a context of {context}; need {least} (a prefix and a continuation) to {n_ctx}, the model's"
            )
        return context


def find_spans(
    scorer: ExactScorer, documents: Documents, settings: SpanSettings, progress: Progress | None = None
) -> tuple[pa.Table, dict[str, int]]:
    """The memorized spans of some documents.

    1. Read every document that holds a window once, `context` tokens at a time, each token with at least `prefix_len`
       before it. Tokens within the tolerance of being the argmax count as predicted. Logits, a third of the work with
       a large vocabulary, are left out where too much is not predicted around them already.
    2. Candidates are all offsets at which at least `min_match` of the next `continuation_len` tokens are predicted.
    3. Every candidate is scored exactly: the `prefix_len` tokens before it alone, EM as in `score`. Equal windows are
       scored once.
    4. Confirmed windows whose continuations overlap or touch are one span.

    What is found is exact: no window is reported that greedy decoding from its exact prefix does not reproduce. A
    window is missed if reading with more context predicts fewer than `min_match` of its tokens; experiments/spans.py
    measures how many.

    Args:
        scorer: of the model; its precision is that of the reading.
        documents: whole documents.
        settings: how to read.
        progress: called with (tokens read, tokens).

    Returns:
        A table with one row per span: `id` ("document:start", unique), `document`, `source`, `start` and `stop` (the
        tokens that are reproduced, in the document), `windows` (offsets of the confirmed windows' first tokens),
        `tokens` (ids from the first prefix token to the span's end), and the numbers `tokens`, `candidates`, `windows`,
        `spans`.

    Raises:
        InputError: ids beyond the model's vocabulary, or a context that is not fit.
    """
    tokens = np.asarray(documents.tokens)
    if len(tokens) and int(tokens.max()) >= scorer.lean.d_vocab:
        raise InputError(
            f"got the token id {tokens.max()} for a model with a vocabulary of {scorer.lean.d_vocab} tokens; need ids "
            f"below {scorer.lean.d_vocab}: encode the text with this model's tokenizer"
        )
    predicted = predictions(scorer, documents, settings, progress)
    candidates = _candidates(predicted, documents.starts, settings)
    confirmed = candidates[_memorized(scorer, tokens, candidates, settings)]
    rows = _spans(tokens, documents, confirmed, settings)
    counts = {"tokens": len(tokens), "candidates": len(candidates), "windows": len(confirmed), "spans": len(rows)}
    return pa.Table.from_pylist(rows, SCHEMA), counts


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("document", pa.int64()),
        ("source", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("windows", pa.list_(pa.int64())),
        ("tokens", pa.list_(pa.int32())),
    ]
)


def predictions(
    scorer: ExactScorer, documents: Documents, settings: SpanSettings, progress: Progress | None = None
) -> Bool[np.ndarray, " pos"]:
    """Which tokens the model predicts, perhaps by a near-tie, from at least `prefix_len` before them.

    Tokens that no candidate can have (see `_predicted`) count as not predicted.
    """
    lean, first = scorer.lean, settings.prefix_len
    context = settings.context_of(lean.n_ctx)
    pieces = [
        (start, min(start + context, stop))
        for begin, stop in pairwise(documents.starts.tolist())
        if stop - begin >= first + settings.continuation_len
        for start in range(begin, stop - first, context - first)
    ]
    # Pieces of like lengths are read together, so that little is padded; nothing attends to padding, at the end.
    pieces.sort(key=lambda piece: piece[0] - piece[1])
    predicted = np.zeros(len(documents.tokens), dtype=bool)
    at_once = TOKENS_AT_ONCE.get(lean.device.type, OTHERWISE)
    number, read, total = 0, 0, sum(stop - start for start, stop in pieces)
    while number < len(pieces):
        length = pieces[number][1] - pieces[number][0]
        batch = pieces[number : number + max(1, at_once // length)]
        number += len(batch)
        begins, stops = np.array(batch).T[:, :, None]
        places = begins + np.arange(length)
        inside = places < stops
        places = np.minimum(places, len(predicted) - 1)
        rows = torch.from_numpy(np.asarray(documents.tokens)[places].astype(np.int64)).to(lean.device)
        with scorer.fast():
            hidden = scorer.first.forward(rows[:, :-1])[:, first - 1 :]
            found = _predicted(scorer, hidden, rows[:, first:], torch.from_numpy(inside[:, first:]), settings)
        predicted[places[:, first:][inside[:, first:]]] = found.cpu().numpy()[inside[:, first:]]
        read += int(inside.sum())
        if progress is not None:
            progress(read, total)
    return predicted


def _predicted(
    scorer: ExactScorer,
    hidden: Float[Tensor, "piece column d_model"],
    true: Int[Tensor, "piece column"],
    inside: Bool[Tensor, "piece column"],
    settings: SpanSettings,
) -> Bool[Tensor, "piece column"]:
    """Which tokens are predicted, with logits only where a candidate is still possible.

    A continuation with more than `continuation_len - min_match` tokens that are not predicted is no candidate, whatever
    its other tokens are. So every eighth column is asked first, and of those between only what some continuation that
    can still be a candidate holds. Beyond the piece everything may be predicted, so no candidate is lost.
    """
    length, tolerance = settings.continuation_len, scorer.tolerance[scorer.precision]
    inside = inside.to(hidden.device)
    possible, asked, predicted = inside, torch.zeros_like(inside), torch.zeros_like(inside)
    for step in STEPS:
        asking = torch.zeros_like(inside)
        asking[:, ::step] = (possible & ~asked)[:, ::step]
        margin = margins(scorer.first, hidden[asking][None], true[asking][None], nll=False).margin
        predicted[asking] = margin[0] >= -tolerance
        asked |= asking
        missed = functional.pad(asked & ~predicted, (length - 1, length - 1)).unfold(-1, length, 1).sum(-1)
        possible = inside & (missed <= length - settings.matches).unfold(-1, length, 1).any(-1)
    return predicted


def _candidates(
    predicted: Bool[np.ndarray, " pos"], starts: Int[np.ndarray, " edge"], settings: SpanSettings
) -> Int[np.ndarray, " candidate"]:
    """Places where a continuation may begin: enough is predicted, and prefix and continuation are in one document."""
    length = settings.continuation_len
    sums = np.zeros(len(predicted) + 1, dtype=np.int32)
    np.cumsum(predicted, out=sums[1:])
    places = np.flatnonzero(sums[length:] - sums[:-length] >= settings.matches)
    document = np.searchsorted(starts, places, side="right") - 1
    fits = (places - settings.prefix_len >= starts[document]) & (places + length <= starts[document + 1])
    return places[fits]


def _memorized(
    scorer: ExactScorer,
    tokens: Integer[np.ndarray, " pos"],
    candidates: Int[np.ndarray, " candidate"],
    settings: SpanSettings,
) -> Bool[np.ndarray, " candidate"]:
    offsets = np.arange(-settings.prefix_len, settings.continuation_len)
    memorized = np.zeros(len(candidates), dtype=bool)
    # In a document that is memorized throughout, nearly every offset is a candidate.
    for some in batches(len(candidates), CANDIDATES):
        windows = tokens[candidates[some][:, None] + offsets].astype(np.int64)
        rows, inverse = np.unique(windows, axis=0, return_inverse=True)
        scores = scorer.score(Paragraphs(torch.from_numpy(rows), settings.prefix_len))
        memorized[some] = (scores.em == settings.continuation_len)[inverse.reshape(-1)]
    return memorized


def _spans(
    tokens: Integer[np.ndarray, " pos"],
    documents: Documents,
    confirmed: Int[np.ndarray, " window"],
    settings: SpanSettings,
) -> list[dict[str, Any]]:
    """Rows of the table: confirmed continuations that overlap or touch, of one document."""
    if not len(confirmed):
        return []
    document = np.searchsorted(documents.starts, confirmed, side="right") - 1
    apart = (np.diff(confirmed) > settings.continuation_len) | (np.diff(document) > 0)
    rows = []
    for group in np.split(np.arange(len(confirmed)), np.flatnonzero(apart) + 1):
        number = int(document[group[0]])
        begin, places = int(documents.starts[number]), confirmed[group]
        start, stop = int(places[0]), int(places[-1]) + settings.continuation_len
        rows.append(
            {
                "id": f"{documents.numbers[number]}:{start - begin}",
                "document": int(documents.numbers[number]),
                "source": str(documents.sources[number]),
                "start": start - begin,
                "stop": stop - begin,
                "windows": (places - settings.prefix_len - begin).tolist(),
                "tokens": tokens[start - settings.prefix_len : stop].tolist(),
            }
        )
    return rows
