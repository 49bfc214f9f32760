"""Noise on chosen weights, with noise on as many random weights as a control."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mechmem.data.bounds import Amount, Count, Seed, Share
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, part_of
from mechmem.measure.scores import score
from mechmem.model.forward import check_fit
from mechmem.model.hooks import frozen
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.sites import editable_parameters
from mechmem.weights.mask_choice import Per
from mechmem.weights.masked_weights import check_mask
from mechmem.weights.masks import Mask

ABOUT = {
    "em": {"units": "tokens", "higher": "more memorized"},
    "nll": {"units": "nats per token", "higher": "less memorized"},
}


@public("refuse")
def add_noise(model: HookedTransformer, mask: Mask, *, scale: Amount, seed: Seed) -> HookedTransformer:
    """Return a copy whose masked weights have Gaussian noise added; no other weight moves.

    The noise on a weight has `scale` times the standard deviation of the weight's own component: of one head's W_Q,
    W_K, W_V or W_O, or of a whole W_in or W_out (the noise intervention of Stoehr et al. 2024, arXiv 2403.19851).
    Equal seeds give the same noise at every scale, times the scale.

    Args:
        model: left as it is.
        mask: weights that get noise; it may choose all of them.
        scale: in standard deviations of the component; 0 gives the same weights bit for bit.
        seed: of the noise.

    Raises:
        InputError: a scale that is negative or not finite, an empty mask, or one of another model.
    """
    check_mask(model, mask, all_allowed=True)
    noisy = copy.deepcopy(model)
    _put_noise(model, noisy, mask, scale, seed)
    return noisy


@public("refuse")
def noise_curve(
    model: HookedTransformer,
    sets: Mapping[str, Paragraphs],
    mask: Mask,
    *,
    scales: Sequence[Amount] = (0.1, 0.3, 1.0, 3.0),
    draws: Count = 5,
    seed: Seed = 0,
    control: bool = True,
    batch_size: Count = 32,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """EM and NLL of sets of paragraphs under more and more noise on chosen weights, and on random ones.

    Each draw has noise of its own, the same at every scale, and a random mask of its own, with as many weights in every
    tensor as `mask` has. What is chosen matters only where the chosen mask loses more than the random ones do.

    Args:
        model: left as it is.
        sets: name -> paragraphs to score, memorized and other ones for example.
        mask: weights that get noise.
        scales: of the noise, in standard deviations of each weight's component; see `add_noise`.
        draws: how often noise is drawn.
        seed: of noise and random masks.
        control: also put noise on random weights.
        batch_size: paragraphs of one forward.
        progress: called with (noisy models scored, noisy models).

    Returns:
        Dataset with `em` (mean over the set, tokens, higher: more memorized) and `nll` (mean, nats per token) [mask,
        scale, draw, set], `em_before` and `nll_before` [set] of the model as it is, coordinates `mask` ("chosen",
        "random"), `scale`, `draw`, `set`, `noise_seed` [draw] (what `add_noise` takes) and `mask_seed` [draw] (what
        `Mask.random_like` takes).

    Raises:
        InputError: no set or an empty one, paragraphs that do not fit, no scale or draw, a scale that is negative or
            not finite, a mask that is empty or of another model, or noise so large that the forward gives NaN.
    """
    check_mask(model, mask, all_allowed=True)
    _check_scales(scales)
    _check_sets(model, sets)
    seeds = [np.random.SeedSequence([seed, draw]).generate_state(2).tolist() for draw in range(draws)]
    names = ["chosen", "random"] if control else ["chosen"]
    values = np.zeros((len(names), len(scales), draws, len(sets), len(ABOUT)))
    noisy, report = copy.deepcopy(model), as_callback(progress, "noise_curve")
    with frozen(noisy):
        for row, name in enumerate(names):
            for draw, (noise_seed, mask_seed) in enumerate(seeds):
                here = mask if name == "chosen" else Mask.random_like(mask, seed=mask_seed)
                for column, scale in enumerate(scales):
                    _put_noise(model, noisy, here, scale, noise_seed)
                    values[row, column, draw] = _means(noisy, sets, batch_size)
                    if report is not None:
                        done = (row * draws + draw) * len(scales) + column + 1
                        report(done, len(names) * draws * len(scales))
                _put_noise(model, noisy, here, 0.0, noise_seed)
    coords = {"mask": names, "scale": list(scales), "draw": np.arange(draws), "set": list(sets)}
    coords |= {name: ("draw", [each[i] for each in seeds]) for i, name in enumerate(("noise_seed", "mask_seed"))}
    dims, before = ("mask", "scale", "draw", "set"), _means(model, sets, batch_size)
    data = {name: (dims, values[..., i], about) for i, (name, about) in enumerate(ABOUT.items())}
    data |= {f"{name}_before": ("set", before[:, i], about) for i, (name, about) in enumerate(ABOUT.items())}
    attrs = {"weights": mask.count, "seed": seed, "scale_units": "standard deviations of the weight's component"}
    return xr.Dataset(data, coords, attrs)


@public("refuse", renamed={"scores": "weights"})
def noise_by_size(
    model: HookedTransformer,
    sets: Mapping[str, Paragraphs],
    weights: Mapping[str, Tensor],
    *,
    fractions: Sequence[Share] = (0.0001, 0.001, 0.01, 0.1),
    scale: Amount = 1.0,
    per: Per = "model",
    draws: Count = 5,
    seed: Seed = 0,
    control: bool = True,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """EM and NLL under noise of one scale on more and more weights, those that score highest first.

    Args:
        model: left as it is.
        sets: name -> paragraphs to score.
        weights: parameter name -> score of each weight, as `Mask.top` takes.
        fractions: of the weights, one mask each.
        scale: of the noise, in standard deviations of each weight's component.
        per: what weights are ranked among, as `Mask.top`.
        draws: how often noise is drawn; so too seed and control as `noise_curve`.
        seed: of noise and random masks.
        control: also put noise on as many random weights.
        progress: called with (noisy models scored, noisy models).

    Returns:
        Dataset as `noise_curve` gives, [mask, fraction, draw, set], with `weights` [fraction]: how many got noise.

    Raises:
        InputError: as `noise_curve` and `Mask.top`.
    """
    if not fractions:
        raise InputError("got no fraction; need at least one, for example 0.001 for one weight in a thousand")
    masks = [Mask.top(weights, fraction=fraction, per=per) for fraction in fractions]
    for mask in masks:
        check_mask(model, mask, all_allowed=True)
    curves = [
        noise_curve(
            model,
            sets,
            mask,
            scales=(scale,),
            draws=draws,
            seed=seed,
            control=control,
            progress=None if progress is None else part_of(progress, number, len(masks)),
        )
        for number, mask in enumerate(masks)
    ]
    fraction = xr.DataArray(list(fractions), dims="fraction", name="fraction")
    varied = xr.concat([curve[list(ABOUT)] for curve in curves], dim=fraction, combine_attrs="drop_conflicts")
    result = varied.squeeze("scale").transpose("mask", "fraction", "draw", "set")
    same = curves[0][[f"{name}_before" for name in ABOUT]]
    return result.assign(same.data_vars).assign_coords(weights=("fraction", [mask.count for mask in masks]))


@torch.no_grad()
def _put_noise(model: HookedTransformer, noisy: HookedTransformer, mask: Mask, scale: float, seed: int) -> None:
    """Set a copy's masked weights to the model's plus noise; scale 0 puts them back."""
    generator = torch.Generator().manual_seed(seed)
    original, target = editable_parameters(model), editable_parameters(noisy)
    for name, chosen in mask.indices.items():
        flat, index = original[name].detach().reshape(-1), chosen.to(original[name].device)
        values = flat[index]
        # Adding +0.0 is skipped, too: it would turn -0.0 into 0.0.
        if scale > 0:
            wide = torch.promote_types(values.dtype, torch.float32)
            drawn = torch.randn(len(chosen), generator=generator).to(flat.device, wide)
            deviation = scale * _deviations(name, original[name]).to(wide)
            # A component's weights stand together: the first axis of attention weights is the head.
            own = deviation[index // (flat.numel() // len(deviation))]
            values = (values.to(wide) + own * drawn).to(flat.dtype)
        target[name].view(-1)[index.to(target[name].device)] = values.to(target[name].device)


def _deviations(name: str, parameter: Tensor) -> Tensor:
    """Standard deviation of each component's weights, [component]: one for each head, or one of an MLP matrix."""
    parts = parameter.detach().flatten(1) if ".attn." in name else parameter.detach().reshape(1, -1)
    return parts.double().std(-1, correction=0)


def _means(model: HookedTransformer, sets: Mapping[str, Paragraphs], batch_size: int) -> np.ndarray:
    scored = [score(model, paragraphs, batch_size=batch_size) for paragraphs in sets.values()]
    return np.array([[float(each[name].mean(skipna=False)) for name in ABOUT] for each in scored])


def _check_scales(scales: Sequence[float]) -> None:
    if not scales:
        raise InputError("got no scale; need at least one, 1.0 for example")


def _check_sets(model: HookedTransformer, sets: Mapping[str, Paragraphs]) -> None:
    if not sets:
        raise InputError("got no set of paragraphs; need at least one, {'memorized': paragraphs} for example")
    for name, paragraphs in sets.items():
        if len(paragraphs) == 0:
            raise InputError(f"the set '{name}' is empty; leave it out")
        check_fit(model, paragraphs)
