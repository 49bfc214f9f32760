"""How probably sampling says a text, exactly: no draw is made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.bounds import Count, Rate
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.model.forward import check_fit, continuation_logits, paragraphs_at_once
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public


@public("refuse", renamed={"paras": "paragraphs"})
def sampling_attack(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    draws: Sequence[Count] = (1, 10, 100, 1000),
    temperature: Rate = 1.0,
    top_k: Count | None = 40,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """The probability that at least one of n sampled continuations is the true one.

    (n, p)-discoverable extraction of Hayes et al. 2024 ("Measuring memorization through probabilistic discoverable
    extraction", arXiv 2410.19482). Greedy decoding misses a text that is the second choice once; many draws do not.
    A draw is the true continuation with probability q, the product of the sampler's probabilities of the true tokens
    after the true tokens before them, from one teacher-forced forward; n independent draws hold it with probability
    1 - (1 - q)^n. What part of it the best draw reproduces follows in the same way: the expected EM of the best of n is
    the sum over j of 1 - (1 - q_j)^n, where q_j is the probability that the first j tokens are right.

    Args:
        model: the edited model; left as it is.
        paragraphs: what it should not know.
        draws: the numbers n.
        temperature: logits are divided by it; as it goes to zero, sampling becomes greedy decoding.
        top_k: only tokens whose logit is at least the k-th largest are sampled; None: all.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset with the coordinate `draws`: log_probability[paragraph] (log q, nats; -inf where a true token is never
        sampled), probability[paragraph, draws] (0 to 1), em_best[paragraph, draws] (expected EM of the best draw,
        tokens). Higher: more of the text is still there.

    Raises:
        InputError: no number of draws or one below 1, a temperature that is not above 0, top_k below 1, or paragraphs
            that do not fit the model.
    """
    check_fit(model, paragraphs)
    if not draws:
        raise InputError("got no number of draws; need at least one, (1, 10, 100) for example")
    parts = []
    with torch.no_grad():
        size = paragraphs_at_once(model, paragraphs, batch_size)
        for rows in batches(len(paragraphs), size, progress):
            logits = continuation_logits(model, paragraphs.tokens[rows], paragraphs.prefix_len)
            parts.append(sampler_log_probs(logits, paragraphs.continuation[rows], temperature, top_k).cpu())
            del logits
    leading = torch.cat(parts).numpy().cumsum(-1)
    numbers = np.array(draws)
    once = at_least_once(leading[..., None], numbers)
    both, higher = ("paragraph", "draws"), {"higher": "more of the text is still there"}
    variables = {
        "log_probability": ("paragraph", leading[:, -1], {"units": "nats", "long_name": "of one draw"} | higher),
        "probability": (both, once[:, -1], {"units": "1"} | higher),
        "em_best": (both, once.sum(1), {"units": "tokens", "long_name": "expected EM of the best draw"} | higher),
    }
    attrs = {"temperature": temperature, "top_k": "all tokens" if top_k is None else top_k}
    return xr.Dataset(variables, {"paragraph": paragraphs.ids, "draws": numbers}, attrs)


def at_least_once(
    log_probability: Float[np.ndarray, "*batch"], draws: Int[np.ndarray, " draws"]
) -> Float[np.ndarray, "*result"]:
    """1 - (1 - q)^n without losing small q: -expm1(n log1p(-q)), from log q; shapes broadcast.

    Written out, 1 - (1 - 1e-20)^n is zero in float64 for every n.
    """
    # log1p(-1) is -inf, and its expm1 is -1: a certain draw is certain, without a warning.
    with np.errstate(divide="ignore"):
        return -np.expm1(draws * np.log1p(-np.exp(np.minimum(log_probability, 0.0))))


def sampler_log_probs(
    logits: Float[Tensor, "paragraph pos d_vocab"],
    true: Int[Tensor, "paragraph pos"],
    temperature: float,
    top_k: int | None,
) -> Float[Tensor, "paragraph pos"]:
    """The sampler's log-probability of each true token, float64, so that a product of fifty keeps its digits."""
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if top_k is not None and top_k < scaled.shape[-1]:
        # Cut by value: of tokens that tie at the border all stay, and none is chosen by its id.
        border = scaled.topk(top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < border, -torch.inf)
    chosen = scaled.gather(-1, true.to(scaled.device)[..., None]).squeeze(-1)
    return chosen.double() - scaled.logsumexp(-1).double()
