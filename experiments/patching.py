"""Which heads carry a memory: activations at a replaced prefix token, patched from one run into the other.

    python experiments/patching.py     # half a minute on one core; writes results/patching

Stoehr et al. (2024, section 3.2 and figure 2) patch q, k and v of every head at the perturbed token between a memorized
paragraph and its worst perturbation, in both directions, and look at the NLL of the first impacted token. Here a
gradient estimates every cell first, and the cells with the largest estimates are patched exactly. One pair can dominate
a mean over pairs, so intervals over pairs and medians are reported, too.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from inputs import Inputs, open_inputs, start
from outputs import save
from samples import by_em

import mechmem as mm
from mechmem.data.bounds import Count, Seed, Share
from mechmem.localize.attribution import rank_correlation, top_cells
from mechmem.model.load import HookedTransformer
from mechmem.report.heatmaps import head_heatmap

SITES = ("q", "k", "v")
DIRECTIONS = ("noising", "denoising")


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws candidates, samples and replacements.
        candidates: paragraphs that are scored, at random.
        pairs: memorized paragraphs that are perturbed, one of each cluster.
        samples: random replacements of each prefix token.
        fraction: share of the heads of a site and direction that are patched exactly.
        out: folder of the result and the figure.
    """

    seed: Seed = 0
    candidates: Count = 300
    pairs: Count = 24
    samples: Count = 1
    fraction: Share = 0.5
    out: Path = Path("results/patching")


def at_perturbed(effect: xr.DataArray, positions: xr.DataArray) -> xr.DataArray:
    """Each pair's cells at its own perturbed token, [paragraph, layer, head]."""
    return effect.sel(pos=positions).drop_vars("pos")


def interval(values: np.ndarray) -> np.ndarray:
    """95 % of the mean over pairs, low and high; NaN where nothing was patched."""
    if np.isnan(values).any():
        return np.full(2, np.nan)
    return np.array(mm.cluster_bootstrap(values, np.arange(len(values))))


def main(settings: Settings, model: HookedTransformer | None = None) -> xr.Dataset:
    """Perturb, estimate and patch.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        effect [direction, site, paragraph, layer, head], exact, NaN where not patched: NLL of the clean text's token at
        the first impacted position after the patch minus before, in nats, with the patch at the perturbed token;
        effect_low, effect_high [direction, site, layer, head], 95 % of the mean over pairs, each of its own cluster;
        estimate, of the shape of effect, everywhere; agreement [direction, site], rank correlation of both means over
        patched cells; base_nll, source_nll [direction]; perturbed_pos, impact_pos, em_change, paragraph_id [paragraph];
        clean, corrupt [paragraph, token_pos], token ids.
    """
    model, shipped = open_inputs(settings, model)
    ranges = {"memorized": (50, 50)}
    paragraphs = by_em(model, shipped, ranges, candidates=settings.candidates, each=settings.pairs, seed=settings.seed)[
        "memorized"
    ]
    perturbed = mm.perturb_prefix(model, paragraphs, samples=settings.samples, seed=settings.seed)
    clean, corrupt = mm.worst_perturbations(model, paragraphs, perturbed, before="all")
    positions = xr.DataArray(clean.column("perturbed_pos"), dims="paragraph")
    estimates, effects, intervals, agreement, ends = [], [], [], [], []
    for direction in DIRECTIONS:
        for site in SITES:
            found = mm.attribute(model, clean, corrupt, site=site, direction=direction, scored="impact", average=False)
            estimate = at_perturbed(found, positions)
            chosen = top_cells(estimate.mean("paragraph"), settings.fraction)
            # Pairs are perturbed at different places and cells are chosen for all pairs: every pair gets all places.
            cells = chosen & found.pos.isin(positions.values)
            patched = mm.patch(
                model, clean, corrupt, site=site, direction=direction, scored="impact", cells=cells, average=False
            )
            effect = at_perturbed(patched, positions)
            agreement.append(rank_correlation(estimate.mean("paragraph"), effect.mean("paragraph", skipna=False)))
            estimates.append(estimate)
            effects.append(effect)
            intervals.append(np.apply_along_axis(interval, 0, effect.values))
        ends.append([effects[-1].attrs["base"], effects[-1].attrs["source"]])
    axes = {"direction": list(DIRECTIONS), "site": list(SITES)}
    inner = effects[0]
    shape = (len(DIRECTIONS), len(SITES), *inner.shape)
    dims = (*axes, *inner.dims)
    between = np.stack(intervals).reshape((*shape[:2], 2, *shape[3:]))
    words = {"units": "nats", "higher": "the patch makes the clean text's token less likely"}
    result = xr.Dataset(
        {
            "effect": (dims, np.stack([part.values for part in effects]).reshape(shape), words),
            "effect_low": ((*axes, *inner.dims[1:]), between[:, :, 0], words),
            "effect_high": ((*axes, *inner.dims[1:]), between[:, :, 1], words),
            "estimate": (dims, np.stack([part.values for part in estimates]).reshape(shape), words),
            "agreement": (tuple(axes), np.array(agreement).reshape(shape[:2]), {"units": "rank correlation"}),
            "base_nll": ("direction", np.array(ends)[:, 0], {"units": "nats"}),
            "source_nll": ("direction", np.array(ends)[:, 1], {"units": "nats"}),
            **{name: ("paragraph", clean.column(name)) for name in ("perturbed_pos", "impact_pos", "em_change")},
            "paragraph_id": ("paragraph", clean.ids),
            "clean": (("paragraph", "token_pos"), clean.tokens.numpy(), {"units": "token id"}),
            "corrupt": (("paragraph", "token_pos"), corrupt.tokens.numpy(), {"units": "token id"}),
        },
        {**axes, "layer": inner.layer, "head": inner["head"]},
    )
    print(f"{len(clean)} pairs of {len(paragraphs)} paragraphs, perturbed at {sorted(positions.values.tolist())}")
    figures = []
    for direction in DIRECTIONS:
        row = result.sel(direction=direction)
        print(f"{direction}: NLL {float(row.base_nll):.3f} before, {float(row.source_nll):.3f} in the other run")
        for site in SITES:
            one = row.sel(site=site)
            mean, median = one.effect.mean("paragraph", skipna=False), one.effect.median("paragraph", skipna=False)
            order = np.argsort(-np.abs(np.nan_to_num(mean.values)), axis=None)[:4]
            best = [np.unravel_index(place, mean.shape) for place in order]
            print(f"  {site}: rank correlation of estimates and effects {float(one.agreement):.2f}")
            for place in best:
                low, high = one.effect_low.values[place], one.effect_high.values[place]
                found = f"{mean.values[place]:+.4f} [{low:+.4f}, {high:+.4f}], median {median.values[place]:+.4f}"
                print(f"    L{place[0]}H{place[1]}: {found}")
            title = f"{site}, {direction}: change of the NLL at the first impacted token (blank = not patched)"
            figure = head_heatmap(mean, title=title, unit="nats")
            figure.update_traces(hovertemplate="%{y}%{x}: %{z:.3g}<extra></extra>")
            figures.append(figure)
    save(result, figures, settings)
    return result


if __name__ == "__main__":
    start(main, Settings, __doc__)
