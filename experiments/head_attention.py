"""What the head that attends most to rare tokens attends to where the continuation begins.

    python experiments/head_attention.py     # half a minute on one core; writes results/head_attention

Stoehr et al. (2024, section 5 and figure 7) show the attention of one head from query position 50 to keys 0 to 49, high
at rare words. Here the head is found on other paragraphs than those that are shown: the examples were not selected.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
import xarray as xr
from inputs import Inputs, open_inputs, start, token_counts, token_texts
from outputs import save
from samples import by_em

import mechmem as mm
from mechmem.data.bounds import Count, Seed
from mechmem.localize.heads import RAREST, head_patterns
from mechmem.localize.rarity import rarest_weight
from mechmem.model.load import HookedTransformer
from mechmem.report.position_maps import TOKEN_LIMIT
from mechmem.show.theme import COLOURS, empty_figure, plotly_text
from mechmem.study.stages import top_heads


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws candidates, samples and shuffles.
        candidates: paragraphs that are scored, at random.
        searched: memorized paragraphs on which the head is found, one of each cluster.
        shown: memorized paragraphs of other clusters that are shown.
        permutations: shuffles of the head's p-value.
        out: folder of the result and the figure.
    """

    seed: Seed = 0
    candidates: Count = 600
    searched: Count = 96
    shown: Count = 4
    permutations: Count = 1000
    out: Path = Path("results/head_attention")


def bars(one: xr.Dataset) -> go.Figure:
    """Attention to each token of one paragraph's prefix; the rarest tokens have another colour."""
    title = f"Paragraph {one.paragraph_id.item()}: attention of L{one.attrs['layer']}H{one.attrs['head']}"
    figure = empty_figure(f"{title} from position {one.attrs['query_pos']} (higher = attends more)", 340)
    rare = one.rarest.values > 0
    labels = np.array([plotly_text(token, TOKEN_LIMIT) for token in one.token.values], dtype=object)
    for name, chosen, ink in (("rarest tenth", rare, COLOURS["memorized"]), ("others", ~rare, COLOURS["between"])):
        figure.add_bar(
            x=one.key_pos.values[chosen],
            y=one.attention.values[chosen],
            name=name,
            marker_color=ink,
            customdata=np.stack([labels[chosen], one.token_count.values[chosen].astype(object)], axis=-1),
            hovertemplate="position %{x}, %{customdata[0]}: %{y:.3f}<br>%{customdata[1]} times in the corpus"
            "<extra></extra>",
        )
    places = one.key_pos.values.tolist()
    figure.update_xaxes(
        tickmode="array", tickvals=places, ticktext=labels.tolist(), tickangle=-90, tickfont={"size": 9}
    )
    figure.update_yaxes(title="attention, 0 to 1", rangemode="tozero")
    return figure


def main(settings: Settings, model: HookedTransformer | None = None) -> xr.Dataset:
    """Find the head, and read its attention on other paragraphs.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        attention, rarest (weight among the paragraph's rarest tenth), token_count (in the corpus), token
        [paragraph, key_pos]; excess and p_value [layer, head] of the search; paragraph_id [paragraph]; searched_id
        [searched]. Attributes: layer and head, zero-based, and query_pos.
    """
    model, shipped = open_inputs(settings, model)
    count = settings.searched + settings.shown
    found = by_em(
        model,
        shipped,
        {"memorized": (50, 50)},
        candidates=settings.candidates,
        each=count,
        seed=settings.seed,
        least=settings.shown + 1,
    )
    paragraphs = found["memorized"]
    shown, searched = (
        paragraphs.select(range(settings.shown)),
        paragraphs.select(range(settings.shown, len(paragraphs))),
    )
    counts = token_counts(settings, model, shipped)
    rare = mm.rare_token_attention(
        model, searched, torch.as_tensor(counts), permutations=settings.permutations, seed=settings.seed
    )
    layer, head = top_heads(rare.excess, 1)[0]
    query = shown.prefix_len
    patterns = head_patterns(model, shown.tokens[:, : query + 1], [(layer, head)])
    frequency = counts[shown.prefix.numpy()]
    each = ("paragraph", "key_pos")
    result = xr.Dataset(
        {
            "attention": (
                each,
                patterns[:, 0, query, :query].numpy(),
                {"units": "1", "higher": "the head attends more to this position"},
            ),
            "rarest": (each, rarest_weight(frequency.astype(float), RAREST)),
            "token_count": (each, frequency),
            "token": (each, np.array([token_texts(model, row) for row in shown.prefix], dtype=object)),
            "excess": rare.excess,
            "p_value": rare.p_value,
            "paragraph_id": ("paragraph", shown.ids),
            "searched_id": ("searched", searched.ids),
        },
        {"key_pos": np.arange(query)},
        {"layer": layer, "head": head, "query_pos": query},
    )
    at = {"layer": layer, "head": head}
    print(f"L{layer}H{head}: excess {float(rare.excess.sel(at)):.3f}, p = {float(rare.p_value.sel(at)):.4f}, found on")
    print(f"{len(searched)} paragraphs; the five tokens that it attends to most, with attention and corpus count:")
    for _, one in result.groupby("paragraph"):
        one = one.squeeze()
        best = np.argsort(-one.attention.values)[:5]
        words = [f"{one.token.values[i]!r} {one.attention.values[i]:.2f} ({one.token_count.values[i]:,})" for i in best]
        mass = float((one.attention * one.rarest).sum())
        print(f"paragraph {one.paragraph_id.item()}: {', '.join(words)}; {mass:.2f} on the rarest tenth")
    save(result, [bars(result.isel(paragraph=number)) for number in range(len(shown))], settings)
    return result


if __name__ == "__main__":
    start(main, Settings, __doc__)
