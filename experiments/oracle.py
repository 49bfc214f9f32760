"""Is the oracle a fair control, and how far apart are two models trained on the same text.

    python experiments/oracle.py     # minutes, once `oracle_training.py` has trained both models; writes docs/oracle.md

1. The sets of all seeds of the unlearning experiment are joined; each paragraph counts once.
2. On each set: EM and NLL of the bundled model, of the model of another seed and of the oracle, and KL between them.
   KL(bundled ‖ other seed) is the unit of every distance to the oracle.
3. Parts of the bundled model are transplanted into the oracle, each alone: which of them bring the targets back.
4. The oracle is a fair control if it differs from the bundled model on the targets alone: elsewhere, its NLL and EM
   should differ from the bundled model's no more than those of the model of another seed do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from inputs import Inputs, open_inputs, start
from outputs import kept_text, stamp, write_json, write_page
from unlearning_sets import Sets, scored_candidates, splits

import mechmem as mm
from mechmem.data.bounds import Count, Seed
from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer
from mechmem.stats.ranges import range_of

MODELS = {"before": "bundled", "after": "other seed", "oracle": "oracle"}
# Name -> higher value minus lower one, of which model.
CHANGES = {"oracle NLL": ("nll", "oracle"), "other seed NLL": ("nll", "after"), "oracle EM": ("em", "oracle")}


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seeds: of the unlearning experiment, whose sets are joined.
        all_seeds: that have clusters to forget, as the oracle was trained without.
        clusters_each: clusters of each of them.
        targets: targets of each seed.
        held: paragraphs of every other set of a seed.
        tuning_targets: targets of the development set, which is not used here.
        candidates: number of paragraphs from which sets are drawn; None: all.
        oracle: folder of the model that was trained without the targets.
        other_seed: folder of the model that was trained on everything with another seed.
        out: folder of the results.
        page: the tables, or None.
    """

    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    all_seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    clusters_each: Count = 32
    targets: Count = 32
    held: Count = 32
    tuning_targets: Count = 16
    candidates: Count | None = None
    oracle: Path = Path("runs/oracle/oracle/model")
    other_seed: Path = Path("runs/oracle/seed/model")
    out: Path = Path("results/oracle")
    page: Path | None = Path("docs/oracle.md")


def joined(of_seeds: dict[int, Sets], paragraphs: mm.Paragraphs) -> Sets:
    """Each set of all seeds together, every paragraph once."""
    names = dict.fromkeys(name for sets in of_seeds.values() for name in sets)
    ids = {name: [sets[name].ids for sets in of_seeds.values() if name in sets] for name in names}
    return {name: paragraphs.select(np.isin(paragraphs.ids, np.concatenate(some))) for name, some in ids.items()}


def summary(costs: xr.Dataset, length: int) -> dict[str, Any]:
    """Means of a set and intervals by cluster: EM, NLL and KL of each model, and paired differences.

    Args:
        costs: of every paragraph.
        length: tokens of a continuation.
    """
    clusters = costs.cluster.values
    # What is measured, and its name among the ranges.
    values = {
        "unit": (costs.kl, "kl"),
        "oracle": (costs.oracle_kl.sel(model="before"), "oracle_kl"),
        "other seed to the oracle": (costs.oracle_kl.sel(model="after"), "oracle_kl"),
    }
    for model, title in MODELS.items():
        values |= {f"{title} {key.upper()}": (costs[key].sel(model=model), key) for key in ("em", "nll")}
    for title, (key, model) in CHANGES.items():
        change = costs[key].sel(model=model) - costs[key].sel(model="before")
        values[f"{title} change"] = (change, f"{key}_change")
    found: dict[str, Any] = {"paragraphs": len(clusters), "clusters": len(np.unique(clusters))}
    for name, (each, measure) in values.items():
        numbers, within = each.values.astype(float), range_of(measure, length)
        found[name] = [float(numbers.mean()), *mm.cluster_bootstrap(numbers, clusters, within=within)]
    found["distance"] = found["oracle"][0] / found["unit"][0]
    return found


def parts_brought(model: HookedTransformer, oracle: HookedTransformer, sets: Sets) -> dict[str, dict[str, Any]]:
    """What each part of the model, transplanted into the oracle, brings: EM and NLL of the targets, NLL of others."""
    found = {name: mm.transplant_layers(model, oracle, sets[name]) for name in ("targets", "other")}
    targets = found["targets"]
    gap = float((targets.nll_target - targets.nll_source).mean())
    result = {}
    for part in targets.component.values.tolist():
        changes = {
            "EM": (targets, "em_change", sets["targets"]),
            "NLL": (targets, "nll_change", sets["targets"]),
            "other NLL": (found["other"], "nll_change", sets["other"]),
        }
        result[part] = {"weights": int(targets.weights.sel(component=part))}
        for name, (brought, measure, paragraphs) in changes.items():
            values = brought[measure].sel(component=part).values.astype(float)
            within = range_of(measure, paragraphs.continuation_len)
            ends = mm.cluster_bootstrap(values, paragraphs.clusters, within=within)
            result[part][name] = [float(values.mean()), *ends]
        result[part]["share"] = -result[part]["NLL"][0] / gap
    return result


