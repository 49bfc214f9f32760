"""Which neurons some paragraphs depend on, from three gradients: what a neuron adds and how well its weights fit."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.model.forward import continuation_logits, token_nll
from mechmem.model.hooks import Hook, frozen, with_hooks
from mechmem.model.lean.model import fast_float32
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters

Scores = Float[Tensor, "layer neuron"]
# Weights of the terms, and what is added to a contribution before its logarithm, in units of the layer's mean: chosen
# on injections into the bundled model of paragraphs and draws that no result is reported of.
STEEPNESS, FIT, KEPT_FIT, FLOOR = 0.5, 0.5, 0.25, 0.3
# Activations of one forward that are held, with their gradients.
_HELD = 2**25
_TINY = torch.finfo(torch.float32).tiny


def alignment(model: HookedTransformer, paragraphs: Paragraphs, keep: Paragraphs) -> Scores:
    """Score neurons by what they add to the paragraphs' log odds, and by how well their weights fit the text.

    The NLL of memorized text has almost no slope: its gradient is the tokens' that are least certain. The log odds
    log p / (1 - p) of the true token weigh each token alike however certain it is.

    1. Gradient times activation of the log odds at every position; the positive values, summed. Those that a neuron
       adds at one position are not taken back by what it costs at another.
    2. Less half of the size of the log odds' gradient at the in-weights: of neurons that add as much, those count that
       need not be steep to do so.
    3. Plus half of the cosine of the out-weights and the direction that lowers the NLL: weights that were trained on
       the text point to where it wants them.
    4. Less a quarter of the same cosine for the log odds of the keep set: weights that fit any text.

    Each term is standardized over its layer; the first and second as logarithms. Two forwards and four backwards. The
    terms are known (gradient times activation: Molchanov et al. 2017); their combination and weights are this
    project's own.

    Args:
        model: left as it is.
        paragraphs: those whose neurons are localized.
        keep: other text.

    Raises:
        InputError: layers that are not those that `editable_parameters` knows.
    """
    editable_parameters(model)
    with frozen(model), fast_float32(model.W_E.device):
        out = model.W_out.detach()
        found, kept = _gradients(model, paragraphs), _gradients(model, keep)
    share = found.added / found.added.mean(-1, keepdim=True).clamp(min=_TINY)
    terms = [
        (1.0, (share + FLOOR).log()),
        (-STEEPNESS, found.into.norm(dim=-1).clamp(min=_TINY).log()),
        (FIT, torch.cosine_similarity(out, found.certain, dim=-1)),
        (-KEPT_FIT, torch.cosine_similarity(out, kept.out, dim=-1)),
    ]
    return torch.stack([weight * _standardized(values) for weight, values in terms]).sum(0)


def log_odds(logits: Float[Tensor, "paragraph pos d_vocab"], true: Tensor) -> Float[Tensor, "paragraph pos"]:
    """The true tokens' log p / (1 - p): their logit minus the log of the others' summed exponentials."""
    own = logits.gather(-1, true[..., None])
    rest = logits.scatter(-1, true[..., None], -torch.inf).logsumexp(-1)
    return own[..., 0] - rest


@dataclass(frozen=True)
class _Found:
    """Sums over paragraphs.

    Attributes:
        added: positive contributions to the log odds, [layer, neuron].
        into: gradient of the log odds at the in-weights, [layer, neuron, d_model].
        out: the same at the out-weights.
        certain: gradient of minus the NLL at the out-weights.
    """

    added: Scores
    into: Float[Tensor, "layer neuron d_model"]
    out: Float[Tensor, "layer neuron d_model"]
    certain: Float[Tensor, "layer neuron d_model"]

    def __add__(self, other: _Found) -> _Found:
        return _Found(
            self.added + other.added, self.into + other.into, self.out + other.out, self.certain + other.certain
        )


def _gradients(model: HookedTransformer, paragraphs: Paragraphs) -> _Found:
    """All gradients, summed over paragraphs; the caller has frozen the model."""
    for block in model.blocks:
        for name in ("W_in", "W_out"):
            block.mlp.get_parameter(name).requires_grad_(True)  # pyright: ignore[reportAttributeAccessIssue]
    one = model.cfg.n_layers * (model.cfg.d_mlp or 1) * paragraphs.tokens.shape[1]
    batches = paragraphs.tokens.split(max(1, _HELD // one))
    return functools.reduce(operator.add, (_batch(model, tokens, paragraphs.prefix_len) for tokens in batches))


def _batch(model: HookedTransformer, tokens: Int[Tensor, "paragraph pos"], prefix_len: int) -> _Found:
    layers = range(model.cfg.n_layers)
    into, out = ([model.blocks[layer].mlp.get_parameter(name) for layer in layers] for name in ("W_in", "W_out"))
    outputs: dict[int, Tensor] = {}

    def keeping(layer: int) -> Hook:
        return lambda value, hook: outputs.setdefault(layer, value)  # noqa: ARG005 - TransformerLens passes both

    hooks = {f"blocks.{layer}.mlp.hook_post": keeping(layer) for layer in layers}
    with torch.enable_grad(), with_hooks(model, hooks):
        logits = continuation_logits(model, tokens, prefix_len)
        true = tokens[:, prefix_len:].to(logits.device)
        wanted = [*(outputs[layer] for layer in layers), *into, *out]
        odds = torch.autograd.grad(log_odds(logits, true).sum(), wanted, retain_graph=True)
        nll = torch.autograd.grad(-token_nll(logits, true).sum(), out)
    slopes, of_in, of_out = (odds[start : start + len(layers)] for start in range(0, len(odds), len(layers)))
    added = [(outputs[layer].detach() * slopes[layer]).clamp(min=0).sum((0, 1)) for layer in layers]
    return _Found(torch.stack(added), torch.stack(of_in).transpose(1, 2), torch.stack(of_out), torch.stack(nll))


def _standardized(values: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 in each layer; a layer of equal values is 0."""
    centred = values - values.mean(-1, keepdim=True)
    return centred / centred.std(-1, keepdim=True).clamp(min=_TINY)
