"""How fragile memories are: replace one prefix token of memorized paragraphs, other paragraphs and matched controls.

    python experiments/perturbation.py     # some minutes on two cores; writes docs/perturbation.md and its plot

Stoehr et al. (2024, section 3.1) replace one prefix token by a random one and report the loss of EM: 12.19 tokens for
memorized paragraphs and 33.12 for others, where the EM of others is measured against the model's own unperturbed text.
This script makes that comparison and the comparison with the true text, and adds position-wise match and edit distance.
Controls are matched on what may explain fragility besides memory: rarity of the prefix, repeated runs and kind.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from inputs import Inputs, open_inputs, start, token_counts
from outputs import kept_text, photograph, save, stamp, write_page
from samples import refuse_few, shuffled

import mechmem as mm
from mechmem.data.bounds import Count, Seed
from mechmem.data.spread_sample import spread_sample
from mechmem.measure.exact import ExactScorer
from mechmem.measure.own_text import own_continuations
from mechmem.measure.tolerance import CALIBRATION
from mechmem.model.load import HookedTransformer
from mechmem.stats.bootstrap import cluster_bootstrap_difference
from mechmem.stats.ranges import SHARE, Range, change_of, range_of

MEASURES = {
    "em_change": ("change of EM", "tokens"),
    "match_change": ("change of match", "share of the continuation"),
    "edit_distance": ("edit distance", "tokens"),
    "nll_change": ("change of NLL", "nats per token"),
}


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws samples, replacements and shuffles.
        candidates: paragraphs that are scored, at random; None: all.
        memorized: memorized paragraphs.
        other: paragraphs with an EM of at most a fifth of the continuation.
        matched_on: what controls are matched on; not prefix NLL, because part of it is memory of the prefix, so
            that matching on it would remove the effect. None: rarity, repeated_run, and source where the text has it.
        permutations: shuffles of the p-values.
        out: folder of the results.
        page: the table, or None.
    """

    seed: Seed = 0
    candidates: Count | None = None
    memorized: Count = 90
    other: Count = 90
    matched_on: tuple[str, ...] | None = None
    permutations: Count = 10_000
    out: Path = Path("results/perturbation")
    page: Path | None = Path("docs/perturbation.md")


def spread_over_clusters(paragraphs: mm.Paragraphs, count: int, seed: int) -> mm.Paragraphs:
    """A random sample that repeats a cluster only when no unused cluster is left."""
    return paragraphs.select(spread_sample(np.arange(len(paragraphs)), paragraphs.clusters, count, seed=seed))


def measured(model: HookedTransformer, paragraphs: mm.Paragraphs, seed: int) -> dict[str, np.ndarray]:
    """Each paragraph's mean over positions, and the profile by position."""
    result = mm.perturb_prefix(model, paragraphs, seed=seed, edit_distance=True)
    result["match_change"] = result.match_fraction - mm.score(model, paragraphs).match.mean("pos")
    values = {name: result[name].mean("pos").values for name in MEASURES}
    return values | {"clusters": paragraphs.clusters, "profile": result.em_change.mean("paragraph").values}


def range_in(measure: str, length: int) -> Range:
    """What a measure of a paragraph can be, of so many tokens."""
    return change_of(SHARE) if measure == "match_change" else range_of(measure, length)


def cell(values: np.ndarray, clusters: np.ndarray, within: Range) -> str:
    """A mean with its interval by cluster."""
    low, high = mm.cluster_bootstrap(values, clusters, within=within)
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def difference(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray], name: str, within: Range, settings: Settings
) -> str:
    """First minus second, with its interval and a permutation test, both by cluster."""
    low, high = cluster_bootstrap_difference(
        first[name], second[name], first["clusters"], second["clusters"], within=change_of(within)
    )
    values = np.concatenate([first[name], second[name]])
    groups = np.arange(len(values)) < len(first[name])
    clusters = np.concatenate([first["clusters"], second["clusters"]])
    _, p = mm.permutation_test(values, groups, clusters, permutations=settings.permutations, seed=settings.seed)
    return f"{first[name].mean() - second[name].mean():.2f} [{low:.2f}, {high:.2f}], p = {p:.4f}"


def draw(profiles: dict[str, np.ndarray]) -> go.Figure:
    """Change of EM by position."""
    figure = go.Figure(
        [go.Scatter(x=list(range(len(y))), y=y, name=name, mode="lines") for name, y in profiles.items()]
    )
    return figure.update_layout(
        template="plotly_white",
        width=900,
        height=420,
        xaxis_title="replaced position of the prefix",
        yaxis_title="mean change of EM, tokens",
        legend={"orientation": "h", "y": 1.15},
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
    )


