"""How fragile memories are: replace one prefix token of memorized paragraphs, other paragraphs and matched controls.

    python experiments/perturbation.py     # some minutes on two cores; writes docs/perturbation.md and its plot

Stoehr et al. (2024, section 3.1) replace one prefix token by a random one and report the loss of EM: 12.19 tokens for
memorized paragraphs and 33.12 for others, where the EM of others is measured against the model's own unperturbed text.
This script makes that comparison and the comparison with the true text, and adds position-wise match and edit distance.
Controls are matched on what may explain fragility besides memory: rarity of the prefix, repeated runs and kind.
"""

import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from measure_bundled import photograph

import mechmem as mm
from mechmem.measure.decode import greedy_continuations
from mechmem.measure.exact import ExactScorer
from mechmem.measure.tolerance import CALIBRATION
from mechmem.stats.bootstrap import cluster_bootstrap, cluster_bootstrap_difference

# Settings -------------------------------------------------------------------------------------------------------------
PAGE, PLOT = Path("docs/perturbation.md"), Path("docs/perturbation.png")
SEED = 0
MEMORIZED, OTHER = 90, 90
# Prefix NLL is not matched on: part of it is memory of the prefix, so matching on it would remove the effect.
MATCHED_ON = ("rarity", "repeated_run", "source")
MEASURES = {
    "em_change": ("change of EM", "tokens"),
    "match_change": ("change of match", "share of 50"),
    "edit_distance": ("edit distance", "tokens"),
    "nll_change": ("change of NLL", "nats per token"),
}


def one_per_cluster(paras: mm.Paragraphs, count: int, seed: int) -> mm.Paragraphs:
    """A random sample that repeats a cluster only when no unused cluster is left."""
    order = np.random.default_rng(seed).permutation(len(paras))
    clusters = paras.column("cluster")[order]
    seen: dict[int, int] = {}
    turns = []
    for label in clusters.tolist():
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return paras.select(np.sort(order[np.argsort(turns, kind="stable")[:count]]))


def own_text(scorer: ExactScorer, paras: mm.Paragraphs) -> mm.Paragraphs:
    """The same prefixes, continued by the model itself."""
    scores = scorer.score(paras)
    said = greedy_continuations(scorer.lean, paras.tokens, paras.prefix_len, scores.em, scores.rival)
    return paras.replace_tokens(torch.cat([paras.prefix, torch.from_numpy(said)], 1))


def measured(model, paras: mm.Paragraphs) -> dict[str, np.ndarray]:
    """Each paragraph's mean over positions, and the profile by position."""
    result = mm.perturb_prefix(model, paras, seed=SEED, edit_distance=True)
    result["match_change"] = result.match_fraction - mm.score(model, paras).match.mean("pos")
    values = {name: result[name].mean("pos").values for name in MEASURES}
    return values | {"clusters": paras.column("cluster"), "profile": result.em_change.mean("paragraph").values}


def cell(values: np.ndarray, clusters: np.ndarray) -> str:
    """A mean with its interval by cluster."""
    low, high = cluster_bootstrap(values, clusters, seed=SEED)
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray], name: str) -> str:
    """First minus second, with its interval and a permutation test, both by cluster."""
    low, high = cluster_bootstrap_difference(
        first[name], second[name], first["clusters"], second["clusters"], seed=SEED
    )
    values = np.concatenate([first[name], second[name]])
    groups = np.arange(len(values)) < len(first[name])
    clusters = np.concatenate([first["clusters"], second["clusters"]])
    _, p = mm.permutation_test(values, groups, clusters, seed=SEED)
    return f"{first[name].mean() - second[name].mean():.2f} [{low:.2f}, {high:.2f}], p = {p:.4f}"


def draw(profiles: dict[str, np.ndarray]) -> None:
    """Change of EM by position; needs Chromium."""
    figure = go.Figure(
        [go.Scatter(x=list(range(len(y))), y=y, name=name, mode="lines") for name, y in profiles.items()]
    )
    figure.update_layout(
        template="plotly_white",
        width=900,
        height=420,
        xaxis_title="replaced position of the prefix",
        yaxis_title="mean change of EM, tokens",
        legend={"orientation": "h", "y": 1.15},
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
    )
    photograph(figure, PLOT)


def main() -> None:
    """Measure the sets and write the page."""
    model, shipped = mm.load_model("bundled"), mm.bundled_paragraphs()
    scorer = ExactScorer(model, shipped.select(range(CALIBRATION)))
    em = scorer.score(shipped).em
    memorized = one_per_cluster(shipped.select(em == 50), MEMORIZED, SEED)
    pool = shipped.select(em <= 10)
    other = one_per_cluster(pool, OTHER, SEED)
    counts = mm.bundled_unigram_counts()
    known, candidates = (mm.with_covariates(paras, model=model, unigram_counts=counts) for paras in (memorized, pool))
    matched, balance = mm.match(known, candidates, on=MATCHED_ON, seed=SEED)
    sets = {
        "memorized": measured(model, memorized),
        "other, true text": measured(model, other),
        "other, own text": measured(model, own_text(scorer, other)),
        "matched controls, true text": measured(model, matched),
        "matched controls, own text": measured(model, own_text(scorer, matched)),
    }
    lines = ["# Perturbing one prefix token", ""]
    lines += [
        f"`python experiments/perturbation.py`, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, seed {SEED}: the "
        f"bundled model, {len(memorized)} memorized paragraphs, {len(other)} others (EM at most 10) and {len(matched)} "
        f"controls matched on {', '.join(MATCHED_ON)}. Every prefix position is replaced once by a random token. "
        "Values are means over paragraphs and positions with 95 % intervals by cluster.",
        "",
    ]
    lines += ["| set | " + " | ".join(f"{name}, {unit}" for name, unit in MEASURES.values()) + " |"]
    lines += ["|---|" + "---|" * len(MEASURES)]
    lines += [
        f"| {name} | " + " | ".join(cell(values[measure], values["clusters"]) for measure in MEASURES) + " |"
        for name, values in sets.items()
    ]
    lines += ["", "| memorized minus | " + " | ".join(name for name, _ in MEASURES.values()) + " |"]
    lines += ["|---|" + "---|" * len(MEASURES)]
    lines += [
        f"| {name} | " + " | ".join(difference(sets["memorized"], values, measure) for measure in MEASURES) + " |"
        for name, values in sets.items()
        if name != "memorized"
    ]
    lines += ["", "![Mean change of EM by replaced position](perturbation.png)", ""]
    lines += ["Balance before and after matching:", ""]
    lines += ["```", balance.drop_dims("paragraph").to_dataframe().round(3).to_string(), "```", ""]
    draw({name: values["profile"] for name, values in sets.items()})
    notes = PAGE.read_text().split("<!-- notes -->\n") if PAGE.exists() else []
    PAGE.write_text("\n".join(lines) + ("<!-- notes -->\n" + notes[1] if len(notes) == 2 else ""))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
