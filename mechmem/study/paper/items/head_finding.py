"""Item 7: attention of one head to rare tokens, as the study sums it and as a mean by token, with every head beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.heads import rare_token_attention
from mechmem.localize.token_attention import (
    COEFFICIENTS,
    Coefficient,
    attention_at_continuation,
    by_token,
    elsewhere,
    rank_sum_correlation,
    rank_sums,
    token_correlation,
)
from mechmem.model.head_names import head_name
from mechmem.stats.ranges import CORRELATION
from mechmem.study.paper import published
from mechmem.study.paper.intervals import interval
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.rows import Finding, Row, Trap
from mechmem.study.paper.study_head import study_head

ITEM = "head"
NAMES = cast(tuple[Coefficient, ...], tuple(COEFFICIENTS))
# The coefficient that the study most likely means, for sentences.
MAIN: Coefficient = "spearman"
TOKENS = 40

Attention = Float[np.ndarray, "paragraph head key_pos"]


def head_item(paper: PaperFolder) -> Finding:
    """Attention from the first continuation token to the prefix, against corpus counts; and trap 7.

    1. As published: attention summed over paragraphs by the dense rank of the token's count; correlated with the rank.
    2. Corrected: mean attention by token, correlated with its count; the same after what other paragraphs give to the
       same positions is taken off; and the excess on the rarest tenth, tested over all heads.
    3. Trap 7: the study's statistic for every head, and for attention that is spread evenly.
    """
    paragraphs = paper.sample("memorized", paper.settings.head_sample)
    distinct = paper.sample("memorized", paper.settings.head_sample, distinct=True)
    model, counts = paper.model, np.asarray(paper.counts, dtype=np.float64)
    heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    attention = attention_at_continuation(model, paragraphs, heads)
    own = heads.index(study_head(model))
    tokens = paragraphs.prefix.cpu().numpy()
    uniform = np.full(tokens.shape, 1 / (tokens.shape[1] + 1))
    rare = rare_token_attention(
        model,
        distinct,
        counts,
        permutations=paper.settings.permutations,
        seed=paper.seed,
        progress=paper.at("attention to rare tokens"),
    )
    name = head_name(heads[own])
    rows = _coefficient_rows(paper, paragraphs, attention[:, own], uniform, counts, name)
    rows += _excess_rows(rare, heads[own], len(distinct))
    types = float(np.count_nonzero(counts))
    rows.append(Row(ITEM, "token types", "as published", types, None, None, float(published.TOKEN_TYPES), "tokens"))
    slopes = _slopes(tokens, attention, uniform, counts)
    data = _data(paper, paragraphs, attention, own, counts, rare, slopes)
    return Finding(tuple(rows), data.assign_attrs(finding=_said(rare, rows, name)), (_trap(slopes, own, rows, name),))


def _coefficient_rows(
    paper: PaperFolder,
    paragraphs: Paragraphs,
    attention: Float[np.ndarray, "paragraph key_pos"],
    uniform: Float[np.ndarray, "paragraph key_pos"],
    counts: np.ndarray,
    name: str,
) -> list[Row]:
    tokens, clusters = paragraphs.prefix.cpu().numpy(), paragraphs.clusters
    sums, even = rank_sums(tokens, attention, counts), rank_sums(tokens, uniform, counts)
    matched = np.stack([tokens, attention - elsewhere(attention)], -1)
    pairs = np.stack([tokens, attention], -1)
    rows: list[Row] = []

    def row(quantity: str, reading: Any, values: np.ndarray, statistic: Callable[[Any], float], **more: Any) -> None:
        measured = statistic(values)
        known = np.isfinite(measured)
        low, high = interval(paper, values, clusters, statistic, within=CORRELATION) if known else (None, None)
        rows.append(Row(ITEM, quantity, reading, measured, low, high, more.get("published"), "1", more.get("note", "")))

    for coefficient in NAMES:
        on_sums, on_tokens = _statistics(coefficient, counts)
        known = {"published": published.RARE_TOKEN_CORRELATION}
        title = f"{coefficient.capitalize()}, attention of {name} and token frequency"
        row(title, "as published", sums, on_sums, **known)
        row(title, "corrected", pairs, on_tokens, **known)
        flat = f"{coefficient.capitalize()}, attention spread evenly and token frequency"
        row(flat, "as published", even, on_sums, note="By token it is constant, so that nothing correlates with it.")
        controlled = f"{coefficient.capitalize()}, attention of {name} minus what the same positions get elsewhere"
        row(controlled, "corrected", matched, on_tokens)
    return rows


def _statistics(coefficient: Coefficient, counts: np.ndarray) -> tuple[Callable[[Any], float], Callable[[Any], float]]:
    """Of rank sums, and of tokens beside their values, [paragraph, key_pos, 2]."""
    return (
        lambda sums: rank_sum_correlation(sums, coefficient),
        lambda both: token_correlation(both[..., 0].astype(np.int64), both[..., 1], counts, coefficient),
    )


def _excess_rows(rare: xr.Dataset, head: tuple[int, int], paragraphs: int) -> list[Row]:
    own = rare.sel(layer=head[0], head=head[1])
    name, note = head_name(head), f"{paragraphs} paragraphs, one of each cluster."
    rank = 1.0 + int((rare.excess > own.excess).sum())
    words = f"attention of {name} on the rarest tenth of the prefix, above the same positions elsewhere"
    return [
        Row(ITEM, words, "corrected", float(own.excess), None, None, None, "attention mass, 0 to 1", note),
        Row(ITEM, f"rank of {name} by this excess", "corrected", rank, None, None, 1.0, "rank, 1 is first", note),
        Row(
            ITEM,
            f"p of this excess, {name}, over all heads",
            "corrected",
            float(own.p_value),
            None,
            None,
            None,
            "1",
            "Counts shuffled over token types; corrected for the number of heads.",
        ),
    ]


def _slopes(
    tokens: np.ndarray, attention: Attention, uniform: np.ndarray, counts: np.ndarray
) -> dict[str, Float[np.ndarray, " coefficient_head"]]:
    """The study's statistic of every head, [coefficient, head], and of even attention, the rarest or the last first."""
    by_head = [rank_sums(tokens, attention[:, head], counts) for head in range(attention.shape[1])]
    even, turned = rank_sums(tokens, uniform, counts), rank_sums(tokens, uniform, -counts)
    return {
        "heads": np.array([rank_sum_correlation(sums, name) for name in NAMES for sums in by_head]),
        "even": np.array([rank_sum_correlation(even, name) for name in NAMES]),
        "turned": np.array([rank_sum_correlation(turned, name) for name in NAMES]),
    }


