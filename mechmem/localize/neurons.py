"""Which MLP neurons hold some paragraphs, by any method: one signature, one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mechmem.data.bounds import Seed, Share, checked
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError, NotFiniteError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.data.ranking import largest, share_of
from mechmem.localize.attribution import attribute
from mechmem.localize.neuron_alignment import alignment
from mechmem.localize.neuron_gates import gate_gradient, learned_gates
from mechmem.localize.paragraph_gradients import Contrast, contrastive_gradients
from mechmem.measure.scores import score_logits
from mechmem.model.forward import check_fit
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.lean.trace import resume, trace
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

NeuronMethod = Literal[
    "alignment",
    "hard_concrete",
    "slimming",
    "zero_out",
    "integrated",
    "gate_gradient",
    "attribution",
    "fisher",
    "difference",
    "gradient",
    "activations",
    "random",
]
Scores = Float[Tensor, "layer neuron"]
# Rows of one forward of the exact method.
ROWS = 32


@dataclass(frozen=True)
class Task:
    """What a method is given.

    Attributes:
        model: left as it is.
        paragraphs: those whose neurons are localized.
        keep: paragraphs that should not depend on those neurons; for methods that contrast.
        seed: of what is random.
        progress: called with (steps done, steps), by methods that take long.
    """

    model: HookedTransformer
    paragraphs: Paragraphs
    keep: Paragraphs
    seed: int
    progress: ProgressLike


@public("refuse", renamed={"paras": "paragraphs"})
def localize_neurons(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    keep: Paragraphs,
    *,
    method: NeuronMethod = "integrated",
    seed: Seed = 0,
    progress: ProgressLike = None,
) -> xr.DataArray:
    """Score every MLP neuron by how much some paragraphs depend on it.

    Methods: "alignment": what the neuron adds to the log odds of the text and how well its weights fit it, as
    `neuron_alignment.alignment`: first on the scoreboard; "zero_out": exact, the NLL's rise when the neuron's output is
    zero at every position; "gradient": size of the NLL's gradient at the neuron's weights (Stoehr et al. 2024);
    "fisher", "difference": the same against the keep set, as `contrastive_gradients`; "gate_gradient": gradient times
    activation; "integrated": integrated gradients; "attribution": attribution patching against the keep set's
    paragraphs; "activations": mean |output| times the norm of what it writes (Geva et al. 2022); "slimming",
    "hard_concrete": learned gates, as `learned_gates`; "random": a control. Chang et al. 2024 (NAACL) compare most of
    these.

    Args:
        model: left as it is.
        paragraphs: those whose neurons are localized.
        keep: paragraphs that should not depend on those neurons; methods that do not contrast leave it unread.
        method: see above.
        seed: of what is random.
        progress: called with (steps done, steps), by methods that take long.

    Returns:
        DataArray [layer, neuron]; higher: the paragraphs depend more on the neuron. Units depend on the method: only
        the order counts.

    Raises:
        InputError: an unknown method, paragraphs that do not fit, or a model that the method cannot read.
        NotFiniteError: a gradient or a loss is not finite.
    """
    check_choice("method", method, NeuronMethod)
    for each in (paragraphs, keep):
        check_fit(model, each)
    if model.cfg.attn_only:
        raise InputError("the model has no MLPs, so no neurons; need a model with MLPs: localize heads instead")
    found = METHODS[method](Task(model, paragraphs, keep, seed, progress)).detach().double().cpu().numpy()
    if not np.isfinite(found).all():
        raise NotFiniteError(f"{method} gave values that are not finite; look at the weights")
    coords = {"layer": np.arange(found.shape[0]), "neuron": np.arange(found.shape[1])}
    attrs = {"method": method, "higher": "the paragraphs depend more on the neuron", "paragraphs": len(paragraphs)}
    return xr.DataArray(found, coords, ("layer", "neuron"), "score", attrs | {"seed": seed})


@checked
def top_neurons(scores: xr.DataArray, fraction: Share) -> list[tuple[int, int]]:
    """The neurons with the highest scores, which `Mask.neurons` takes.

    Args:
        scores: [layer, neuron], as `localize_neurons` gives.
        fraction: share of all neurons, 0 < fraction <= 1; at least one neuron is taken.

    Returns:
        (layer, neuron) pairs, zero-based, highest score first; of equal scores the lower layer and neuron.

    Raises:
        InputError: other dimensions, or a fraction out of range.
    """
    if set(scores.dims) != {"layer", "neuron"}:
        raise InputError(f"got scores with dimensions {list(scores.dims)}; need layer and neuron: localize_neurons")
    values = scores.transpose("layer", "neuron").values
    return [divmod(int(flat), values.shape[1]) for flat in largest(values, share_of(values.size, fraction, 0.01))]


def _random(task: Task) -> Scores:
    shape = task.model.cfg.n_layers, task.model.cfg.d_mlp or 0
    return torch.from_numpy(np.random.default_rng(task.seed).random(shape))


def _activations(task: Task) -> Scores:
    lean = LeanModel(task.model)
    columns = slice(task.paragraphs.prefix_len - 1, -1)
    output = trace(lean, task.paragraphs.tokens, ("mlp_post",))["mlp_post"][:, :, columns].abs().mean((1, 2))
    return output * torch.stack([layer.w_out.norm(dim=-1) for layer in lean.layers])


def _weights(contrast: Contrast) -> Callable[[Task], Scores]:
    """Norm over a neuron's own weights, those that feed it and those that it writes with."""

    def method(task: Task) -> Scores:
        found = contrastive_gradients(task.model, task.paragraphs, task.keep, method=contrast, progress=task.progress)
        rows = []
        for layer in range(task.model.cfg.n_layers):
            into, out = (found[f"blocks.{layer}.mlp.W_{end}"] for end in ("in", "out"))
            rows.append((into.square().sum(0) + out.square().sum(1)).sqrt())
        return torch.stack(rows)

    return method


