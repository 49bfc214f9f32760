"""Item 8: Gaussian noise on the selected weights and on one head, which the study's code puts on another head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.intervene.noise import add_noise
from mechmem.localize.gradients import weight_gradients
from mechmem.measure.scores import score
from mechmem.model.head_names import head_name
from mechmem.model.load import HookedTransformer
from mechmem.stats.ranges import range_of
from mechmem.study.paper.intervals import interval
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.readings import published_columns
from mechmem.study.paper.rows import Finding, Reading, Row, Trap
from mechmem.study.paper.study_head import study_head
from mechmem.weights.mask_choice import size
from mechmem.weights.masks import Mask

ITEM = "noise"
MEASURES = {"em": "tokens", "nll": "nats per token"}
READINGS: tuple[Reading, Reading] = ("as published", "corrected")
# The public code takes half of the share that the paper names.
SLIPPED_SHARE = 0.5

# [scale, draw, measure, paragraph]
Noisy = Float[np.ndarray, "scale draw measure paragraph"]


def noise_item(paper: PaperFolder) -> Finding:
    """EM and NLL under noise of more and more standard deviations of the weights, and trap 8.

    1. As published, on folded weights: half of the named share of the weights with the largest gradients; and the
       head's weights by their places in the head, which in the whole tensor are the places of head 0.
    2. Corrected, on raw weights: the whole share, by the gradient of paragraphs of other clusters than those that are
       scored; and the head itself. Beside each, as many random weights of every tensor.
    """
    count = paper.settings.targets
    choosing, memorized = paper.sample("memorized", 2 * count).split_by_cluster(0.5, seed=paper.seed)
    # Of two clusters the larger may be drawn last: then there is nothing to choose on but what is scored.
    memorized = memorized if len(memorized) else choosing
    other = paper.sample("other", count)
    sets, head = {"memorized": memorized, "other": other}, study_head(paper.model)
    masks: dict[Reading, dict[str, Mask]] = {
        "as published": _masks(paper, paper.folded, SLIPPED_SHARE, published_columns(memorized), slipped=True),
        "corrected": _masks(paper, paper.model, 1.0, choosing, slipped=False),
    }
    runs = sum(len(found) for found in masks.values()) * len(paper.settings.noise_scales) * paper.settings.noise_draws
    found: dict[Reading, dict[str, dict[str, Noisy]]] = {}
    done = 0
    for reading in READINGS:
        model = paper.folded if reading == "as published" else paper.model
        found[reading] = {}
        for name, mask in masks[reading].items():
            step = _shifted(paper.at("noise"), done, runs)
            found[reading][name] = noisy_scores(model, sets, mask, paper.settings, seed=paper.seed, progress=step)
            done += len(paper.settings.noise_scales) * paper.settings.noise_draws
    rows = _rows(paper, found, memorized, head_name(head))
    data = _data(paper, found, sets, masks)
    return Finding(tuple(rows), data, (_trap(paper, found, masks, head),))


def places_in_head(mask: Mask, head: int) -> Mask:
    """A mask of one head's weights at their places within the head; in the whole tensor these are places in head 0."""
    shifted = {}
    for name, index in mask.indices.items():
        each = size(mask.shapes[name]) // mask.shapes[name][0]
        shifted[name] = index - head * each
    return Mask(shifted, mask.shapes)