def choose(settings: Settings, scorer: ExactScorer, shipped: mm.Paragraphs) -> dict[str, mm.Paragraphs]:
    """Memorized paragraphs, others, and the pool of others that controls are taken from."""
    if settings.candidates is not None:
        shipped = shuffled(shipped, settings.seed)[: settings.candidates]
    em = scorer.score(shipped).em
    known, pool = shipped.select(em == shipped.continuation_len), shipped.select(em <= shipped.continuation_len // 5)
    sets = {"memorized": known, "other": pool}
    refuse_few({name: len(np.unique(some.clusters)) for name, some in sets.items()}, len(shipped), 2)
    return {
        "memorized": spread_over_clusters(known, settings.memorized, settings.seed),
        "other": spread_over_clusters(pool, settings.other, settings.seed),
        "pool": pool,
    }


def main(settings: Settings, model: HookedTransformer | None = None) -> xr.Dataset:
    """Measure every set, and memorized paragraphs against each of the others.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        Each measure [set], a mean over paragraphs and positions; profile [set, pos], the mean change of EM at each
        replaced position.
    """
    model, shipped = open_inputs(settings, model)
    matched_on = settings.matched_on or ("rarity", "repeated_run", *(["source"] * shipped.has("source")))
    scorer = ExactScorer(model, shipped[:CALIBRATION])
    chosen = choose(settings, scorer, shipped)
    counts = token_counts(settings, model, shipped)
    known, candidates = (
        mm.with_covariates(chosen[name], model=model, unigram_counts=counts) for name in ("memorized", "pool")
    )
    matched, balance = mm.match(known, candidates, on=matched_on, seed=settings.seed)
    texts = {
        "memorized": chosen["memorized"],
        "other, true text": chosen["other"],
        "other, own text": own_continuations(scorer, chosen["other"]),
        "matched controls, true text": matched,
        "matched controls, own text": own_continuations(scorer, matched),
    }
    sets = {name: measured(model, paragraphs, settings.seed) for name, paragraphs in texts.items()}
    result = xr.Dataset(
        {
            **{name: ("set", [values[name].mean() for values in sets.values()], {"units": MEASURES[name][1]})
               for name in MEASURES},
            "profile": (("set", "pos"), np.stack([values["profile"] for values in sets.values()]), {"units": "tokens"}),
        },
        {"set": list(sets)},
        {
            "memorized": len(texts["memorized"]),
            "other": len(texts["other, true text"]),
            "controls": len(matched),
            "continuation_len": matched.continuation_len,
            "matched_on": ", ".join(matched_on),
        },
    )  # fmt: skip
    figure = draw({name: values["profile"] for name, values in sets.items()})
    save(result, [figure], settings)
    if settings.page is not None:
        photograph(figure, settings.page.with_name("perturbation.png"))
    write(settings, result, sets, balance)
    return result


def write(settings: Settings, result: xr.Dataset, sets: dict[str, dict[str, np.ndarray]], balance: xr.Dataset) -> None:
    """The page of docs.

    Args:
        settings: of the run.
        result: what `main` returns.
        sets: each set's values by paragraph.
        balance: of the matching.
    """
    ranges = {name: range_in(name, result.attrs["continuation_len"]) for name in MEASURES}
    lines = [
        "# Perturbing one prefix token",
        "",
        f"{stamp('perturbation')}, seed {settings.seed}: model {settings.model}, {result.attrs['memorized']} memorized "
        f"paragraphs, {result.attrs['other']} others (EM of a fifth or less) and {result.attrs['controls']} controls "
        f"matched on {result.attrs['matched_on']}. Every prefix position is replaced once by a random token. Values "
        "are means over paragraphs and positions with 95 % intervals by cluster.",
        "",
        "| set | " + " | ".join(f"{name}, {unit}" for name, unit in MEASURES.values()) + " |",
        "|---|" + "---|" * len(MEASURES),
    ]
    lines += [
        f"| {name} | " + " | ".join(cell(values[key], values["clusters"], ranges[key]) for key in MEASURES) + " |"
        for name, values in sets.items()
    ]
    lines += ["", "| memorized minus | " + " | ".join(name for name, _ in MEASURES.values()) + " |"]
    lines += ["|---|" + "---|" * len(MEASURES)]
    lines += [
        f"| {name} | "
        + " | ".join(difference(sets["memorized"], values, key, ranges[key], settings) for key in MEASURES)
        + " |"
        for name, values in sets.items()
        if name != "memorized"
    ]
    lines += [
        "",
        "![Mean change of EM by replaced position](perturbation.png)",
        "",
        "Balance before and after matching:",
        "",
    ]
    lines += ["```", balance.drop_dims("paragraph").to_dataframe().round(3).to_string(), "```", ""]
    write_page(settings.page, [*lines, f"<!-- notes -->{kept_text(settings.page, 'notes')}<!-- notes -->"])


if __name__ == "__main__":
    start(main, Settings, __doc__)