def _attribution(task: Task) -> Scores:
    count = min(len(task.paragraphs), len(task.keep))
    clean, corrupt = (each.select(np.arange(count)) for each in (task.paragraphs, task.keep))
    effect = attribute(task.model, clean, corrupt, site="mlp_post", groups=task.model.cfg.d_mlp or 1)
    return torch.from_numpy(effect.sum("pos").transpose("layer", "group").values)


def _zero_out(task: Task) -> Scores:
    """Rows of one forward are (neuron, paragraph), from the layer above the neuron on."""
    lean, paragraphs, report = LeanModel(task.model), task.paragraphs, as_callback(task.progress, "zero_out")
    count, width = len(paragraphs), task.model.cfg.d_mlp or 0
    result = torch.zeros(len(lean.layers), width, dtype=torch.float64)
    with torch.no_grad(), fast_float32(lean.device):
        base = trace(lean, paragraphs.tokens, ("mlp_post", "resid_post", "k", "v"))
        every = torch.arange(count, device=lean.device)
        before = _nll(lean, base.final[:, paragraphs.prefix_len - 1 : -1], paragraphs, every)
        rows = torch.cartesian_prod(torch.arange(width, device=lean.device), every)
        for number, layer in enumerate(lean.layers):
            for chosen in rows.split(ROWS):
                neuron, paragraph = chosen[:, 0], chosen[:, 1]
                output = base["mlp_post"][number][paragraph, :, neuron]
                residual = base["resid_post"][number][paragraph] - output[..., None] * layer.w_out[neuron][:, None]
                end = resume(lean, residual[:, :-1], number + 1, 0, base, paragraph, needed=paragraphs.prefix_len - 1)
                rise = _nll(lean, end, paragraphs, paragraph) - before[paragraph]
                result[number].index_add_(0, neuron.cpu(), rise.cpu() / count)
            if report is not None:
                report(number + 1, len(lean.layers))
    return result


def _nll(lean: LeanModel, final: Tensor, paragraphs: Paragraphs, paragraph: Tensor) -> Float[Tensor, " row"]:
    true = paragraphs.continuation.to(lean.device)[paragraph]
    return score_logits(lean.unembed(final), true)["nll"].double()


def _gates(
    *, hard_concrete: bool, each: float, steps: int, learning_rate: float, until: float | None = None
) -> Callable[[Task], Scores]:
    return lambda task: learned_gates(
        task.model,
        task.paragraphs,
        hard_concrete=hard_concrete,
        penalty=each * task.model.cfg.n_layers * (task.model.cfg.d_mlp or 1),
        steps=steps,
        learning_rate=learning_rate,
        seed=task.seed,
        until=until,
        progress=task.progress,
    )


# Settings of the learned gates: near those of Chang et al.'s code (Hard Concrete from half-open gates), with the rate,
# end and penalty (`each`: nats per token that closing one gate is worth) that ranked what had been injected into the
# bundled model best, on paragraphs and draws that no result is reported of.
METHODS: Mapping[NeuronMethod, Callable[[Task], Scores]] = {
    "alignment": lambda task: alignment(task.model, task.paragraphs, task.keep),
    "hard_concrete": _gates(hard_concrete=True, each=0.16, steps=50, learning_rate=4e-3),
    "slimming": _gates(hard_concrete=False, each=0.0016, steps=300, learning_rate=0.01, until=0.5),
    "zero_out": _zero_out,
    "integrated": lambda task: gate_gradient(task.model, task.paragraphs, steps=8),
    "gate_gradient": lambda task: gate_gradient(task.model, task.paragraphs),
    "attribution": _attribution,
    "fisher": _weights("fisher"),
    "difference": _weights("difference"),
    "gradient": _weights("plain"),
    "activations": _activations,
    "random": _random,
}
