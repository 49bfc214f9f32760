"""How far margins may lie from their float64 values: measured on a few paragraphs and remembered for each model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.margins import margins
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.load import HookedTransformer

# Paragraphs that are enough to measure on, and the margins of so many continuations of 50 tokens.
CALIBRATION = 16
MARGINS = CALIBRATION * 50
# A call calibrates on this share of its tokens: float64 takes about four times as long as float32.
SHARE = 1 / 32
# Fewer tokens than this say too little about the errors.
FEWEST = 16
# How much larger than the largest error of MARGINS margins a margin must be to count as certain. In float32 hardly a
# margin is so small, so that great safety costs nothing; in sixteen bits it would send most paragraphs to float64.
SAFETY = {torch.float32: 16.0, torch.bfloat16: 4.0, torch.float16: 4.0, torch.float64: 1.0}
# Float32 products whose NLL is further from float64 than this are not float32: nats per token.
FLOAT32_ERROR = 1e-4
# Weights of each parameter that the fingerprint reads.
SAMPLED = 64

Fast = Callable[[torch.device], AbstractContextManager[None]]


@dataclass(frozen=True)
class Tolerance:
    """What calibration found in one precision.

    Attributes:
        margin: margins within this of zero are not certain, logits.
        fast: whether oneDNN's products were float32 (true for other types, which it does not change).
        measured: how many margins were compared with float64.
    """

    margin: float
    fast: bool
    measured: int


Fingerprint = tuple[list[tuple[int, int]], list[float]]
# Numbers only: weights that are kept here would outlive their model or take the place of its own.
_known: WeakKeyDictionary[HookedTransformer, dict[torch.dtype, tuple[Fingerprint, Tolerance]]] = WeakKeyDictionary()


def calibration_sample(paragraphs: Paragraphs) -> Paragraphs:
    """Some of the paragraphs a call scores, in proportion to the call; of a small call the start of one paragraph."""
    length = paragraphs.tokens.shape[1]
    tokens = int(len(paragraphs) * length * SHARE)
    if tokens >= length or length <= FEWEST:
        count = max(1, min(CALIBRATION, tokens // length))
        return paragraphs.select(torch.linspace(0, len(paragraphs) - 1, count).long().numpy())
    stop = max(FEWEST, tokens)
    return Paragraphs(paragraphs.tokens[:1, :stop], stop // 2)


def tolerance(model: HookedTransformer, lean: LeanModel, sample: Paragraphs, fast: Fast = fast_float32) -> Tolerance:
    """The tolerance of a lean model's margins, measured on a sample unless as large a one was measured before.

    What was measured is remembered as long as the model lives and has the same weights. Weights are compared by their
    tensors' versions and some of their values, so that other weights loaded in place are measured anew.

    Args:
        model: the owner of the weights.
        lean: its forward, in the type whose errors are asked for.
        sample: paragraphs to measure on, or the start of one.
        fast: the context in which float32 products are fast.
    """
    mark, kept = _fingerprint(model), _known.setdefault(model, {})
    count = len(sample) * sample.continuation_len
    if lean.dtype in kept:
        known, found = kept[lean.dtype]
        if known == mark and found.measured >= min(count, MARGINS):
            return found
    margin, is_fast = _largest_error(lean, sample, fast)
    # The largest of fewer errors is smaller.
    safety = SAFETY[lean.dtype] * max(1.0, MARGINS / count) ** 0.5
    found = Tolerance(safety * margin, is_fast, count)
    kept[lean.dtype] = mark, found
    return found


def _largest_error(lean: LeanModel, sample: Paragraphs, fast: Fast) -> tuple[float, bool]:
    """The margins' largest error, and whether the fast products are float32; if not, the error of the others."""
    if lean.dtype == torch.float64:
        return 0.0, True
    tokens, start = sample.tokens.to(lean.device), sample.prefix_len
    true = tokens[:, start:]
    exact = margins(lean, lean.forward(tokens[:, :-1], needed=start - 1, dtype=torch.float64), true)
    for context in (fast, _slow):
        with context(lean.device):
            found = margins(lean, lean.forward(tokens[:, :-1], needed=start - 1), true)
        assert found.token_nll is not None and exact.token_nll is not None
        error = float((found.token_nll - exact.token_nll).abs().max())
        if lean.dtype != torch.float32 or error <= FLOAT32_ERROR:
            break
    return float((found.margin - exact.margin).abs().max()), context is fast


def _slow(_: torch.device) -> AbstractContextManager[None]:
    return nullcontext()


def _fingerprint(model: HookedTransformer) -> Fingerprint:
    """Versions and addresses of the parameters, and some of their values: other weights have another one."""
    samples = []
    for parameter in model.parameters():
        flat = parameter.detach().reshape(-1)
        samples.append(flat[:: max(1, len(flat) // SAMPLED)].double().sum().cpu())
    states = [(parameter._version, parameter.data_ptr()) for parameter in model.parameters()]
    return states, torch.stack(samples).tolist()
