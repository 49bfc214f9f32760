"""Measure what the bundled model memorized and write docs/bundled-model.md and its plot.

    python experiments/measure_bundled.py          # about a minute on two cores

Every number on that page comes from this script. Plotly draws the plot; Chromium, if installed, saves it as a PNG.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import tyro
from bundled_page import write
from outputs import photograph, write_json
from samples import shuffled
from scipy.stats import spearmanr

import mechmem as mm
from mechmem.data.assets import ASSETS
from mechmem.data.bounds import Count, Seed, check_fields
from mechmem.stats.ranges import CORRELATION
from mechmem.synthetic.generator import Document, generate

EDGES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4001]


@dataclass(frozen=True)
class Settings:
    """What decides the numbers.

    Attributes:
        seed: draws samples and resamples.
        assets: folder that `train_bundled.py` wrote: model, paragraphs, counts and the record of training.
        candidates: paragraphs that are scored, at random; None: all.
        heldout: documents for the perplexity; None: all that were not trained on.
        resamples: of clusters, for the interval.
        out: folder of the results.
        page: the page, or None.
    """

    seed: Seed = 0
    assets: Path = ASSETS
    candidates: Count | None = None
    heldout: Count | None = None
    resamples: Count = 500
    out: Path = Path("results/measure_bundled")
    page: Path | None = Path("docs/bundled-model.md")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Claim:
    """A requirement on the model.

    Attributes:
        name: of the quantity.
        value: measured.
        text: the value as the page gives it.
        need: what is needed, in words; empty if nothing is.
        holds: whether the value is what is needed.
    """

    name: str
    value: float
    text: str
    need: str = ""
    holds: bool = True


def heldout_perplexity(model: Any, documents: list[Document], counts: np.ndarray) -> tuple[float, float]:
    """Perplexity per token of the model and of a unigram model on whole unseen documents, end-of-text included."""
    ids = [[0, *model.tokenizer(d.text)["input_ids"], 0][: model.cfg.n_ctx] for d in documents]
    targets = np.concatenate([row[1:] for row in ids])
    unigram = -np.log((counts[targets] + 1) / (counts.sum() + len(counts))).mean()
    losses: list[float] = []
    with torch.no_grad():
        for row in ids:
            losses += model(torch.tensor([row]), return_type="loss", loss_per_token=True)[0].tolist()
    return float(np.exp(np.mean(losses))), float(np.exp(unigram))


def spearman(*values: Any) -> float:
    """Spearman's rank correlation of two columns."""
    result: Any = spearmanr(*values)
    return float(result.statistic)


def by_count(table: Any) -> pd.DataFrame:
    """Statistics of the trained paragraphs in ranges of their true count."""
    trained = table[table.seen == "trained"]
    names = [f"{low}-{high - 1}" for low, high in pairwise(EDGES)]
    ranges = pd.cut(trained["count"], EDGES, right=False, labels=names)
    grouped = trained.groupby(ranges, observed=True)
    return pd.DataFrame(
        {
            "paragraphs": grouped.size(),
            "median count": grouped["count"].median(),
            "mean EM": grouped.em.mean(),
            "q10": grouped.em.quantile(0.1),
            "q90": grouped.em.quantile(0.9),
            "EM 50": grouped.em.agg(lambda em: (em == 50).mean()),
            "mean NLL": grouped.nll.mean(),
        }
    )


def draw(curve: pd.DataFrame, table: Any, never: Any, seed: int) -> go.Figure:
    """EM against true count: every paragraph, the mean and the 10 % to 90 % range."""
    trained = table[table.seen == "trained"]
    jitter = np.random.default_rng(seed).uniform(0.9, 1.1, len(trained))
    x = curve["median count"]
    figure = go.Figure(layout={"template": "simple_white", "width": 900, "height": 480, "font": {"size": 14}})
    figure.add_scatter(
        x=trained["count"] * jitter, y=trained.em, mode="markers", name="one paragraph",
        marker={"size": 4, "color": "#9ab", "opacity": 0.35},
    )  # fmt: skip
    figure.add_scatter(x=x, y=curve.q90, mode="lines", line={"width": 0}, showlegend=False)
    figure.add_scatter(
        x=x, y=curve.q10, mode="lines", line={"width": 0}, fill="tonexty", fillcolor="rgba(213,94,0,0.15)",
        name="middle 80 %",
    )  # fmt: skip
    figure.add_scatter(
        x=x, y=curve["mean EM"], mode="lines+markers", name="mean", line={"color": "#D55E00", "width": 3}
    )
    figure.add_hline(
        y=never.em.mean(), line={"dash": "dot", "color": "#0072B2"},
        annotation_text=f"never seen: mean {never.em.mean():.1f}", annotation_position="top left",
    )  # fmt: skip
    figure.update_xaxes(type="log", title="true occurrences of the 100 tokens in the training text")
    figure.update_yaxes(title="EM: leading tokens reproduced, of 50", range=[-1, 51.5])
    return figure.update_layout(
        legend={"x": 0.98, "y": 0.1, "xanchor": "right", "yanchor": "bottom"}, margin={"t": 20, "r": 20}
    )


