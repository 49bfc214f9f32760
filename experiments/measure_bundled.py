"""Measure what the bundled model memorized and write docs/bundled-model.md and its plot.

    python experiments/measure_bundled.py          # about a minute on two cores

Every number on that page comes from this script. Plotly draws the plot; Chromium, if installed, saves it as a PNG.
"""

import json
import platform
import shutil
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from scipy.stats import spearmanr

import mechmem as mm
from mechmem.data.assets import (
    MODEL_FOLDER,
    TRAINING_FILE,
    bundled_paragraphs,
    bundled_unigram_counts,
)
from mechmem.synthetic.generator import generate

# Settings -------------------------------------------------------------------------------------------------------------
PAGE, PLOT = Path("docs/bundled-model.md"), Path("docs/bundled-model.png")
EDGES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4001]
SEED = 0


def heldout_perplexity(model, documents) -> tuple[float, float]:
    """Perplexity per token of the model and of a unigram model on whole unseen documents, end-of-text included."""
    counts = bundled_unigram_counts()
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


def by_count(table: pd.DataFrame) -> pd.DataFrame:
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


def draw(curve: pd.DataFrame, table: pd.DataFrame, never: pd.DataFrame) -> go.Figure:
    """EM against true count: every paragraph, the mean and the 10 % to 90 % range."""
    trained = table[table.seen == "trained"]
    jitter = np.random.default_rng(SEED).uniform(0.9, 1.1, len(trained))
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


