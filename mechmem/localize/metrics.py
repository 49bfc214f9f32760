"""Metrics of a patched run: functions of its logits at the scored columns.

`patch` and `attribute` take one of these by name or as a function, or any function of `Scored` that gives one number
for each row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.stats.ranges import ANY, NOT_NEGATIVE, Range, change_of, token_range


@dataclass(frozen=True)
class Scored:
    """The logits of some patched runs where they are scored, and what to compare them with.

    Attributes:
        logits: [row, column, d_vocab]; column i scores the token that `clean` and `corrupt` hold at i.
        clean: tokens of the clean paragraph, [row, column].
        corrupt: tokens of the corrupt paragraph, [row, column].
        reference: gives the logits of the unpatched run, [row, column, d_vocab].
    """

    logits: Float[Tensor, "row column d_vocab"]
    clean: Int[Tensor, "row column"]
    corrupt: Int[Tensor, "row column"]
    reference: Callable[[], Tensor]


# A metric takes what was scored and gives one number per row.
Metric = Callable[[Scored], Tensor]


def nll(scored: Scored) -> Float[Tensor, " row"]:
    """Mean of -log p(clean token) over the scored columns, nats per token; higher: the clean text is less likely."""
    log_probs = scored.logits.log_softmax(-1)
    return -log_probs.gather(-1, scored.clean[..., None]).squeeze(-1).mean(-1)


def logit_difference(scored: Scored) -> Float[Tensor, " row"]:
    """Mean logit of the clean token minus that of the corrupt one; higher: the clean text is preferred.

    Columns where both are one token add nothing: score the impact position.
    """
    clean, corrupt = (
        scored.logits.gather(-1, tokens[..., None]).squeeze(-1) for tokens in (scored.clean, scored.corrupt)
    )
    return (clean - corrupt).mean(-1)


def kl(scored: Scored) -> Float[Tensor, " row"]:
    """Mean KL(unpatched || patched) over the scored columns, nats per token; higher: the patch changes more."""
    reference, patched = scored.reference().log_softmax(-1), scored.logits.log_softmax(-1)
    # Rounding can leave a run that hardly differs a little below 0.
    return (reference.exp() * (reference - patched)).sum(-1).mean(-1).clamp_min(0)


def em(scored: Scored) -> Float[Tensor, " row"]:
    """Leading scored columns whose argmax is the clean token; higher: more of the clean text is left.

    With all columns of the continuation scored, on the clean run's own input, this is exact match. It has no gradient.
    """
    match = scored.logits.argmax(-1) == scored.clean
    return match.long().cumprod(-1).sum(-1).to(scored.logits.dtype)


MetricName = Literal["nll", "logit_difference", "kl", "em"]
METRICS: dict[str, Metric] = {"nll": nll, "logit_difference": logit_difference, "kl": kl, "em": em}
UNITS = {"nll": "nats per token", "logit_difference": "logits", "kl": "nats per token", "em": "tokens"}


def metric_of(metric: Any) -> Metric:
    """The function that a name stands for; functions stay what they are.

    Raises:
        InputError: an unknown name, which lists all, or something that is neither.
    """
    if isinstance(metric, str):
        check_choice("metric", metric, MetricName)
        return METRICS[metric]
    if not callable(metric):
        raise InputError(
            f"got {type(metric).__name__} as metric; need one of {', '.join(METRICS)}, or a function of metrics.Scored "
            "that gives one number for each row"
        )
    return cast(Metric, metric)


def metric_name(metric: Metric) -> str:
    """How results call a metric."""
    return str(getattr(metric, "__name__", type(metric).__name__))


def effect_range(metric: Metric, columns: int, *, normalize: bool = False) -> Range:
    """What an effect on a metric can be: a change of EM over so many columns; a KL, which is 0 without a patch."""
    if normalize:
        return ANY
    return change_of(token_range(columns)) if metric is em else NOT_NEGATIVE if metric is kl else ANY


def columns_of(
    clean: Int[Tensor, "pair pos"], corrupt: Int[Tensor, "pair pos"], prefix_len: int, scored: str | list[int]
) -> Int[Tensor, "pair column"]:
    """Logit columns that score what is asked: column j scores token j + 1.

    "continuation": all of it; "impact": the first continuation token in which a pair differs; or token positions.
    """
    if isinstance(scored, list):
        return torch.tensor(scored)[None].expand(len(clean), -1) - 1
    if scored == "continuation":
        return torch.arange(prefix_len - 1, clean.shape[1] - 1)[None].expand(len(clean), -1)
    differs = (clean != corrupt)[:, prefix_len:]
    return prefix_len - 1 + differs.long().argmax(-1, keepdim=True)