def main(settings: Settings, model: HookedTransformer | None = None) -> dict[str, dict[str, Any]]:
    """Compare the three models on every set.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        Set -> what `summary` gives.

    Raises:
        InputError: a model has not been trained yet.
    """
    for folder in (settings.oracle, settings.other_seed):
        if not (folder / "config.json").exists():
            raise InputError(f"got no model in {folder}; need both: train them with oracle_training.py")
    model, paragraphs = open_inputs(settings, model)
    paragraphs, em = scored_candidates(model, paragraphs, settings)
    sets = joined(splits(paragraphs, em, settings)[0], paragraphs)
    oracle, other = (mm.load_model(folder, device=settings.device) for folder in (settings.oracle, settings.other_seed))
    results = {}
    for name, part in sets.items():
        results[name] = summary(mm.paragraph_costs(model, other, part, oracle=oracle), part.continuation_len)
        brief = {key: np.round(value, 3).tolist() for key, value in results[name].items()}
        print(name, brief, flush=True)
    parts = parts_brought(model, oracle, sets)
    write_json(settings.out / "result.json", {"settings": vars(settings), "sets": results, "parts": parts})
    write(settings, results, parts)
    return results


def said(value: list[float], digits: int) -> str:
    """A mean and its interval."""
    mean, low, high = (f"{number:.{digits}f}" for number in value)
    return f"{mean} [{low}, {high}]"


def write(settings: Settings, results: dict[str, dict[str, Any]], parts: dict[str, dict[str, Any]]) -> None:
    """The page of docs.

    Args:
        settings: of the run.
        results: what `main` returns.
        parts: what `parts_brought` gives.
    """
    head = ["set", "paragraphs (clusters)", "KL(bundled ‖ other seed)", "KL(bundled ‖ oracle)", "ratio"]
    rows = [
        f"| {name} | {one['paragraphs']} ({one['clusters']}) | {said(one['unit'], 3)} | {said(one['oracle'], 3)} | "
        f"{one['distance']:.2f} |"
        for name, one in results.items()
    ]
    columns = [*(f"{title} {key}" for key in ("EM", "NLL") for title in MODELS.values())]
    changes = [f"{title} change" for title in CHANGES]
    values = [
        f"| {name} | " + " | ".join(f"{one[key][0]:.2f}" for key in columns) + " | "
        + " | ".join(said(one[key], 2) for key in changes) + " |"
        for name, one in results.items()
    ]  # fmt: skip
    lines = [
        "# The model that never read the targets",
        "",
        f"{stamp('oracle')}, seeds {list(settings.seeds)} of the unlearning experiment, {settings.targets} targets "
        "each. The oracle has the bundled model's recipe, order and first weights, without any document of the "
        "targets' clusters; the other model has all of the text and another seed. 95 % intervals are by cluster.",
        f"<!-- findings -->{kept_text(settings.page, 'findings')}<!-- findings -->",
        "",
        "## How far apart two trained models are",
        "",
        "KL in nats per token. The first column is the unit of the distances in the [leaderboard](unlearning.md).",
        "",
        "| " + " | ".join(head) + " |",
        "|---|" + "---|" * (len(head) - 1),
        *rows,
        "",
        "## Is the oracle a fair control",
        "",
        "EM in tokens, NLL in nats per token; a change is that model minus the bundled one, paragraph by paragraph.",
        "",
        "| set | " + " | ".join([*columns, *changes]) + " |",
        "|---|" + "---|" * len([*columns, *changes]),
        *values,
        "",
        "## Which part brings the targets back",
        "",
        "Each part of the bundled model alone in the oracle, biases and layer norms included. Changes are with "
        "the part minus without; the share is of the NLL between the oracle and the bundled model on the targets.",
        "",
        "| part | weights | targets' EM | targets' NLL | share | other text's NLL |",
        "|---|---|---|---|---|---|",
        *(
            f"| {part} | {one['weights']:,} | {said(one['EM'], 2)} | {said(one['NLL'], 2)} | {one['share']:.0%} | "
            f"{said(one['other NLL'], 2)} |"
            for part, one in parts.items()
        ),
    ]
    write_page(settings.page, lines)


if __name__ == "__main__":
    start(main, Settings, __doc__)
