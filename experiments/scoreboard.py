"""Which localizers find the neurons that hold a paragraph, on the bundled model.

    python experiments/scoreboard.py     # half an hour of one core; resumes; writes docs/scoreboard.md and results/

The benchmarks INJ and DEL of Chang et al. (2024, "Do Localization Methods Actually Localize Memorized Data in LLMs?",
NAACL), the same injection into heads, and every kind of localizer on models whose answer is known. INJ has two
protocols: theirs trains the drawn neurons' out-weights and compares the top of every layer; "whole neurons" trains in-
and out-weights and compares the top of the whole model. Methods were tuned on other paragraphs and draws (seeds 100 to
107) than those reported.
Every target comes from its own cluster and has its own draw of neurons; intervals are over targets. What is
measured of a target is kept in `out`, and a run that was stopped goes on after the last one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from inputs import Inputs, open_inputs, start
from outputs import agree_on_settings, photograph, save
from samples import one_per_cluster, refuse_few, shuffled
from scoreboard_heads import hand_set_heads, head_board
from scoreboard_page import write
from scoreboard_tables import draw
from scoreboard_truth import truth_board

import mechmem as mm
from mechmem.data.bounds import Count, Seed, Share
from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.localize.neurons import METHODS, NeuronMethod
from mechmem.localize.scoreboard import PROTOCOLS, ProtocolName, deletion_board, injection_board
from mechmem.model.load import HookedTransformer


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws paragraphs and neurons.
        targets: number of injected paragraphs, and of deleted ones.
        others: memorized paragraphs that a deletion should not affect, and as many paragraphs of other text.
        keep: paragraphs given to contrastive methods.
        planted: number of hand-set models.
        heads: share of all heads that a paragraph is injected into.
        methods: the methods compared.
        out: folder of the results and the figure.
        page: the table, or None.
    """

    seed: Seed = 0
    targets: Count = 12
    others: Count = 24
    keep: Count = 8
    planted: Count = 5
    heads: Share = 1 / 16
    methods: tuple[NeuronMethod, ...] = tuple(METHODS)
    out: Path = Path("results/scoreboard")
    page: Path | None = Path("docs/scoreboard.md")


def choose(settings: Settings, model: HookedTransformer, paragraphs: mm.Paragraphs) -> tuple[mm.Paragraphs, ...]:
    """Paragraphs that the model has never learnt (EM of a tenth or less) and memorized ones, one of each cluster."""
    pool = shuffled(paragraphs, settings.seed)
    # The bundled paragraphs say what was trained on; of other text, EM alone decides.
    seen = pool.column("seen") if pool.has("seen") else None
    unseen = one_per_cluster(pool if seen is None else pool[seen == "never seen"], 3 * settings.targets + 100)
    trained = one_per_cluster(pool if seen is None else pool[seen == "trained"], 4 * settings.others + 100)
    known = mm.score(model, trained).em.values == trained.continuation_len
    unseen = unseen[mm.score(model, unseen).em.values <= pool.continuation_len // 10]
    least = {"never learnt": settings.targets + settings.keep + 1, "memorized": settings.targets + 1}
    for name, some in (("never learnt", unseen), ("memorized", trained[known])):
        refuse_few({name: len(some)}, len(pool), least[name])
    return unseen, trained[known]


def kept(path: Path, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
    """What a file holds; computed and written where there is none."""
    if not path.is_file():
        save_netcdf(compute(), path)
    return load_netcdf(path, sealed=True)


def main(settings: Settings, model: HookedTransformer | None = None) -> xr.Dataset:
    """Run all boards.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        All boards in one, [target, method, ...]; see `injection_board`, `head_board` and `deletion_board`.
    """
    model, shipped = open_inputs(settings, model)
    unseen, known = choose(settings, model, shipped)
    agree_on_settings(settings.out, settings, free=("page", "device", "out"))
    truth = kept(settings.out / "truth.nc", lambda: truth_board(settings.seed, settings.planted, settings.methods))
    by_hand = kept(settings.out / "truth-heads.nc", lambda: hand_set_heads(settings.seed, settings.planted))
    boards = measured(settings, model, unseen, known)
    injected = xr.concat(
        [boards[name] for name in PROTOCOLS], xr.DataArray(list(PROTOCOLS), dims="protocol", name="protocol")
    )
    heads = boards["heads"].assign(hand_set_auroc=by_hand.head_auroc)
    deleted = boards["deleted"].drop_vars("seconds")
    result = injected.merge(heads, combine_attrs="drop").merge(deleted, combine_attrs="drop")
    save(result, [], settings)  # before drawing, so that a failed figure does not lose the measurements
    figures = draw(injected, deleted)
    save(result, figures, settings)
    if settings.page is not None:
        for figure, name in zip(figures, ("recall", "deletion"), strict=True):
            photograph(
                figure.update_layout(margin={"t": 60, "r": 20}), settings.page.with_name(f"scoreboard-{name}.png")
            )
    write(settings, injected, heads, deleted, truth)
    return result


def measured(
    settings: Settings, model: HookedTransformer, unseen: mm.Paragraphs, known: mm.Paragraphs
) -> dict[str, xr.Dataset]:
    """Each board, joined over targets; what a file of `out` holds is not measured again."""
    count, others, rest = settings.targets, settings.others, settings.targets + settings.keep
    keep = unseen[count:rest]

    def injected(protocol: ProtocolName) -> Callable[[int], xr.Dataset]:
        how: Any = {"methods": settings.methods, "protocol": protocol}
        return lambda at: injection_board(model, unseen[at : at + 1], keep, seed=settings.seed + at, **how)

    def in_heads(at: int) -> xr.Dataset:
        return head_board(model, unseen[at : at + 1], keep, share=settings.heads, seed=settings.seed + at)

    def deleted(at: int) -> xr.Dataset:
        # Perplexity is measured on text that no method was given.
        sets = known[at : at + 1], known[count : count + others], unseen[rest : rest + others]
        return deletion_board(model, *sets, methods=settings.methods, seed=settings.seed + at)

    kinds = {**{name: injected(name) for name in PROTOCOLS}, "heads": in_heads, "deleted": deleted}
    parts: dict[str, list[xr.Dataset]] = {name: [] for name in kinds}
    # The boards of INJ together, target by target: a run that is stopped has both protocols of the same ones.
    for at, name in [(at, name) for at in range(count) for name in PROTOCOLS] + [
        (at, name) for name in ("heads", "deleted") for at in range(count)
    ]:
        file = settings.out / f"{name.replace(' ', '-')}-{at}.nc"
        parts[name].append(kept(file, lambda name=name, at=at: kinds[name](at)))
    joined = {name: xr.concat(some, "target", combine_attrs="drop_conflicts") for name, some in parts.items()}
    return {name: board.assign_coords(target=np.arange(count)) for name, board in joined.items()}


if __name__ == "__main__":
    start(main, Settings, __doc__)
