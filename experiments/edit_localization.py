"""Does an edit move the weights that hold the memory? Memories are injected into known weights, then unlearned.

    python experiments/edit_localization.py     # about an hour of one core; resumes; writes docs/edit-localization.md

1. For each model, texts that the bundled model never saw are trained into random neurons, and nothing else moves
   (`mm.inject`). The model before is the exact oracle: undoing the injection is the perfect edit.
2. Every method unlearns these texts, by the rule and the search of rates of `unlearning.py`; rates are chosen on an
   injection of other texts into other neurons.
3. Of each edit: AUROC of |change of a weight| against "was injected into", over all attention and MLP weights; the
   share of the squared change that lies in these weights; the cosine between the change and the perfect edit's; KL to
   the oracle; and the steps of training on the texts that bring them back, beside the oracle's.

The row "undone" is the perfect edit, and random weights are the control: AUROC 1 and 1/2.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from inputs import Inputs, open_inputs, start
from outputs import agree_on_settings, kept_text, read_json, stamp, write_json, write_page
from samples import one_per_cluster, refuse_few, shuffled
from sklearn.metrics import roc_auc_score
from unlearning import choose_rates, rows_of
from unlearning_page import said
from unlearning_sets import Sets
from unlearning_ways import run

import mechmem as mm
from mechmem.data.bounds import Amount, Count, Rate, Seed, Share
from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters
from mechmem.stats.ranges import CORRELATION, NOT_NEGATIVE, SHARE, Range
from mechmem.truth.injected import random_neurons

SHOWN = (
    "ascent, all",
    "GradDiff, all",
    "NPO, all",
    "NPO, all, null space",
    "SimNPO, all",
    "RMU, all",
    "contrastive, top 0.1 %",
    "NPO, top 0.1 %",
    "NPO, gates 0.1 %",
    "NPO, attribution at both ends 0.1 %",
    "NPO, random 0.1 %",
)
COLUMNS = {
    "targets EM": ("targets' EM", 1),
    "auroc": ("AUROC of what moved", 3),
    "share": ("squared change in the injected weights, %", 1),
    "cosine": ("cosine with the perfect edit", 3),
    "targets KL": ("KL to the oracle, targets", 3),
    "other KL": ("KL to the oracle, other", 4),
    "relearning steps": ("steps to relearn", 1),
}

# What a column's mean can be, where it can be more than not negative.
RANGES: dict[str, Range] = {"auroc": SHARE, "share": (0.0, 100.0), "cosine": CORRELATION}


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        models: injections; each has its own texts and neurons.
        targets: texts of an injection.
        held: paragraphs of the keep set and of the set on which KL is measured.
        neurons: share of the neurons that an injection may train.
        learning_rate: of the injection.
        steps: at most so many, of the injection and of an edit.
        target_em: an edit stops when the mean EM of the targets is as low; None: a fifth of the continuation.
        fraction: share of the weights that sparse edits may move.
        relearning: most steps of relearning; counted as one more where they are not enough.
        relearning_rate: its learning rate.
        rows: of the leaderboard of unlearning.
        seed: of the first injection.
        candidates: number of paragraphs from which texts are drawn; None: all.
        out: folder of the results.
        page: the table, or None.
    """

    models: Count = 4
    targets: Count = 8
    held: Count = 16
    neurons: Share = 0.01
    learning_rate: Rate = 3e-3
    steps: Count = 100
    target_em: Amount | None = None
    fraction: Share = 0.001
    relearning: Count = 40
    relearning_rate: Rate = 3e-4
    rows: tuple[str, ...] = SHOWN
    seed: Seed = 0
    candidates: Count | None = None
    out: Path = Path("results/edit_localization")
    page: Path | None = Path("docs/edit-localization.md")

    @property
    def oracle(self) -> None:
        """As `unlearning.py` has it: the folder of an oracle. Here the models before the injections are oracles."""


