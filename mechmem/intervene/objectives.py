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
class Objective:
    """mean over targets of `target` + keep_weight * mean over the keep set of `keep`.

    Attributes:
        target: term of the paragraphs to change.
        keep: term of the paragraphs to hold; None: there is no keep term.
        compares: whether `target` uses the original model's log-probabilities; if not, it is given none.
    """

    target: Term
    keep: Term | None
    compares: bool = False


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


def to_uniform(log_probs: Tensor, true: Tensor, reference: Tensor) -> Float[Tensor, " paragraph"]:  # noqa: ARG001
    """KL(uniform || p), mean over tokens: the model is to know nothing there, not to avoid the text."""
    return -log_probs.mean(-1).mean(-1) - math.log(log_probs.shape[-1])


OBJECTIVES: dict[str, Objective] = {
    "contrastive": Objective(raise_nll, hold_kl),
    "ascent": Objective(raise_nll, None),
    "grad_diff": Objective(raise_nll, lower_nll),
    "npo": Objective(negative_preference(), hold_kl, compares=True),
    "simnpo": Objective(simple_negative_preference(), hold_kl),
    "uniform": Objective(to_uniform, hold_kl),
}
