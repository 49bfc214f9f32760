"""Approximations of patching that the library does not have, for comparison: RelP and AtP*.

RelP, relevance patching (Jafari et al. 2025, arXiv 2508.21258): the gradient is replaced by coefficients of layer-wise
relevance propagation. The normalizations of layer norm and the attention patterns count as constants, and a neuron's
activation function as the constant factor that it is at the base run.

AtP* (Kramar et al. 2024, arXiv 2403.00745): GradDrop takes one gradient for each layer, without the path through what
that layer writes, and adds their sizes, so that a direct and an indirect effect cannot cancel; for queries the
attention pattern is computed anew with the source run's query instead of to first order. AtP* gives sizes: here they
have the sign of the plain gradient.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mechmem.localize.attribution_gradients import BothRuns, both_runs, cells_of, mean_gradients
from mechmem.localize.metrics import Metric
from mechmem.localize.patch_effects import grid_of
from mechmem.localize.patch_pairs import Pairs
from mechmem.model.forward import residual_before
from mechmem.model.hooks import Hook, frozen, recording, with_hooks
from mechmem.model.lean.model import fast_float32
from mechmem.model.load import HookedTransformer

# Sites to which relevance propagates: queries act through patterns alone, which are constants.
RELP_SITES = ("z", "v", "mlp_out", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_post")


def relp(model: HookedTransformer, pairs: Pairs, site: str, metric: Metric) -> np.ndarray:
    """RelP's estimate of every cell, [pair, layer, part, pos]."""
    hooks: dict[str, Hook] = {"ln_final.hook_scale": _constant}
    inputs: dict[int, Tensor] = {}
    for layer in range(model.cfg.n_layers):
        block = f"blocks.{layer}"
        hooks |= {f"{block}.{name}.hook_scale": _constant for name in ("ln1", "ln2")}
        hooks[f"{block}.attn.hook_pattern"] = _constant
        hooks[f"{block}.mlp.hook_pre"], hooks[f"{block}.mlp.hook_post"] = _factor(inputs, layer)
    with with_hooks(model, hooks):
        runs = both_runs(model, pairs, site)
        gradients = mean_gradients(model, pairs, runs, metric, [0.0])
    return _cells(model, pairs, site, gradients, _difference(runs))


def atp_star(model: HookedTransformer, pairs: Pairs, site: str, metric: Metric) -> np.ndarray:
    """AtP*'s estimate of every cell, [pair, layer, part, pos]."""
    where = "pattern" if site == "q" else site
    runs = both_runs(model, pairs, where)
    difference = _patterns_change(model, pairs) if site == "q" else _difference(runs)
    plain = _cells(model, pairs, where, mean_gradients(model, pairs, runs, metric, [0.0]), difference)
    sizes = np.zeros_like(plain)
    for layer in range(model.cfg.n_layers):
        with with_hooks(model, {f"blocks.{layer}.{name}": _no_slope for name in ("hook_attn_out", "hook_mlp_out")}):
            gradients = mean_gradients(model, pairs, runs, metric, [0.0])
        sizes += np.abs(_cells(model, pairs, where, gradients, difference))
    # A site inside a layer has no gradient without that layer; the stream between layers has one in every pass.
    return np.sign(plain) * sizes / (model.cfg.n_layers - (not site.startswith("resid")))


METHODS: dict[str, Callable[[HookedTransformer, Pairs, str, Metric], np.ndarray]] = {"RelP": relp, "AtP*": atp_star}


def approximated(
    method: str, model: HookedTransformer, pairs: Pairs, site: str, metric: Metric, *, at_once: int = 4
) -> np.ndarray:
    """One method's estimate of every cell, [pair, layer, part, pos].

    Args:
        method: one of `METHODS`.
        model: left as it is; without hooks.
        pairs: as `check_pairs` gives them.
        site: of the cells; for RelP one of `RELP_SITES`.
        metric: a smooth function of the logits.
        at_once: pairs of one forward and backward.
    """
    parts = []
    with frozen(model), fast_float32(model.W_E.device):
        for first in range(0, len(pairs.clean), at_once):
            parts.append(METHODS[method](model, pairs.select(slice(first, first + at_once)), site, metric))
    return np.concatenate(parts)


def _difference(runs: BothRuns) -> dict[str, Tensor]:
    base, source = runs.activations
    return {name: source[name] - base[name] for name in base}


def _cells(
    model: HookedTransformer, pairs: Pairs, site: str, gradients: dict[str, Tensor], difference: dict[str, Tensor]
) -> np.ndarray:
    products = [(gradient * difference[name]).detach() for name, gradient in gradients.items()]
    return cells_of(products, grid_of(model, site, pairs.clean.shape[1], None))


def _constant(value: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens passes both
    return value.detach()


def _no_slope(value: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens passes both
    # The same value, whose gradient is zero instead of missing.
    return value.detach() + 0 * value


def _factor(inputs: dict[int, Tensor], layer: int) -> tuple[Hook, Hook]:
    """Hooks that make a neuron's activation function the factor post / pre, a constant."""

    def before(value: Tensor, hook: object) -> None:  # noqa: ARG001 - TransformerLens passes both
        inputs[layer] = value

    def after(value: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens passes both
        ratio = torch.where(inputs[layer] == 0, 0.0, value / inputs[layer]).detach()
        # The very value of the run, with another slope.
        linear = inputs[layer] * ratio
        return value.detach() + linear - linear.detach()

    return before, after


@torch.no_grad()
def _patterns_change(model: HookedTransformer, pairs: Pairs) -> dict[str, Tensor]:
    """By layer, the base run's patterns with the source run's queries, minus the base run's patterns."""
    blocks = [f"blocks.{layer}.attn" for layer in range(model.cfg.n_layers)]
    names = [f"{block}.{name}" for block in blocks for name in ("hook_q", "hook_k", "hook_attn_scores", "hook_pattern")]
    runs = []
    for tokens in (pairs.base, pairs.source):
        with recording(model, names) as recorded:
            residual_before(model, tokens, model.cfg.n_layers)
        runs.append(dict(recorded))
    base, source = runs
    change = {}
    for layer, block in enumerate(blocks):
        query, key = source[f"{block}.hook_q"], base[f"{block}.hook_k"]
        scores = torch.einsum("pqhd,pkhd->phqk", query, key) / model.blocks[layer].attn.attn_scale
        # What the base run masks stays masked.
        hidden = base[f"{block}.hook_pattern"].isclose(torch.zeros(())) & (base[f"{block}.hook_attn_scores"] < -1e4)
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        change[f"{block}.hook_pattern"] = pattern - base[f"{block}.hook_pattern"]
    return change
