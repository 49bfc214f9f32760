"""A gate on every MLP neuron: its gradient, and learned sparse gates."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.data.errors import NotFiniteError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.model.forward import continuation_logits, token_nll
from mechmem.model.hooks import Hook, frozen, with_hooks
from mechmem.model.lean.model import fast_float32
from mechmem.model.load import HookedTransformer

Gates = Float[Tensor, "layer neuron"]
# The hard concrete distribution's temperature and the interval that it is stretched to (Louizos et al. 2018).
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1


def open_gates(model: HookedTransformer) -> Gates:
    """All gates at 1: the model as it is."""
    return torch.ones(model.cfg.n_layers, model.cfg.d_mlp or 0, device=model.cfg.device)


def gated_nll(model: HookedTransformer, paragraphs: Paragraphs, gates: Gates) -> Float[Tensor, ""]:
    """Mean NLL of the continuations, every neuron's output times its gate; gradients flow to the gates."""

    def gate(layer: int) -> Hook:
        return lambda value, hook: value * gates[layer]  # noqa: ARG005 - TransformerLens passes both

    hooks = {f"blocks.{layer}.mlp.hook_post": gate(layer) for layer in range(model.cfg.n_layers)}
    with with_hooks(model, hooks):
        logits = continuation_logits(model, paragraphs.tokens, paragraphs.prefix_len)
    return token_nll(logits, paragraphs.continuation).mean()


def gate_gradient(model: HookedTransformer, paragraphs: Paragraphs, steps: int | None = None) -> Gates:
    """Minus d NLL / d gate: to first order what closing the neuron adds to the NLL, nats per token.

    Args:
        model: left as it is.
        paragraphs: the mean NLL of all of them is differentiated, in one forward.
        steps: None: at the open gates (gradient times activation). Otherwise the mean over so many points between
            closed and open, one layer's gates together, the others open (integrated gradients, Sundararajan et al.
            2017): a layer's values add up to the rise of the NLL when all of them are closed.
    """
    with frozen(model), fast_float32(model.W_E.device), torch.enable_grad():
        if steps is None:
            gates = open_gates(model).requires_grad_()
            (gradient,) = torch.autograd.grad(gated_nll(model, paragraphs, gates), gates)
            return -gradient
        total = torch.zeros_like(open_gates(model))
        for layer in range(len(total)):
            for step in range(steps):
                gates = open_gates(model)
                gates[layer] = (step + 0.5) / steps
                gates.requires_grad_()
                (gradient,) = torch.autograd.grad(gated_nll(model, paragraphs, gates), gates)
                total[layer] -= gradient[layer] / steps
        return total


def learned_gates(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    hard_concrete: bool,
    penalty: float,
    steps: int,
    learning_rate: float,
    seed: int,
    until: float | None = None,
    progress: ProgressLike = None,
) -> Gates:
    """Close as many gates as the paragraphs' NLL allows; what stays open is what they need.

    Minimizes NLL + penalty * mean gate with Adam. Slimming (Liu et al. 2017) learns the gates themselves, from 1 and
    kept between 0 and 1; Hard Concrete (Louizos et al. 2018) learns the chance that a gate is open, from log odds of 0,
    which is sampled at every step. Chang et al. 2024 (NAACL) localize memorized text by both.

    Gates that reach the floor have no order any more: few steps at a small rate rank more neurons than many.

    Args:
        model: left as it is.
        paragraphs: the mean NLL of all of them is differentiated, in one forward.
        hard_concrete: which of the two.
        penalty: nats per token that closing all gates is worth.
        steps: at most so many updates.
        until: end when the mean gate, or the mean chance that one is open, is no higher; None: take all steps.
        learning_rate: of Adam, for gates or for the log odds of open ones.
        seed: of the samples.
        progress: called with (steps done, steps).

    Returns:
        The gates, or the chances that they are open: 0 to 1, higher: the paragraphs need the neuron more.

    Raises:
        NotFiniteError: the loss is not finite.
    """
    generator, report = torch.Generator().manual_seed(seed), as_callback(progress, "learned_gates")
    start = open_gates(model)
    values = (start * 0.0 if hard_concrete else start.clone()).requires_grad_()
    optimizer = torch.optim.Adam([values], lr=learning_rate)
    with frozen(model), fast_float32(model.W_E.device), torch.enable_grad():
        for step in range(steps):
            if hard_concrete:
                noise = torch.rand(values.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(values.device)
                soft = torch.sigmoid((noise.logit() + values) / TEMPERATURE)
                gates = (soft * (HIGH - LOW) + LOW).clamp(0, 1)
                size = chance_open(values).mean()
            else:
                gates, size = values, values.mean()
            loss = gated_nll(model, paragraphs, gates) + penalty * size
            if not math.isfinite(loss.item()):
                raise NotFiniteError(
                    f"the loss is {loss.item()} at step {step}; need a finite one: lower the learning rate"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not hard_concrete:
                with torch.no_grad():
                    values.clamp_(0, 1)
            ended = until is not None and float(size.detach()) <= until
            if report is not None:
                report(steps if ended else step + 1, steps)
            if ended:
                break
    with torch.no_grad():
        return (chance_open(values) if hard_concrete else values).detach().clone()


def chance_open(log_odds: Tensor) -> Tensor:
    """Chance that a hard concrete gate is not zero."""
    return torch.sigmoid(log_odds - TEMPERATURE * math.log(-LOW / HIGH))
