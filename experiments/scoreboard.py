"""Which localizers find the neurons that hold a paragraph, on the bundled model.

    python experiments/scoreboard.py     # half an hour of one core; resumes; writes docs/scoreboard.md and results/

The benchmarks INJ and DEL of Chang et al. (2024, "Do Localization Methods Actually Localize Memorized Data in LLMs?",
NAACL), and every kind of localizer on models whose answer is known. INJ has two protocols: theirs trains the drawn
neurons' out-weights and compares the top of every layer; "whole neurons" trains in- and out-weights and compares the
top of the whole model. Methods were tuned on other paragraphs and draws (seeds 100 to 107) than those reported.
Every target comes from its own cluster and has its own draw of neurons; intervals are over targets. What is
measured of a target is kept in `out`, and a run that was stopped goes on after the last one.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from inputs import Inputs, open_inputs, start
from outputs import agree_on_settings, kept_text, photograph, save, stamp, write_page
from samples import one_per_cluster, refuse_few, shuffled
from scoreboard_tables import deletion_table, draw, injection_table, truth_table
from scoreboard_truth import truth_board

import mechmem as mm
from mechmem.data.bounds import Count, Seed
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
        methods: the methods compared.
        out: folder of the results and the figure.
        page: the table, or None.
    """

    seed: Seed = 0
    targets: Count = 12
    others: Count = 24
    keep: Count = 8
    planted: Count = 5
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
    """Run both boards.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        Both boards in one, [target, method, ...]; see `injection_board` and `deletion_board`.
    """
    model, shipped = open_inputs(settings, model)
    unseen, known = choose(settings, model, shipped)
    agree_on_settings(settings.out, settings, free=("page", "device", "out"))
    count, others, rest = settings.targets, settings.others, settings.targets + settings.keep
    truth = kept(settings.out / "truth.nc", lambda: truth_board(settings.seed, settings.planted, settings.methods))

    def inject_one(number: int, protocol: ProtocolName) -> xr.Dataset:
        one, keep = unseen[number : number + 1], unseen[count:rest]
        how: Any = {"methods": settings.methods, "protocol": protocol, "seed": settings.seed + number}
        return injection_board(model, one, keep, **how)

    def delete_one(number: int) -> xr.Dataset:
        # Perplexity is measured on text that no method was given.
        sets = known[number : number + 1], known[count : count + others], unseen[rest : rest + others]
        return deletion_board(model, *sets, methods=settings.methods, seed=settings.seed + number)

    boards: dict[str, list[xr.Dataset]] = {name: [] for name in (*PROTOCOLS, "deleted")}
    for number in range(count):
        for protocol in PROTOCOLS:
            file = settings.out / f"{protocol.replace(' ', '-')}-{number}.nc"
            boards[protocol].append(kept(file, lambda n=number, p=protocol: inject_one(n, p)))
    for number in range(count):
        boards["deleted"].append(kept(settings.out / f"deleted-{number}.nc", lambda n=number: delete_one(n)))
    joined = {name: xr.concat(parts, "target", combine_attrs="drop_conflicts") for name, parts in boards.items()}
    joined = {name: board.assign_coords(target=np.arange(count)) for name, board in joined.items()}
    injected = xr.concat(
        [joined[name] for name in PROTOCOLS], xr.DataArray(list(PROTOCOLS), dims="protocol", name="protocol")
    )
    deleted = joined["deleted"].drop_vars("seconds")
    result = injected.merge(deleted, combine_attrs="drop")
    save(result, [], settings)  # before drawing, so that a failed figure does not lose the measurements
    figures = draw(injected, deleted)
    save(result, figures, settings)
    if settings.page is not None:
        for figure, name in zip(figures, ("recall", "deletion"), strict=True):
            photograph(
                figure.update_layout(margin={"t": 60, "r": 20}), settings.page.with_name(f"scoreboard-{name}.png")
            )
    write(settings, injected, deleted, truth, shipped.continuation_len)
    return result


def write(settings: Settings, injected: xr.Dataset, deleted: xr.Dataset, truth: xr.Dataset, length: int) -> None:
    """The page of docs.

    Args:
        settings: of the run.
        injected: the boards of INJ, [protocol, ...].
        deleted: the board of DEL.
        truth: the board of hand-set models.
        length: of a continuation.
    """
    names = ("seed", "targets", "others", "keep", "planted")
    fixed = {name: value for name, value in asdict(settings).items() if name in names}
    whole, theirs = (injected.sel(protocol=protocol) for protocol in PROTOCOLS)
    lines = [
        "# Localizer scoreboard",
        "",
        f"{stamp('scoreboard')}, {fixed}. Values are means with 95 % intervals over targets.",
        kept_text(settings.page, "what it says").join(["<!-- what it says -->"] * 2),
        "",
        "## INJ: inject a paragraph into a random 1 % of the neurons",
        "",
        "Two protocols. **Whole neurons**: the weights into and out of the drawn neurons are trained, and the neurons "
        "that score highest in the whole model are compared with those drawn. **Out-weights**, Chang et al.'s (2024) "
        "protocol: what the drawn neurons write is trained alone, and the top neurons of every layer are compared. "
        f"EM after injection: {float(whole.em.mean()):.1f} and {float(theirs.em.mean()):.1f} of {length}. "
        "A random order has an area under the precision-recall curve of 1 %. Seconds are the processor's.",
        "",
        "### Whole neurons, top of the model",
        "",
        *injection_table(whole, published=False),
        "",
        "![Recall by method](scoreboard-recall.png)",
        "",
        "### Out-weights, top of every layer (as published)",
        "",
        "The last column has the recall published for GPT-2 124M at 1, 2 and 5 % (Chang et al. 2024).",
        "",
        *injection_table(theirs, published=True),
        "",
        "## AUROC where the answer is known",
        "",
        "The chance that what is true scores above what is not; 0.5 by chance. Hand-set models: the head that all "
        "memories go through among all heads; the neurons that write a memory, among all neurons, and each at its one "
        "position among all neurons and positions; the weights of both among all attention and MLP weights.",
        "",
        *truth_table(truth, injected),
        "",
        "## DEL: drop the neurons found for a memorized paragraph",
        "",
        "Changes from the original model: accuracy in percentage points (position-wise, teacher-forced), edit distance "
        "in tokens, perplexity of never-seen paragraphs.",
        "",
        *deletion_table(deleted),
        "",
        "![Accuracy lost](scoreboard-deletion.png)",
    ]
    write_page(settings.page, lines)


if __name__ == "__main__":
    start(main, Settings, __doc__)