def share_in_head(mask: Mask, head: tuple[int, int]) -> float:
    """Percentage of a mask's weights that are the head's."""
    inside = 0
    for name, index in mask.indices.items():
        each = size(mask.shapes[name]) // mask.shapes[name][0]
        if name.startswith(f"blocks.{head[0]}.attn."):
            inside += int((index // each == head[1]).sum())
    return 100 * inside / mask.count


def noisy_scores(
    model: HookedTransformer,
    sets: Mapping[str, Paragraphs],
    mask: Mask,
    settings: Any,
    *,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Noisy]:
    """EM and NLL of every paragraph of each set, for each scale and draw; equal noise at every scale, times the scale.

    Args:
        model: left as it is.
        sets: to score.
        mask: weights that get noise.
        settings: `noise_scales` and `noise_draws`.
        seed: of the draws.
        progress: called with (noisy models scored, noisy models).
    """
    scales, draws = settings.noise_scales, settings.noise_draws
    found = {n: np.zeros((len(scales), draws, len(MEASURES), len(part))) for n, part in sets.items()}
    for row, scale in enumerate(scales):
        for draw in range(draws):
            noisy = add_noise(model, mask, scale=scale, seed=seed + draw)
            for name, part in sets.items():
                scores = score(noisy, part)
                found[name][row, draw] = [scores[measure].values for measure in MEASURES]
            if progress is not None:
                progress(row * draws + draw + 1, len(scales) * draws)
    return found


def _masks(
    paper: PaperFolder, model: HookedTransformer, share: float, paragraphs: Paragraphs, *, slipped: bool
) -> dict[str, Mask]:
    head = study_head(model)
    top = Mask.top(weight_gradients(model, paragraphs), fraction=share * paper.settings.fraction)
    own = Mask.heads(model, [head])
    own = places_in_head(own, head[1]) if slipped else own
    return {
        "top": top,
        "head": own,
        "top, random": Mask.random_like(top, seed=paper.seed),
        "head, random": Mask.random_like(own, seed=paper.seed),
    }


def _rows(paper: PaperFolder, found: Any, memorized: Paragraphs, name: str) -> list[Row]:
    """Of the memorized paragraphs; each paragraph's mean over draws, interval by cluster."""
    rows = []
    places = {"top": "the selected weights", "head": name}
    for which, place in places.items():
        for number, (measure, unit) in enumerate(MEASURES.items()):
            within = range_of(measure, memorized.continuation_len)
            for level, scale in enumerate(paper.settings.noise_scales):
                quantity = f"{measure.upper()}, noise of {scale:g} standard deviations on {place}"
                for reading in READINGS:
                    values = found[reading][which]["memorized"][level, :, number].mean(0)
                    low, high = interval(paper, values, memorized.clusters, within=within)
                    control = found[reading][f"{which}, random"]["memorized"][level, :, number].mean()
                    note = f"{reading.capitalize()}: {control:.2f} on as many random weights."
                    rows.append(Row(ITEM, quantity, reading, float(values.mean()), low, high, None, unit, note))
    return rows


def _trap(paper: PaperFolder, found: Any, masks: Any, head: tuple[int, int]) -> Trap:
    level = int(np.argmax(paper.settings.noise_scales))
    inside = {reading: share_in_head(masks[reading]["head"], head) for reading in READINGS}
    em = {reading: found[reading]["head"]["memorized"][level, :, 0].mean() for reading in READINGS}
    shares = {reading: 100 * masks[reading]["top"].count / masks[reading]["top"].total for reading in READINGS}
    change = (
        f"Indices taken in the slice of {head_name(head)} and used in the whole tensor fall on "
        f"{head_name((head[0], 0))}: mean EM under {paper.settings.noise_scales[level]:g} standard deviations is "
        f"{em['as published']:.2f} there and {em['corrected']:.2f} on {head_name(head)}. The mask that is called "
        f"{100 * paper.settings.fraction:g} % has {shares['as published']:.3g} % of the weights instead of "
        f"{shares['corrected']:.3g} %."
    )
    title, units = "Noise on head 2 lands on head 0, and 0.1 % is 0.05 %", f"% of the noise on {head_name(head)}"
    return Trap(8, title, inside["as published"], inside["corrected"], units, change)


def _data(paper: PaperFolder, found: Any, sets: Mapping[str, Paragraphs], masks: Any) -> xr.Dataset:
    names = list(masks["corrected"])
    means = np.array([[[found[r][m][s].mean(-1) for s in sets] for m in names] for r in READINGS])
    dims = ("reading", "mask", "set", "scale", "draw")
    higher = {"em": "more memorized", "nll": "less memorized"}
    before = {s: score(paper.model, part) for s, part in sets.items()}
    data: dict[str, Any] = {
        measure: (dims, means[..., number], {"units": unit, "higher": higher[measure]})
        for number, (measure, unit) in enumerate(MEASURES.items())
    }
    for measure, unit in MEASURES.items():
        data[f"{measure}_before"] = ("set", [float(before[s][measure].mean()) for s in sets], {"units": unit})
    counts = [[masks[r][m].count for m in names] for r in READINGS]
    data["weights"] = (("reading", "mask"), counts, {"units": "weights"})
    coords = {"reading": list(READINGS), "mask": names, "set": list(sets), "scale": list(paper.settings.noise_scales)}
    em = {m: data["em"][1][1, names.index(m), 0, -1].mean() for m in names}
    said = (
        f"Under the largest noise the mean EM of memorized paragraphs is {em['top']:.1f} on the selected weights and "
        f"{em['top, random']:.1f} on as many random ones, {em['head']:.1f} on {head_name(study_head(paper.model))} and "
        f"{em['head, random']:.1f} on as many random weights of its layer."
    )
    layer, head = study_head(paper.model)
    attrs: dict[str, Any] = {"scale_units": "standard deviations of the weight's component", "finding": said}
    return xr.Dataset(data, coords, attrs | {"noisy_heads": [head_name((layer, 0)), head_name((layer, head))]})


def _shifted(report: Progress, start: int, total: int) -> Progress:
    return lambda done, _: report(start + done, total)