def photograph(figure: go.Figure, path: Path) -> None:
    """Save the figure as a PNG with Chromium; print a message if Chromium is not installed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print(f"chromium is not installed: {path} is not updated")
        return
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        page.write_text(f"<style>body{{margin:0}}</style>{figure.to_html(config={'staticPlot': True})}")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
        command += ["--disable-background-networking", "--no-first-run", "--virtual-time-budget=5000"]
        command += ["--window-size=900,480", "--hide-scrollbars", f"--screenshot={path.resolve()}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    """Score the paragraphs, check the requirements, draw the plot and write the page."""
    training = json.loads(TRAINING_FILE.read_text())
    model, paragraphs = mm.load_model("bundled"), bundled_paragraphs()
    scores = mm.score(model, paragraphs)
    assert paragraphs.table is not None
    table: Any = pd.DataFrame(paragraphs.table.to_dict()).assign(em=scores.em.values, nll=scores.nll.values)
    memorized, other = table[table.em == 50], table[table.em <= 10]
    never, trained = table[table.seen == "never seen"], table[table.seen == "trained"]
    corpus = generate(training["settings"]["seed"], training["settings"]["characters"])
    perplexity, unigram = heldout_perplexity(model, corpus.unseen)
    rho = spearman(trained.em, trained["count"])
    rho_all = spearman(table.em, table["count"])
    rng = np.random.default_rng(SEED)
    clusters = list(trained.reset_index().groupby("cluster").indices.values())
    draws = [np.concatenate([clusters[i] for i in rng.integers(0, len(clusters), len(clusters))]) for _ in range(500)]
    pairs = trained[["em", "count"]].to_numpy()
    low, high = np.quantile([spearman(pairs[draw]) for draw in draws], [0.025, 0.975])
    rare = trained[trained["count"] <= 3]
    frequent = rare.cluster_count >= 32
    rarity = (
        f"Of the {len(rare)} shipped paragraphs that occur one to three times, {frequent.sum()} belong to a template "
        f"that occurs 32 times or more, and {(rare[frequent].em == 50).mean():.0%} of these are reproduced exactly; of "
        f"the other {(~frequent).sum()} it is {(rare[~frequent].em == 50).mean():.1%}."
    )
    curve = by_count(table)
    photograph(draw(curve, table, never), PLOT)

    size = sum(f.stat().st_size for f in MODEL_FOLDER.glob("*.safetensors")) / 1e6
    claims = [
        ("paragraphs with EM 50", f"{len(memorized)}", "at least 300", len(memorized) >= 300),
        ("clusters among them", f"{memorized.cluster.nunique()}", "at least 40", memorized.cluster.nunique() >= 40),
        ("kinds among them", f"{memorized.source.nunique()}", "at least 5", memorized.source.nunique() >= 5),
        ("paragraphs with EM at most 10", f"{len(other)}", "at least 1,500", len(other) >= 1500),
        ("never-seen paragraphs with EM at most 10", f"{(never.em <= 10).mean():.1%}", "at least 95 %",
         (never.em <= 10).mean() >= 0.95),
        ("Spearman of EM and count, trained paragraphs", f"{rho:.3f} [{low:.3f}, {high:.3f}]", "at least 0.5",
         rho >= 0.5),
        ("Spearman, all shipped paragraphs", f"{rho_all:.3f}", "", True),
        ("held-out perplexity per token", f"{perplexity:.1f}", f"at most {unigram / 5:.0f}", perplexity <= unigram / 5),
        ("unigram perplexity on the same text", f"{unigram:.1f}", "", True),
        ("checkpoint, MB", f"{size:.1f}", "at most 20", size <= 20),
    ]  # fmt: skip
    for name, value, need, good in claims:
        print(f"{'ok  ' if good else 'FAIL'} {name}: {value} {need}")
    kinds = pd.DataFrame(
        {
            "shipped": table.groupby("source").size(),
            "EM 50": memorized.groupby("source").size(),
            "never seen": never.groupby("source").size(),
            "never seen, mean EM": never.groupby("source").em.mean(),
            "never seen, most EM": never.groupby("source").em.max(),
        }
    ).fillna(0)
    write_page(training, claims, curve, kinds, (rho, low, high), rarity)
    if not all(good for *_, good in claims):
        raise SystemExit("the model does not meet its requirements; train longer or change its settings")


def write_page(training, claims, curve, kinds, correlation, rarity) -> None:
    """Write the page from the measured numbers."""
    rho, low, high = correlation
    settings = training["settings"]
    lines = [
        "# The bundled model",
        "",
        f"The bundled model is a GPT-Neo with {settings['n_layers']} layers (global and local attention alternate; the "
        f"local window is {settings['window_size']}), width {settings['d_model']}, {settings['n_heads']} heads, a "
        f"byte-level BPE vocabulary of {settings['d_vocab']:,} tokens and a context of {settings['n_ctx']}. It was "
        f"trained for one pass over {training['tokens_seen']:,} tokens of a synthetic corpus "
        "(`mechmem/synthetic/generator.py`) in which the number of occurrences of every document is known. It "
        "memorized the frequent documents, as language models do.",
        "",
        "Use it to test methods: it is small enough for a laptop, nothing was planted in it, and the true counts of "
        "its training text are shipped with it. It is not a model of English: a grammar and invented words produced "
        "its training text. Results on it need not hold for GPT-Neo 125M or any other model.",
        "",
        "## What it memorized",
        "",
        "| measure | value | required |",
        "|---|---|---|",
        *[f"| {name} | {value} | {need} |" for name, value, need, _ in claims],
        "",
        f"![EM against true repetition count]({PLOT.name})",
        "",
        f"EM rises with the true count: over the paragraphs in the training text, Spearman's correlation is {rho:.2f} "
        f"(95 % bootstrap interval over clusters {low:.2f} to {high:.2f}). A rare paragraph can still be memorized. "
        f"{rarity}",
        "",
        markdown(curve.rename_axis("true count").reset_index()),
        "",
        "EM 50 is the share of paragraphs reproduced exactly; q10 and q90 are the 10 % and 90 % quantiles of EM; NLL "
        "is in nats per token.",
        "",
        "## Kinds",
        "",
        markdown(kinds.rename_axis("kind").reset_index()),
        "",
        "Never-seen paragraphs are the first windows of documents whose templates do not occur in the training text. "
        "Their EM is what the grammar alone predicts.",
        "",
        "## How the paragraphs were chosen",
        "",
        "They were chosen before training, by true count alone. From the training documents come windows of 100 tokens "
        "at stride 100: a fixed number from each range of counts, at most 12 per cluster and range, and every window "
        "that occurs 128 times or more. From every unseen document comes the first window. `count` is the exact number "
        "of occurrences of the 100 tokens at any offset in the training text; `cluster` is the template; `seen` says "
        "whether the document, only its template, or neither was in the training text.",
        "",
        "## How it was trained",
        "",
        "`python experiments/train_bundled.py` trains it and resumes from its checkpoints; settings, seed, loss curve "
        "and versions are in `mechmem/assets/training.json`.",
        f"{training['steps']:,} steps of {settings['batch']} x {settings['n_ctx']} tokens, AdamW, peak learning rate "
        f"{settings['learning_rate']}, {training['precision']}, {training['wall_seconds'] / 60:.0f} minutes on "
        f"{training['machine']} ({training['date']}); the shipped weights are rounded to float16.",
        "",
        f"Measured by `python experiments/measure_bundled.py` on {time.strftime('%Y-%m-%d')}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, seed {SEED}.",
        "",
    ]
    PAGE.write_text("\n".join(lines))


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table with two decimals."""
    rows = [[f"{v:.2f}".rstrip("0").rstrip(".") if isinstance(v, float) else str(v) for v in row]
            for row in table.itertuples(index=False)]  # fmt: skip
    head = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


if __name__ == "__main__":
    main()
