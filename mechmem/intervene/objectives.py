"""What an edit minimizes: a term of the paragraphs to change, and a term of those to hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

# (log-probabilities [paragraph, pos, d_vocab], true tokens [paragraph, pos], the original model's log-probabilities
# [paragraph, pos, d_vocab]) -> one number per paragraph, in nats per token, to minimize.
Term = Callable[[Tensor, Tensor, Tensor], Float[Tensor, " paragraph"]]


@dataclass(frozen=True)
class Steering:
    """Terms of activations instead of predictions, see `mechmem.intervene.rmu_terms`.

    Attributes:
        layer: whose residual stream is steered, after the layer has written.
        coefficient: length of the vector that it is steered to, in mean lengths of the targets' own residual stream.
    """

    layer: int
    coefficient: float


@dataclass(frozen=True)
class Objective:
    """mean over targets of `target` + keep_weight * mean over the keep set of `keep`.

    Attributes:
        target: term of the paragraphs to change; None: there is `steering` instead of both terms.
        keep: term of the paragraphs to hold; None: there is no keep term.
        compares: whether `target` uses the original model's log-probabilities; if not, it is given none.
        pairs: whether `target` compares two continuations of a prefix: rows come as memorized, preferred, memorized,
            preferred and so on, and it gives one number per pair.
        radius: the target term's gradient is taken where this far a step uphill leads (sharpness-aware), a Euclidean
            distance over all weights that may move; None: at the weights themselves.
        steering: terms of activations.
    """

    target: Term | None
    keep: Term | None
    compares: bool = False
    pairs: bool = False
    radius: float | None = None
    steering: Steering | None = None

    @property
    def holds(self) -> bool:
        """Whether there is a keep term."""
        return self.keep is not None or self.steering is not None

    @property
    def units(self) -> str:
        """Of the sum of both terms."""
        return ("squared distance, 1: the residual stream's own length" if self.steering else "nats per token") + (
            ", minimized"
        )


def token_log_probs(
    log_probs: Float[Tensor, "paragraph pos d_vocab"], true: Int[Tensor, "paragraph pos"]
) -> Float[Tensor, "paragraph pos"]:
    """Log-probabilities of the true tokens."""
    return log_probs.gather(-1, true[..., None]).squeeze(-1)


def raise_nll(log_probs: Tensor, true: Tensor, reference: Tensor) -> Float[Tensor, " paragraph"]:  # noqa: ARG001
    """-NLL: gradient ascent on the paragraph (Jang et al. 2023, arXiv 2210.01504)."""
    return token_log_probs(log_probs, true).mean(-1)


def lower_nll(log_probs: Tensor, true: Tensor, reference: Tensor) -> Float[Tensor, " paragraph"]:  # noqa: ARG001
    """NLL: ordinary training."""
    return -token_log_probs(log_probs, true).mean(-1)


def hold_kl(log_probs: Tensor, true: Tensor, reference: Tensor) -> Float[Tensor, " paragraph"]:  # noqa: ARG001
    """KL(p_0 || p), mean over tokens; zero, with no gradient, at the original weights."""
    return -(reference.exp() * (log_probs - reference)).sum(-1).mean(-1)


def negative_preference(beta: float = 0.1) -> Term:
    """NPO (Zhang et al. 2024, arXiv 2404.05868): (2 / beta) log(1 + (p / p_0)^beta), of the whole continuation.

    It is bounded below: unlike ascent, it stops pushing a paragraph that is forgotten. It is divided by the
    continuation's length, to be in nats per token like the other terms.
    """

    def term(log_probs: Tensor, true: Tensor, reference: Tensor) -> Float[Tensor, " paragraph"]:
        ratio = (token_log_probs(log_probs, true) - token_log_probs(reference, true)).sum(-1)
        return 2 / beta * functional.softplus(beta * ratio) / true.shape[1]

    return term


def simple_negative_preference(beta: float = 2.5, margin: float = 0.0) -> Term:
    """SimNPO (Fan et al. 2024, arXiv 2410.07163): -(2 / beta) log sigmoid(beta * NLL - margin), NLL a token.

    NPO without the original model: what is well memorized is pushed hardest.
    """

    def term(log_probs: Tensor, true: Tensor, reference: Tensor) -> Float[Tensor, " paragraph"]:  # noqa: ARG001
        nll = -token_log_probs(log_probs, true).mean(-1)
        return -2 / beta * functional.logsigmoid(beta * nll - margin)

    return term


def weighted_ascent(alpha: float = 1.0) -> Term:
    """WGA (Wang et al. 2025, arXiv 2502.19301): gradient ascent in which a token of probability p counts p^alpha.

    Tokens that are forgotten no longer pull. The weights take no gradient, so what is descended is p^alpha / alpha: its
    gradient is p^alpha times that of log p. The value is that, and falls to zero.
    """

    def term(log_probs: Tensor, true: Tensor, reference: Tensor) -> Float[Tensor, " paragraph"]:  # noqa: ARG001
        return (alpha * token_log_probs(log_probs, true)).exp().mean(-1) / alpha

    return term


def saturation_importance(beta: float = 5.0) -> Term:
    """SatImp (Yang et al. 2025, arXiv 2505.11953): ascent in which a token counts p^beta * (1 - p).

    p^beta: what is forgotten is left alone (saturation); 1 - p: so is what is certain, and the tokens in between count
    (importance; its exponent is 1, which the authors recommend). The weights take no gradient, so what is descended is
    p^beta / beta - p^(beta + 1) / (beta + 1), whose gradient is the weight times that of log p; it falls to zero.
    """

    def term(log_probs: Tensor, true: Tensor, reference: Tensor) -> Float[Tensor, " paragraph"]:  # noqa: ARG001
        log_p = token_log_probs(log_probs, true)
        return ((beta * log_p).exp() / beta - ((beta + 1) * log_p).exp() / (beta + 1)).mean(-1)

    return term


def preference(beta: float = 0.1) -> Term:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290): prefer another continuation of a prefix to the memorized one.

    With r = log p / p_0 of a whole continuation, (2 / beta) * -log sigmoid(beta * (r(preferred) - r(memorized))),
    divided by the continuation's length: in the scale of NPO, which is the same without a preferred text. That models
    reproduce less when they prefer a text that is not verbatim is ParaPO's finding (Chen et al. 2025, arXiv
    2504.14452).
    """

    def term(log_probs: Tensor, true: Tensor, reference: Tensor) -> Float[Tensor, " paragraph"]:
        ratio = (token_log_probs(log_probs, true) - token_log_probs(reference, true)).sum(-1)
        memorized, preferred = ratio[0::2], ratio[1::2]
        return 2 / beta * functional.softplus(beta * (memorized - preferred)) / true.shape[1]

    return term


def to_uniform(log_probs: Tensor, true: Tensor, reference: Tensor) -> Float[Tensor, " paragraph"]:  # noqa: ARG001
    """KL(uniform || p), mean over tokens: the model is to know nothing there, not to avoid the text."""
    return -log_probs.mean(-1).mean(-1) - math.log(log_probs.shape[-1])