def interval(trained: Any, settings: Settings) -> tuple[float, float]:
    """95 % of Spearman's correlation of EM and count, by cluster."""
    pairs = trained[["em", "count"]].to_numpy()
    return mm.cluster_bootstrap(
        np.arange(len(pairs)),
        trained.cluster.to_numpy(),
        statistic=lambda rows: spearman(pairs[rows.astype(int)]),
        draws=settings.resamples,
        seed=settings.seed,
        within=CORRELATION,
    )


def claims_of(table: Any, perplexities: tuple[float, float], settings: Settings) -> list[Claim]:
    """The requirements on the model, and whether it meets them."""
    memorized, other = table[table.em == 50], table[table.em <= 10]
    never, trained = table[table.seen == "never seen"], table[table.seen == "trained"]
    rho, rho_all = (float(spearman(part.em, part["count"])) for part in (trained, table))
    low, high = interval(trained, settings)
    quiet = float((never.em <= 10).mean())
    size = sum(file.stat().st_size for file in (settings.assets / "bundled").glob("*.safetensors")) / 1e6
    clusters, kinds, (perplexity, unigram) = memorized.cluster.nunique(), memorized.source.nunique(), perplexities
    return [
        Claim("paragraphs with EM 50", len(memorized), f"{len(memorized)}", "at least 300", len(memorized) >= 300),
        Claim("clusters among them", clusters, f"{clusters}", "at least 40", clusters >= 40),
        Claim("kinds among them", kinds, f"{kinds}", "at least 5", kinds >= 5),
        Claim("paragraphs with EM at most 10", len(other), f"{len(other)}", "at least 1,500", len(other) >= 1500),
        Claim("never-seen paragraphs with EM at most 10", quiet, f"{quiet:.1%}", "at least 95 %", quiet >= 0.95),
        Claim("Spearman of EM and count, trained paragraphs", rho, f"{rho:.3f} [{low:.3f}, {high:.3f}]",
              "at least 0.5", rho >= 0.5),
        Claim("Spearman, all shipped paragraphs", rho_all, f"{rho_all:.3f}"),
        Claim("held-out perplexity per token", perplexity, f"{perplexity:.1f}", f"at most {unigram / 5:.0f}",
              perplexity <= unigram / 5),
        Claim("unigram perplexity on the same text", unigram, f"{unigram:.1f}"),
        Claim("checkpoint, MB", size, f"{size:.1f}", "at most 20", size <= 20),
    ]  # fmt: skip


def main(settings: Settings) -> list[Claim]:
    """Score the paragraphs, check the requirements, draw the plot and write the page.

    Args:
        settings: what decides the numbers.

    Returns:
        The requirements on the model, and whether it meets them.
    """
    training = json.loads((settings.assets / "training.json").read_text())
    known = training["settings"]
    model = mm.load_model(settings.assets / "bundled")
    paragraphs = mm.Paragraphs.load(settings.assets / "paragraphs.parquet")
    if settings.candidates is not None:
        paragraphs = shuffled(paragraphs, settings.seed)[: settings.candidates]
    scores = mm.score(model, paragraphs)
    assert paragraphs.table is not None
    table: Any = pd.DataFrame(paragraphs.table.to_dict()).assign(em=scores.em.values, nll=scores.nll.values)
    # A record of before the number of unseen documents was a setting has the generator's own.
    unseen = {name: known[name] for name in ("unseen", "unseen_variants") if name in known}
    corpus = generate(known["seed"], known["characters"], **unseen)
    counts = np.load(settings.assets / "unigram_counts.npy", allow_pickle=False)
    claims = claims_of(table, heldout_perplexity(model, corpus.unseen[: settings.heldout], counts), settings)
    for claim in claims:
        print(f"{'ok  ' if claim.holds else 'FAIL'} {claim.name}: {claim.text} {claim.need}")
    write_json(settings.out / "result.json", {"settings": vars(settings), "claims": [vars(claim) for claim in claims]})
    curve = by_count(table)
    if settings.page is not None:
        figure = draw(curve, table, table[table.seen == "never seen"], settings.seed)
        photograph(figure, settings.page.with_suffix(".png"))
    write(settings, training, claims, curve, table)
    return claims


if __name__ == "__main__":
    if not all(claim.holds for claim in main(tyro.cli(Settings, description=__doc__))):
        raise SystemExit("the model does not meet its requirements; train longer or change its settings")
