"""Three claims on unlearning at each size of the ladder: sparse equals dense, top beats random, editing is harder.

    python experiments/ladder_unlearning.py                            # three models; resumes; minutes a model
    python experiments/ladder_unlearning.py --rungs 1M-small-seed0

1. Targets are late documents: the snapshot from before them never read them, so it is the oracle. They are split at
   random into parts, and each part is unlearned alone.
2. Every row ends when its targets' mean NLL is that of documents that were never inserted: chance chose which were.
   An edit ends when the model says the new text, which is what it writes after the worst change of a prefix token.
3. Learning rates are chosen by the same search for all rows, on documents inserted often and other text that nothing
   else uses: the rate that comes nearest to the rule, and of those that meet it the one with the lowest KL. Where that
   is the largest or smallest of its row, three times or a third of it is tried as well.
4. Each edit is measured on its targets, on documents inserted often that it was not to touch, and on documents never
   inserted.

Results are saved after each row of each part. `ladder_page` writes the tables.
"""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ladder_transplant
import numpy as np
from inputs import start
from ladder_corpus import BASE, with_prefix
from ladder_measure import documents_of, steps_of, trained_rungs
from ladder_rungs import snapshot_folder
from ladder_transplant import before_late
from outputs import agree_on_settings, read_json, write_json
from samples import refuse_few
from unlearning_ways import ROWS, Row, Sets, rewritten, run

import mechmem as mm
from mechmem.data.bounds import Count, Seed, Share, check_fields
from mechmem.data.errors import InputError
from mechmem.data.folder_lock import only_writer
from mechmem.model.load import HookedTransformer

TOP, RANDOM, ALL = (f"contrastive, {name}" for name in ("top 0.1 %", "random 0.1 %", "all"))
EDIT, EDIT_RANDOM = (f"edit, {name}" for name in ("top 0.1 %", "random 0.1 %"))
BEFORE, ORACLE = "before", "oracle"
# A rate at the edge of those tried is followed once, by this factor.
FACTOR = 3.0


@dataclass(frozen=True)
class Settings:
    """What is unlearned.

    Attributes:
        rungs: names of the models.
        rows: of the unlearning leaderboard.
        least_copies: of the late documents that are targets.
        often: copies from which on documents are memories that no edit is to touch, or targets of the search.
        few: at most so many copies have the documents whose predictions are held, and the other text of the search.
        parts: of the targets, each unlearned alone.
        tuning_targets: of the search.
        held: documents whose predictions a row is given to hold.
        steps: maximum number of steps.
        fraction: share of the attention and MLP weights that sparse rows may move.
        seed: of the split, of perturbations and of random masks.
        prefix_len: tokens of the prefix.
        work: folder of the rungs.
    """

    rungs: tuple[str, ...] = ("1M-small-seed0", "3M-small-seed0", "6M-small-seed0")
    rows: tuple[str, ...] = (TOP, RANDOM, ALL, EDIT)
    least_copies: Count = 16
    often: Count = 64
    few: Count = 8
    parts: Count = 2
    tuning_targets: Count = 10
    held: Count = 10
    steps: Count = 30
    fraction: Share = 0.001
    seed: Seed = 0
    prefix_len: Count = 50
    work: Path = Path("runs/ladder")

    def __post_init__(self) -> None:
        check_fields(self)


def rows_of(settings: Settings) -> list[Row]:
    """The rows that the settings name.

    Raises:
        InputError: the leaderboard has no such row with learning rates.
    """
    known = {row.name: row for row in ROWS if row.rates}
    unknown = [name for name in settings.rows if name not in known]
    if unknown:
        raise InputError(f"got row {unknown[0]!r}; need one of {', '.join(known)}")
    return [known[name] for name in settings.rows]


def split(documents: mm.Paragraphs, settings: Settings) -> tuple[list[Sets], Sets]:
    """The sets of each part, and those of the search.

    Args:
        documents: of `ladder_measure.documents_of`.
        settings: how many of each.

    Raises:
        InputError: too few documents.
    """
    paragraphs = with_prefix(documents, settings.prefix_len)
    paragraphs = paragraphs.select(paragraphs.column("text_of") == BASE)
    paragraphs = paragraphs.select(np.random.default_rng(settings.seed).permutation(len(paragraphs)))
    copies, condition = paragraphs.column("copies"), paragraphs.column("condition")
    spread = condition == "spread"
    late = paragraphs.select((condition == ladder_transplant.LATE) & (copies >= settings.least_copies))
    often = paragraphs.select(spread & (copies >= settings.often))
    few = paragraphs.select(spread & (copies > 0) & (copies <= settings.few))
    first, half = settings.tuning_targets, settings.held
    found = {"late": len(late) - settings.parts, "often": len(often) - first, "few": len(few) - 2 * half}
    refuse_few({f"inserted {name}, beyond those that edits are given": n for name, n in found.items()}, len(paragraphs))
    shared = {
        "keep": few[:half],
        "memories": often[first:],
        "never inserted": paragraphs.select(spread & (copies == 0)),
    }
    parts = [late.select(np.arange(part, len(late), settings.parts)) for part in range(settings.parts)]
    search = {"targets": often[:first], "keep": few[half : 2 * half], "other": few[2 * half :][: 2 * half]}
    return [shared | {"targets": part} for part in parts], search