def unknown_texts(model: HookedTransformer, paragraphs: mm.Paragraphs, settings: Settings) -> mm.Paragraphs:
    """Paragraphs that the model does not know, one of a cluster, in random order; never seen where that is known."""
    if settings.candidates is not None:
        paragraphs = shuffled(paragraphs, 0)[: settings.candidates]
    if paragraphs.has("seen"):
        paragraphs = paragraphs.select(paragraphs.column("seen") == "never seen")
    em = mm.score(model, paragraphs).em.values
    found = shuffled(paragraphs.select(em <= paragraphs.continuation_len // 5), settings.seed)
    found = one_per_cluster(found, len(found))
    need = (settings.models + 1) * settings.targets + 2 * settings.held
    refuse_few({"not memorized, one of a cluster": len(found)}, len(paragraphs), need)
    return found


def injected(
    model: HookedTransformer, texts: mm.Paragraphs, number: int, settings: Settings
) -> tuple[HookedTransformer, Sets, mm.Mask]:
    """A model that reproduces some of the texts, its sets, and the weights that were trained; number 0 is for rates.

    Raises:
        InputError: the injection did not learn its texts.
    """
    first = 2 * settings.held
    own = texts[first + number * settings.targets :][: settings.targets]
    mask = mm.Mask.neurons(model, random_neurons(model, settings.neurons, settings.seed + number))
    training = mm.Training(settings.steps, settings.learning_rate)
    told, history = mm.inject(model, own, mask, training=training)
    if float(history.em[-1]) < own.continuation_len:
        raise InputError(
            f"got a mean EM of {float(history.em[-1]):.1f} after {settings.steps} steps of the injection; need all "
            f"{own.continuation_len}: raise --steps, --neurons or --learning-rate"
        )
    return told, {"targets": own, "keep": texts[: settings.held], "other": texts[settings.held : first]}, mask


def moved(
    before: HookedTransformer, after: HookedTransformer, perfect: HookedTransformer, mask: mm.Mask
) -> dict[str, float]:
    """Where an edit moved weights, against where the injection put the memory."""
    ends, undone = (editable_parameters(each) for each in (after, perfect))
    change, wanted, labels = [], [], []
    for name, value in editable_parameters(before).items():
        change.append((ends[name] - value).detach().flatten().double())
        wanted.append((undone[name] - value).detach().flatten().double())
        label = torch.zeros(value.numel(), dtype=torch.bool)
        label[mask.indices.get(name, torch.zeros(0, dtype=torch.long))] = True
        labels.append(label)
    all_change, all_wanted, label = torch.cat(change), torch.cat(wanted), torch.cat(labels)
    squared, norms = all_change.square(), all_change.norm() * all_wanted.norm()
    return {
        "auroc": float(roc_auc_score(label.numpy(), all_change.abs().numpy())),
        "share": 100 * float(squared[label].sum() / squared.sum()),
        "cosine": float(all_change @ all_wanted / norms),
    }


def measured(
    oracle: HookedTransformer,
    before: HookedTransformer,
    edited: HookedTransformer,
    sets: Sets,
    mask: mm.Mask,
    settings: Settings,
) -> dict[str, Any]:
    """All columns of one edit of one model."""
    targets, same = sets["targets"], edited is oracle
    found: dict[str, Any] = {"targets EM": float(mm.score(edited, targets).em.mean())}
    for name in ("targets", "other"):
        found[f"{name} KL"] = 0.0 if same else float(mm.kl(edited, oracle, sets[name]).mean())
    if edited is not before:
        found |= moved(before, edited, oracle, mask)
    training = mm.Training(settings.relearning, settings.relearning_rate)
    # Training on the targets themselves; any other model may stand for the second one here.
    steps = mm.relearning_steps(edited, before if same else oracle, targets, training=training).steps_until
    own = float(steps.sel(model="after"))
    return found | {"relearning steps": own if np.isfinite(own) else settings.relearning + 1}


def main(settings: Settings, model: HookedTransformer | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Inject, unlearn and measure; what is in the results already is not computed again.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        Row -> number of the injection -> measurements.
    """
    model, paragraphs = open_inputs(settings, model)
    if settings.target_em is None:
        settings = replace(settings, target_em=float(paragraphs.continuation_len // 5))
    texts = unknown_texts(model, paragraphs, settings)
    agree_on_settings(settings.out, settings, free=("rows", "models", "device", "out", "page"))
    trained, sets, _ = injected(model, texts, 0, settings)
    rates = choose_rates(trained, sets, cast(Any, settings), read_json(settings.out / "rates.json"))
    results = read_json(settings.out / "results.json")
    for number in range(1, settings.models + 1):
        rows = {"before": None, "undone": None} | {row.name: row for row in rows_of(cast(Any, settings))}
        rows = {name: row for name, row in rows.items() if str(number) not in results.get(name, {})}
        if not rows:
            continue
        told, sets, mask = injected(model, texts, number, settings)
        for name, row in rows.items():
            edited = {"before": told, "undone": model}.get(name)
            if edited is None and row is not None:
                edited, _ = run(told, row, sets, settings, settings.seed + number, rates.get(name))
            found = measured(model, told, cast(HookedTransformer, edited), sets, mask, settings)
            results.setdefault(name, {})[str(number)] = found
            write_json(settings.out / "results.json", results)
            print(number, name, {key: round(value, 3) for key, value in found.items()}, flush=True)
    write(settings, results, rates)
    return results


def write(settings: Settings, results: dict[str, dict[str, dict[str, Any]]], rates: dict[str, float]) -> None:
    """The page of docs."""
    lines = [
        "# Do unlearners move what holds the memory?",
        "",
        f"{stamp('edit_localization')}, seed {settings.seed}: {settings.models} models, in each {settings.targets} "
        f"texts that the model never saw, trained into {100 * settings.neurons:g} % of the neurons, drawn at random. "
        "The model before is the oracle. An edit stops when the mean EM of these texts is "
        f"{settings.target_em:g} or less, after at most {settings.steps} steps. Means over models with 95 % intervals.",
        f"<!-- findings -->{kept_text(settings.page, 'findings')}<!-- findings -->",
        "",
        *table(results),
        "",
        "AUROC: the chance that a weight which was injected into moved further than one which was not, over all "
        "attention and MLP weights; 0.5 is chance. Squared change: the share of it that lies in the injected weights. "
        "Perfect edit: the injection undone. KL(edited ‖ oracle) in nats per token. Steps to relearn: of training on "
        f"the texts themselves at {settings.relearning_rate:g} until half of the continuation is reproduced "
        f"({settings.relearning + 1} means not within {settings.relearning}); fewer than of the undone model: the "
        "memory was still inside.",
        "",
        "Rates were chosen on another injection: " + "; ".join(f"{row}: {rate:g}" for row, rate in rates.items()) + ".",
    ]
    write_page(settings.page, lines)


def table(results: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """A row of each method, those that moved the injected weights most first."""

    def order(name: str) -> tuple[bool, float]:
        return name not in ("before", "undone"), -float(
            np.mean([run.get("auroc", 2.0) for run in results[name].values()])
        )

    lines = [
        "| method | " + " | ".join(title for title, _ in COLUMNS.values()) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for name in sorted(results, key=order):
        runs = list(results[name].values())
        cells = [
            said(np.array([run[key] for run in runs]), digits, RANGES.get(key, NOT_NEGATIVE))
            if all(key in run for run in runs)
            else "–"
            for key, (_, digits) in COLUMNS.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    start(main, Settings, __doc__)
