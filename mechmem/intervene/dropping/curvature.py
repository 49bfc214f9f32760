"""Memories as directions of low curvature: MLP matrices without them, found without knowing what was memorized."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.intervene.dropping.gradual import Schedule
from mechmem.localize.paragraph_gradients import norm_output
from mechmem.model.forward import continuation_logits
from mechmem.model.hooks import frozen, recording, with_hooks
from mechmem.model.lean.model import fast_float32
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters
from mechmem.weights.masks import Mask

# Share of a matrix' coefficients that is gone at share 1.
LIMIT = 0.95
BATCH = 4
POINTS = {"in": ("ln2.hook_normalized", "mlp.hook_pre"), "out": ("mlp.hook_post", "hook_mlp_out")}


@dataclass(frozen=True)
class Factors:
    """The two factors of a matrix' curvature, sums over tokens divided by their number.

    Attributes:
        inputs: a a^T of what goes in, [d_in, d_in].
        outputs: g g^T of the gradient of what comes out, [d_out, d_out].
    """

    inputs: Float[Tensor, "d_in d_in"]
    outputs: Float[Tensor, "d_out d_out"]


def kfac(
    model: HookedTransformer,
    memorized: Paragraphs,  # noqa: ARG001 - label-free: it is never looked at
    keep: Paragraphs,
    *,
    mask: Mask | None,  # noqa: ARG001 - the mask is applied to what a schedule gives
    seed: int,
    progress: Progress | None = None,
) -> Schedule:
    """Take directions of low curvature out of every MLP matrix (Merullo et al. 2025, arXiv 2510.24256).

    1. On the keep set alone: A = mean of a a^T of a matrix' inputs, G = mean of g g^T of its outputs' gradients, for
       labels that the model itself draws. The Kronecker product of both approximates the Fisher information (K-FAC,
       Martens and Grosse 2015, arXiv 1503.05671).
    2. In the eigenvectors of A and G the weights are coefficients; that of the i-th and the j-th has the curvature
       lambda_i * mu_j: what many texts share is where it is high.
    3. Coefficients go in the order of their curvature, the lowest first; at share 1 all but a twentieth.

    What is memorized is not told to it: all memories are meant, not these paragraphs.
    """
    found = curvature_factors(model, keep, seed=seed, progress=progress)
    parameters = editable_parameters(model)
    bases = {}
    for name, factors in found.items():
        low, inputs = torch.linalg.eigh(factors.inputs)
        high, outputs = torch.linalg.eigh(factors.outputs)
        curvature = low.clamp(min=0)[:, None] * high.clamp(min=0)
        # Ranks and not values: ties, zeros most of all, go in order, and a larger share always takes more.
        ranks = torch.empty(curvature.numel(), dtype=torch.long, device=curvature.device)
        ranks[torch.argsort(curvature.flatten(), stable=True)] = torch.arange(len(ranks), device=ranks.device)
        bases[name] = inputs, outputs, ranks.view(curvature.shape)

    def schedule(share: float) -> dict[str, Tensor]:
        new = {}
        for name, (inputs, outputs, ranks) in bases.items():
            coefficients = inputs.T @ parameters[name].detach() @ outputs
            kept = coefficients * (ranks >= round(share * LIMIT * ranks.numel()))
            new[name] = inputs @ kept @ outputs.T
        return new

    return schedule


def curvature_factors(
    model: HookedTransformer, paras: Paragraphs, *, seed: int, progress: Progress | None = None
) -> dict[str, Factors]:
    """The factors of every W_in and W_out, over all tokens of some paragraphs.

    Args:
        model: left as it is.
        paras: on which curvature is taken; the loss is the sum over continuation tokens of -log p(drawn label).
        seed: of the labels, drawn from the model's own predictions.
        progress: called with (paragraphs done, paragraphs).
    """
    names = [name for name in editable_parameters(model) if ".mlp." in name]
    ends = {
        name: tuple(f"blocks.{name.split('.')[1]}.{end}" for end in POINTS[name.rsplit("_", 1)[1]]) for name in names
    }
    sums: dict[str, list[Tensor]] = {}
    generator = torch.Generator(model.W_E.device).manual_seed(seed)
    tokens = paras.tokens.numel()
    with frozen(model), fast_float32(model.W_E.device):
        for start in range(0, len(paras), BATCH):
            batch = paras.tokens[start : start + BATCH]
            with torch.enable_grad(), with_hooks(model, {"hook_embed": lambda x, hook: x.detach().requires_grad_()}):  # noqa: ARG005
                with recording(model, {point for pair in ends.values() for point in pair}) as seen:
                    logits = continuation_logits(model, batch, paras.prefix_len)
                chances = logits.detach().softmax(-1).flatten(0, 1)
                labels = torch.multinomial(chances, 1, generator=generator).flatten()
                loss = functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
                gradients = torch.autograd.grad(loss, [seen[pair[1]] for pair in ends.values()])
            with torch.no_grad():
                for (name, (into, _)), gradient in zip(ends.items(), gradients, strict=True):
                    x = norm_output(model, into, seen[into].detach()).flatten(0, -2)
                    g = gradient.flatten(0, -2)
                    kept = sums.setdefault(
                        name, [x.new_zeros(x.shape[1], x.shape[1]), g.new_zeros(g.shape[1], g.shape[1])]
                    )
                    kept[0] += x.T @ x / tokens
                    kept[1] += g.T @ g / tokens
            if progress is not None:
                progress(min(start + BATCH, len(paras)), len(paras))
    return {name: Factors(*pair) for name, pair in sums.items()}