def _trap(slopes: dict[str, np.ndarray], own: int, rows: list[Row], name: str) -> Trap:
    main = NAMES.index(MAIN)
    heads = slopes["heads"].reshape(len(NAMES), -1)[main]
    corrected = next(row.measured for row in rows if row.reading == "corrected")
    down = int((heads < 0).sum())
    change = (
        f"Summed by rank, {down} of {len(heads)} heads slope down (Spearman, median {np.nanmedian(heads):.2f}); "
        f"attention that is spread evenly has {slopes['even'][main]:.2f} with the rarest token first and "
        f"{slopes['turned'][main]:.2f} with the most frequent first. As a mean by token, {name} has {corrected:.2f}, "
        "and even attention is constant, without any correlation."
    )
    title = "Attention summed by frequency rank slopes for every head"
    return Trap(7, title, float(heads[own]), corrected, "Spearman's correlation", change)


def _data(
    paper: PaperFolder,
    paragraphs: Paragraphs,
    attention: Attention,
    own: int,
    counts: np.ndarray,
    rare: xr.Dataset,
    slopes: dict[str, np.ndarray],
) -> xr.Dataset:
    model, tokens = paper.model, paragraphs.prefix.cpu().numpy()
    shape = (len(NAMES), model.cfg.n_layers, model.cfg.n_heads)
    sums = rank_sums(tokens, attention[:, own], counts).sum(0)
    uniform = np.full(tokens.shape, 1 / (tokens.shape[1] + 1))
    types, places, mean = by_token(tokens, attention[:, own])
    most = np.argsort(-mean, kind="stable")[:TOKENS]
    words = [str(t) if model.tokenizer is None else str(model.tokenizer.decode([int(t)])) for t in types[most]]
    more = {"units": "1", "higher": "attends more to frequent tokens"}
    return rare[["excess", "p_value", "spearman", "kendall", "pearson"]].assign(
        {
            "rank_sum_correlation": (("coefficient", "layer", "head"), slopes["heads"].reshape(shape), more),
            "even_correlation": ("coefficient", slopes["even"], more),
            "even_correlation_turned": ("coefficient", slopes["turned"], more),
            "rank_sum": ("rank", sums, {"units": "attention, summed over paragraphs"}),
            "rank_sum_even": ("rank", rank_sums(tokens, uniform, counts).sum(0), {"units": "the same, spread evenly"}),
            "attention": ("token", mean, {"units": "attention, 0 to 1", "higher": "the head attends more to it"}),
            "places": ("token", places, {"units": "places in the prefixes"}),
            "token_count": ("token", counts[types], {"units": "occurrences in the corpus"}),
            "most_attended": ("place", np.array(words, dtype=object), {"long_name": "tokens of the highest mean"}),
            "paragraph_id": ("paragraph", paragraphs.ids),
        }
    ).assign_coords(token=types, coefficient=list(NAMES)).assign_attrs(head=head_name(study_head(model)))  # fmt: skip


def _said(rare: xr.Dataset, rows: list[Row], name: str) -> str:
    layer, head = rare.excess.stack(cell=("layer", "head")).idxmax("cell").item()
    strongest, p = f"L{layer}H{head}", float(rare.p_value.sel(layer=layer, head=head))
    own = next(row.measured for row in rows if row.quantity.startswith("p of this excess"))
    return (
        f"{strongest} attends most to rare tokens, beyond what their positions get (p {p:.3g} over all heads); for "
        f"{name} p is {own:.3g}."
    )
