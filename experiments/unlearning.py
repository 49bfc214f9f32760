"""Which unlearning method comes nearest to a model that never read the targets: methods, masks and controls.

    python experiments/unlearning.py     # hours on two cores; resumes; writes docs/unlearning.md
    python experiments/unlearning.py --rows "NPO, all" "ascent, all" --seeds 0 1

1. Learning rates are chosen on memorized paragraphs of clusters that nothing below uses, by one search for all rows.
2. For each seed, targets are one memorized paragraph of each of its clusters; `unlearning_sets` names the other sets.
3. Every method runs until the targets' mean EM is 10 of 50 or less, for at most `steps` steps. Then its cost is
   measured, its distance to the oracle, what attacks recover, and what is left inside.
4. The rows "before", "oracle" and "other seed" are no edits: they say where every method starts and should end.

The paper's own recipe takes its fixed number of steps, because it has no stopping rule. Results are saved after
each row of each seed. The oracle and the model of another seed are those of `oracle_training.py`; without them their
columns are left out.
"""

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inputs import Inputs, open_inputs, start
from outputs import agree_on_settings, photograph, read_json, write_json
from unlearning_measures import Models, measure
from unlearning_page import Results, draw, write
from unlearning_sets import Sets, scored_candidates, splits
from unlearning_ways import ORACLE_ROWS, ROWS, Row, run

import mechmem as mm
from mechmem.data.bounds import Amount, Count, Rate, Seed, Share
from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer

# A rate at the edge of those tried is followed so many times, by this factor.
FURTHER, FACTOR = 2, 3.0
DEFAULT = {"oracle": Path("runs/oracle/oracle/model"), "other_seed": Path("runs/oracle/seed/model")}


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seeds: those to run, of `all_seeds`.
        all_seeds: that have clusters to forget, as the oracle was trained without.
        clusters_each: clusters of each of them.
        targets: number of memorized paragraphs to unlearn, one per cluster.
        held: number of paragraphs in every other set, and twice that of the keep set.
        steps: maximum number of steps.
        tuning_targets: number of targets while learning rates are chosen.
        target_em: the stopping rule: mean EM of the targets, in tokens; None: a fifth of the continuation.
        fraction: share of the attention and MLP weights that sparse edits may move.
        relearning: maximum number of relearning steps on other text; measured every tenth step.
        own_steps: maximum number of relearning steps on the targets themselves; measured every second step.
        own_rate: learning rate of the latter; the former has 1e-4.
        rows: names of the rows to run; empty: all.
        candidates: number of paragraphs from which sets are drawn; None: all.
        oracle: folder of a model that was trained without the targets; left out where the default is not there.
        other_seed: folder of a model that was trained on everything with another seed; the same.
        out: folder of the results.
        page: the table, or None.
    """

    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    all_seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    clusters_each: Count = 32
    targets: Count = 32
    held: Count = 32
    steps: Count = 100
    tuning_targets: Count = 16
    target_em: Amount | None = None
    fraction: Share = 0.001
    relearning: Count = 20
    own_steps: Count = 30
    own_rate: Rate = 1e-3
    rows: tuple[str, ...] = ()
    candidates: Count | None = None
    oracle: Path | None = DEFAULT["oracle"]
    other_seed: Path | None = DEFAULT["other_seed"]
    out: Path = Path("results/unlearning")
    page: Path | None = Path("docs/unlearning.md")


def with_models(settings: Settings) -> Settings:
    """The settings without default folders that are not there.

    Raises:
        InputError: a folder that was asked for is not there.
    """
    own = (settings.model, settings.corpus) == ("bundled", None)
    for name, default in DEFAULT.items():
        folder = getattr(settings, name)
        missing = folder is not None and not (folder / "config.json").exists()
        if missing or (folder == default and not own):
            if folder != default:
                raise InputError(
                    f"got {folder} as {name}; need the folder of a model: train it with oracle_training.py"
                )
            settings = replace(settings, **{name: None})
    if settings.oracle is None and settings.other_seed is not None:
        # Its distance is the unit of the oracle's, so it says nothing alone.
        settings = replace(settings, other_seed=None)
    return settings


def choose_rates(model: HookedTransformer, sets: Sets, settings: Settings, known: dict[str, float]) -> dict[str, float]:
    """For each row with rates, the rate that meets the stopping rule with the lowest KL on the development sets.

    All rows are searched alike: all of its rates, and three times or a third of the best where it is the last of them.
    """
    goal = settings.target_em or 0.0
    for row in rows_of(settings):
        if not row.rates or row.name in known:
            continue
        tried: dict[float, tuple[float, float]] = {}
        waiting = list(row.rates)
        while waiting:
            rate = waiting.pop(0)
            edited, _ = run(model, row, sets, settings, 1000, rate)
            em = float(mm.score(edited, sets["targets"]).em.mean())
            tried[rate] = max(em - goal, 0.0), float(mm.kl(model, edited, sets["other"]).mean())
            best = min(tried, key=lambda rate: tried[rate])
            if not waiting and len(tried) < len(row.rates) + FURTHER and best in (min(tried), max(tried)):
                waiting = [float(f"{best * FACTOR if best == max(tried) else best / FACTOR:.3g}")]
        known[row.name] = min(tried, key=lambda rate: tried[rate])
        write_json(settings.out / "rates.json", known)
        print(row.name, {rate: (round(em, 1), round(kl, 4)) for rate, (em, kl) in tried.items()}, flush=True)
    return known


def rows_of(settings: Settings) -> list[Row]:
    """The selected rows; those that need the oracle where there is one."""
    rows = (*ROWS, *(ORACLE_ROWS if settings.oracle else ()))
    return [row for row in rows if not settings.rows or row.name in settings.rows]


def to_do(settings: Settings, results: Results, models: Models, seed: int) -> list[tuple[str, Row | HookedTransformer]]:
    """Rows without a result for this seed: models that are no edits, and rows."""
    given = {"before": models.original, "oracle": models.oracle, "other seed": models.other_seed}
    rows = {name: model for name, model in given.items() if model is not None}
    wanted: dict[str, Any] = rows | {row.name: row for row in rows_of(settings)}
    return [(name, row) for name, row in wanted.items() if str(seed) not in results.get(name, {})]


def main(settings: Settings, model: HookedTransformer | None = None) -> Results:
    """Run every row for every seed that has no result yet.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        Row -> seed -> measurements.
    """
    model, paragraphs = open_inputs(settings, model)
    settings = with_models(settings)
    if settings.target_em is None:
        settings = replace(settings, target_em=float(paragraphs.continuation_len // 5))
    paragraphs, em = scored_candidates(model, paragraphs, settings)
    of_seeds, tuned = splits(paragraphs, em, settings)
    # Rows and seeds may be added later; devices differ by rounding.
    agree_on_settings(settings.out, settings, free=("rows", "seeds", "device", "out", "page"))
    rates = choose_rates(model, tuned, settings, read_json(settings.out / "rates.json"))
    results = read_json(settings.out / "results.json")
    folders = settings.oracle, settings.other_seed
    beside = [None if folder is None else mm.load_model(folder, device=settings.device) for folder in folders]
    for seed, sets in of_seeds.items():
        models = Models(model, *beside)
        for name, row in to_do(settings, results, models, seed):
            started = time.process_time()
            if isinstance(row, Row):
                edited, how = run(model, row, sets, settings, seed, rates.get(row.name))
                how["CPU seconds"] = time.process_time() - started
            else:
                edited, how = row, {}
            results.setdefault(name, {})[str(seed)] = how | measure(models, edited, sets, settings, seed)
            write_json(settings.out / "results.json", results)
            brief = {key: round(value, 3) for key, value in results[name][str(seed)].items()}
            print(seed, name, brief, flush=True)
    figure = draw(results)
    if settings.page is not None:
        photograph(figure, settings.page.with_name("unlearning.png"))
    write(settings, results, rates)
    return results


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*diverged.*")
    start(main, Settings, __doc__)
