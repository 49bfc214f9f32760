"""Which heads carry a memory: activations at a replaced prefix token, patched from one run into the other.

    python experiments/patching.py     # half a minute on one core; writes results/patching

Stoehr et al. (2024, section 3.2 and figure 2) patch q, k and v of every head at the perturbed token between a memorized
paragraph and its worst perturbation, and score the first impacted token. Their two panels score the patched run's own
token: here `memorized_own` and `perturbed_own`. A third reading, `perturbed_memorized`, patches as the second panel and
scores the memorized text's token: what restores the memory. It is no panel of theirs, and it need not agree with the
second: the script prints the rank correlation of the two. One pair can dominate a mean over pairs, so intervals over
pairs and medians are reported, too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from inputs import Inputs, open_inputs, start
from outputs import save
from samples import by_em

import mechmem as mm
from mechmem.data.bounds import Count, Seed, Share
from mechmem.localize.attribution import rank_correlation
from mechmem.localize.perturbed_token import PAPER, READINGS, Reading
from mechmem.model.load import HookedTransformer
from mechmem.show.charts.heatmap_figures import head_heatmap

SITES = ("q", "k", "v")


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws candidates, samples and replacements.
        candidates: paragraphs that are scored, at random.
        pairs: memorized paragraphs that are perturbed, one of each cluster.
        samples: random replacements of each prefix token.
        fraction: share of the heads of a site and reading that are patched exactly, the highest by attribution.
        out: folder of the result and the figure.
    """

    seed: Seed = 0
    candidates: Count = 300
    pairs: Count = 24
    samples: Count = 1
    fraction: Share = 1.0
    out: Path = Path("results/patching")


def main(settings: Settings, model: HookedTransformer | None = None) -> xr.Dataset:
    """Perturb, estimate and patch.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        What `perturbed_token_effects` gives, and agreement [reading, site], rank correlation of the mean estimates and
        the mean effects; restoring [site], that of the mean effects of `perturbed_own` and `perturbed_memorized`, over
        the heads that are patched in both; impact_pos, em_change [paragraph]; clean, corrupt [paragraph, token_pos],
        token ids.
    """
    model, shipped = open_inputs(settings, model)
    ranges = {"memorized": (50, 50)}
    paragraphs = by_em(model, shipped, ranges, candidates=settings.candidates, each=settings.pairs, seed=settings.seed)[
        "memorized"
    ]
    perturbed = mm.perturb_prefix(model, paragraphs, samples=settings.samples, seed=settings.seed)
    clean, corrupt = mm.worst_perturbations(model, paragraphs, perturbed, before="all")
    # Paragraphs are one of each cluster.
    result = mm.perturbed_token_effects(model, clean, corrupt, sites=SITES, fraction=settings.fraction)
    estimate = result.estimate.mean("paragraph")
    agreement = [
        [rank_correlation(estimate.sel(cell), result.effect_mean.sel(cell)) for cell in row] for row in cells(result)
    ]
    second, third = (result.effect_mean.sel(reading=reading) for reading in ("perturbed_own", "perturbed_memorized"))
    second = second.where(third.notnull())
    restoring = [rank_correlation(third.sel(site=site).fillna(0), second.sel(site=site)) for site in SITES]
    correlation = {"units": "rank correlation"}
    result["agreement"] = (("reading", "site"), np.array(agreement), correlation)
    result["restoring"] = ("site", np.array(restoring), correlation)
    for name in ("impact_pos", "em_change"):
        result[name] = ("paragraph", clean.column(name))
    for name, side in (("clean", clean), ("corrupt", corrupt)):
        result[name] = (("paragraph", "token_pos"), side.tokens.numpy(), {"units": "token id"})
    places = sorted(result.perturbed_pos.values.tolist())
    print(f"{len(clean)} pairs of {len(paragraphs)} paragraphs, perturbed at {places}")
    figures = []
    for row in cells(result):
        figures += [show(result, **cell) for cell in row]
    for site, value in zip(SITES, restoring, strict=True):
        print(f"{site}: the second panel and what restores the memory, rank correlation over heads {value:+.2f}")
    save(result, figures, settings)
    return result


def cells(result: xr.Dataset) -> list[list[dict[str, Any]]]:
    """Every site of every reading."""
    return [[{"reading": str(r), "site": str(s)} for s in result.site.values] for r in result.reading.values]


def show(result: xr.Dataset, reading: Reading, site: str) -> go.Figure:
    """Print the strongest heads of one reading and site, and draw all of them."""
    one = result.sel(reading=reading, site=site)
    whose = "a panel of the paper" if reading in PAPER else "no panel of the paper"
    print(f"{reading} ({whose}; {READINGS[reading]}), {site}:")
    print(f"  NLL {float(one.base):.3f} before, {float(one.source):.3f} in the other run")
    print(f"  rank correlation of estimates and effects {float(one.agreement):.2f}")
    mean, median = one.effect_mean, one.effect.median("paragraph", skipna=False)
    for place in np.argsort(-np.abs(np.nan_to_num(mean.values)), axis=None)[:4]:
        cell = np.unravel_index(place, mean.shape)
        low, high = one.effect_low.values[cell], one.effect_high.values[cell]
        found = f"{mean.values[cell]:+.4f} [{low:+.4f}, {high:+.4f}], median {median.values[cell]:+.4f}"
        print(f"    L{cell[0]}H{cell[1]}: {found}")
    title = f"{site}, {reading}, {whose}: change of the NLL at the first impacted token (blank = not patched)"
    figure = head_heatmap(mean, title=title, unit="nats")
    figure.update_traces(hovertemplate="%{y}%{x}: %{z:.3g}<extra></extra>")
    return figure


if __name__ == "__main__":
    start(main, Settings, __doc__)