def with_new_text(model: HookedTransformer, sets: Sets, seed: int) -> Sets:
    """The sets with what edits write; targets that no perturbation changes are left out."""
    targets, corrupt = rewritten(model, sets["targets"], seed)
    return sets | {"targets": targets, "rewritten": corrupt}


def choose_rates(
    model: HookedTransformer, sets: Sets, rows: list[Row], how: Any, seed: int, known: dict[str, float]
) -> dict[str, float]:
    """Each row's rate, by the search of the script's first lines; known ones stay."""
    for row in rows:
        if row.name in known:
            continue
        tried: dict[float, tuple[float, float]] = {}
        waiting = list(row.rates)
        while waiting:
            rate = waiting.pop(0)
            edited, _ = run(model, row, sets, how, seed, rate)
            missing = max(0.0, how.target_nll - float(mm.score(edited, sets["targets"]).nll.mean()))
            # Rates that miss the rule by less than rounding of the last step meet it alike.
            tried[rate] = round(missing, 2), float(mm.kl(model, edited, sets["other"]).mean())
            best = min(tried, key=lambda rate: tried[rate])
            if not waiting and len(tried) == len(row.rates) and best in (min(tried), max(tried)):
                waiting = [float(f"{best * FACTOR if best == max(tried) else best / FACTOR:.3g}")]
        known[row.name] = min(tried, key=lambda rate: tried[rate])
    return known


def costs(original: HookedTransformer, edited: HookedTransformer, oracle: HookedTransformer, sets: Sets) -> Any:
    """Set and measure -> one number for each document.

    nll and em of the edited model, nll_change from the original, kl from the original, and oracle_kl, KL(edited ||
    oracle), in nats per token.
    """
    found: dict[str, list[float]] = {}
    for name in ("targets", "memories", "never inserted"):
        before, after = (mm.score(model, sets[name]) for model in (original, edited))
        measures = {"nll": after.nll, "em": after.em, "nll_change": after.nll - before.nll}
        measures |= {"kl": mm.kl(original, edited, sets[name]), "oracle_kl": mm.kl(edited, oracle, sets[name])}
        found |= {f"{name} {measure}": values.values.tolist() for measure, values in measures.items()}
        found[f"{name} cluster"] = sets[name].clusters.tolist()
    return found


def unlearn_rung(settings: Settings, folder: Path) -> dict[str, Any]:
    """Row -> part -> what `costs` gives, with steps and seconds; what is there is not run again."""
    steps, rows = steps_of(folder), rows_of(settings)
    out = folder / "unlearning"
    with only_writer(folder):
        agree_on_settings(out, settings, free=("rungs", "rows", "work"))
        original, oracle = (
            mm.load_model(snapshot_folder(folder, step), device="cpu") for step in (steps[-1], before_late(steps))
        )
        parts, search = split(documents_of(folder), settings)
        goal = float(mm.score(original, parts[0]["never inserted"]).nll.mean())
        how = SimpleNamespace(
            steps=settings.steps, fraction=settings.fraction, target_em=None, target_nll=goal, oracle=None
        )
        rates, results = read_json(out / "rates.json"), read_json(out / "results.json")
        missing = [row for row in rows if len(results.get(row.name, {})) < settings.parts]
        if any(row.name not in rates for row in missing):
            search = with_new_text(original, search, settings.seed)
            for row in missing:
                rates = choose_rates(original, search, [row], how, settings.seed, rates)
                write_json(out / "rates.json", rates)
        for part, sets in enumerate(parts):
            wanted = [row for row in missing if str(part) not in results.get(row.name, {})]
            if not wanted:
                continue
            sets = with_new_text(original, sets, settings.seed)
            for name, model in ((BEFORE, original), (ORACLE, oracle)):
                results.setdefault(name, {})[str(part)] = costs(original, model, oracle, sets)
            for row in wanted:
                began = time.process_time()
                edited, said = run(original, row, sets, how, settings.seed, rates[row.name])
                said["CPU seconds"] = round(time.process_time() - began, 1)
                found = said | costs(original, edited, oracle, sets)
                results.setdefault(row.name, {})[str(part)] = found
                write_json(out / "results.json", results)
                means = {name: round(float(np.mean(found[name])), 3) for name in found if "cluster" not in name}
                print(folder.name, part, row.name, means, flush=True)
    return results


def main(settings: Settings) -> None:
    """Unlearn in each model that was trained.

    Args:
        settings: which.
    """
    for name in settings.rungs:
        (folder,) = trained_rungs(settings.work, name)
        unlearn_rung(settings, folder)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*(diverged|removed nothing|taught nothing).*")
    start(main, Settings, __doc__)
