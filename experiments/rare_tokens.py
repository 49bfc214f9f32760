"""Whether heads attend to rare tokens: a test of every head, and the strongest one's attention by token.

    python experiments/rare_tokens.py     # half a minute on one core; writes results/rare_tokens

Stoehr et al. (2024, section 5 and figure 7) correlate a head's attention with token frequency and report -0.97. They
sum attention by frequency rank; few paragraphs hold a token of high rank, so every head slopes down. Here attention is
a mean per token, beside what the same positions get in other paragraphs, and the head is found on one half of the
clusters and measured on the other. Spearman, Kendall and Pearson (with log(1 + count)) are all reported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import plotly.graph_objects as go
import torch
import xarray as xr
from inputs import Inputs, open_inputs, start, token_counts, token_texts
from outputs import save
from samples import by_em

import mechmem as mm
from mechmem.data.bounds import Count, Seed
from mechmem.localize.token_attention import (
    COEFFICIENTS,
    attention_at_continuation,
    by_token,
    elsewhere,
    token_correlation,
)
from mechmem.model.load import HookedTransformer
from mechmem.show.charts.heatmap_figures import head_heatmap
from mechmem.show.theme import COLOURS, empty_figure, plotly_text
from mechmem.stats.ranges import CORRELATION
from mechmem.study.stages import top_heads

TABLE = ["excess", "p_value", "spearman", "kendall", "pearson"]


def correlations(tokens: np.ndarray, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Every coefficient between a token's mean value and its corpus count, over distinct tokens, [coefficient]."""
    return np.array([token_correlation(tokens, values, counts, cast(Any, name)) for name in COEFFICIENTS])


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws candidates, samples, shuffles and resamples.
        candidates: paragraphs that are scored, at random.
        each: memorized paragraphs, one of each cluster: half to find the head, half to measure it.
        permutations: shuffles of the heads' p-values.
        resamples: of clusters, for the intervals.
        out: folder of the result and the figure.
    """

    seed: Seed = 0
    candidates: Count = 900
    each: Count = 192
    permutations: Count = 1000
    resamples: Count = 300
    out: Path = Path("results/rare_tokens")


def scatter(result: xr.Dataset) -> go.Figure:
    """Mean attention and its control, against the corpus count of the token."""
    name = f"L{result.attrs['layer']}H{result.attrs['head']}"
    figure = empty_figure(f"Attention of {name} to a token against its corpus count (higher = attends more)", 460)
    traces = (("attention", "attention", "memorized", "circle"), ("expected", "same positions elsewhere", "other", "x"))
    for variable, label, ink, symbol in traces:
        figure.add_scatter(
            x=1 + result.token_count.values,
            y=result[variable].values,
            mode="markers",
            name=label,
            marker={"color": COLOURS[ink], "size": 5, "opacity": 0.6, "symbol": symbol},
            text=[plotly_text(text) for text in result.token_text.values],
            customdata=result.places.values,
            hovertemplate="%{text}: %{y:.3f}, %{customdata} places<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(type="log", title="1 + occurrences in the corpus (log scale)")
    figure.update_yaxes(title="mean attention, 0 to 1")
    return figure


def intervals(
    tokens: np.ndarray, values: np.ndarray, counts: np.ndarray, clusters: np.ndarray, settings: Settings
) -> list[tuple[float, float]]:
    """The 95 % interval of every coefficient of `correlations`, by cluster, [coefficient]."""
    options: dict[str, Any] = {"draws": settings.resamples, "seed": settings.seed}

    def interval(name: Any) -> tuple[float, float]:
        def statistic(rows: np.ndarray) -> float:
            chosen = rows.astype(int)
            return token_correlation(tokens[chosen], values[chosen], counts, name)

        return mm.cluster_bootstrap(
            np.arange(len(tokens)), clusters, statistic=statistic, within=CORRELATION, **options
        )

    return [interval(name) for name in COEFFICIENTS]


def head_table(rare: xr.Dataset, rows: int = 12) -> go.Figure:
    """The heads that attend most to rare tokens, strongest first."""
    places = top_heads(rare.excess, rows)
    cells = [[f"L{layer}H{head}" for layer, head in places]]
    cells += [[f"{rare[name].values[place]:.3f}" for place in places] for name in TABLE]
    figure = empty_figure("Heads by excess attention to the rarest tenth of the prefix", 120 + 26 * rows)
    figure.add_table(header={"values": ["head", *TABLE]}, cells={"values": cells})
    return figure


def main(settings: Settings, model: HookedTransformer | None = None) -> xr.Dataset:
    """Test every head on one half of the paragraphs; measure the strongest on the other.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        All variables of `rare_token_attention` [layer, head], of the half that the head is found on. Of the strongest
        head on the other half, from query prefix_len: attention (mean over the places of a token), expected (mean over
        other paragraphs' attention to the same positions), places, token_count, token_text [token]; correlation,
        correlation_low and correlation_high (95 %, by cluster) [quantity, coefficient]. Attributes: layer
        and head.
    """
    model, shipped = open_inputs(settings, model)
    ranges = {"memorized": (50, 50)}
    paragraphs = by_em(model, shipped, ranges, candidates=settings.candidates, each=settings.each, seed=settings.seed)[
        "memorized"
    ]
    half = len(paragraphs) // 2
    searched, measured = paragraphs.select(range(half)), paragraphs.select(range(half, len(paragraphs)))
    counts = token_counts(settings, model, shipped)
    rare = mm.rare_token_attention(
        model, searched, torch.as_tensor(counts), permutations=settings.permutations, seed=settings.seed
    )
    layer, head = top_heads(rare.excess, 1)[0]
    attention = attention_at_continuation(model, measured, [(layer, head)])[:, 0]  # [paragraph, key_pos]
    expected = elsewhere(attention)
    tokens = measured.prefix.numpy()
    quantities = {"attention": attention, "expected": expected, "excess": attention - expected}
    found = np.array([correlations(tokens, values, counts) for values in quantities.values()])
    ends = [intervals(tokens, values, counts, measured.clusters, settings) for values in quantities.values()]
    low, high = np.moveaxis(np.array(ends), -1, 0)
    types, places, mean = by_token(tokens, attention)
    each, words = ("quantity", "coefficient"), {"units": "1", "higher": "attends more to frequent tokens"}
    result = rare.assign(
        {
            "attention": ("token", mean, {"units": "1", "higher": "the head attends more to this token"}),
            "expected": ("token", by_token(tokens, expected)[2]),
            "places": ("token", places),
            "token_count": ("token", counts[types]),
            "token_text": ("token", np.array(token_texts(model, torch.from_numpy(types)), dtype=object)),
            "correlation": (each, found, words),
            "correlation_low": (each, low, words),
            "correlation_high": (each, high, words),
            "searched_id": ("searched", searched.ids),
            "measured_id": ("measured", measured.ids),
        }
    ).assign_coords(token=types, quantity=list(quantities), coefficient=list(COEFFICIENTS))
    result = result.assign_attrs(layer=layer, head=head)
    print(f"found on {len(searched)} paragraphs, measured on {len(measured)}, {len(types)} distinct tokens")
    for place in top_heads(rare.excess, 5):
        print(f"L{place[0]}H{place[1]}:", ", ".join(f"{name} {rare[name].values[place]:.3f}" for name in TABLE))
    print(f"L{layer}H{head} on the other half, correlation with the corpus count over tokens:")
    for quantity, *rows in zip(quantities, found, low, high, strict=True):
        cells = [f"{n} {r:.3f} [{a:.3f}, {b:.3f}]" for n, r, a, b in zip(COEFFICIENTS, *rows, strict=True)]
        print(f"{quantity}:", ", ".join(cells))
    title = "Excess attention to the rarest tenth of the prefix (blue = attends to rare tokens)"
    heads = head_heatmap(rare.excess, title=title, unit="attention mass", top=3)
    save(result, [heads, scatter(result), head_table(rare)], settings)
    return result


if __name__ == "__main__":
    start(main, Settings, __doc__)
