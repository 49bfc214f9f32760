"""Which localizers find the neurons that hold a paragraph, on the bundled model.

    python experiments/scoreboard.py     # about ten minutes on two cores; writes docs/scoreboard.md and results/

The benchmarks INJ and DEL of Chang et al. (2024, "Do Localization Methods Actually Localize Memorized Data in LLMs?",
NAACL). The learned gates' settings were chosen on paragraphs and draws (seeds 100 to 102) that are not reported here.
Every target comes from its own cluster and has its own draw of neurons; intervals are bootstraps over targets.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from inputs import Inputs, open_inputs, start
from outputs import photograph, save, stamp, write_page
from samples import one_per_cluster, refuse_few, shuffled
from scipy.stats import bootstrap

import mechmem as mm
from mechmem.data.bounds import Count, Seed
from mechmem.localize.neurons import METHODS, NeuronMethod
from mechmem.localize.scoreboard import deletion_board, injection_board
from mechmem.model.load import HookedTransformer

# GPT-2 124M, recall in percent at 1, 2 and 5 % (Chang et al. 2024).
PUBLISHED = {
    "hard_concrete": (49.5, 70.2, 87.4),
    "slimming": (48.1, 66.7, 80.7),
    "zero_out": (24.9, 37.5, 53.8),
    "integrated": (20.5, 32.1, 49.9),
    "activations": (3.0, 5.2, 13.3),
    "random": (1.0, 2.0, 5.0),
}


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws paragraphs and neurons.
        targets: number of injected paragraphs, and of deleted ones.
        others: memorized paragraphs that a deletion should not affect, and as many paragraphs of other text.
        keep: paragraphs given to contrastive methods.
        methods: the methods compared.
        out: folder of the results and the figure.
        page: the table, or None.
    """

    seed: Seed = 0
    targets: Count = 6
    others: Count = 24
    keep: Count = 8
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


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval over targets."""
    if np.ptp(values) == 0:
        return float(values.mean()), float(values.mean()), float(values.mean())
    found: Any = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0), n_resamples=2000)
    return float(values.mean()), float(found.confidence_interval.low), float(found.confidence_interval.high)


def said(values: xr.DataArray, digits: int = 2, factor: float = 1.0) -> str:
    """A mean and its interval, as a table cell."""
    mean, low, high = interval(factor * values.values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def injection_table(board: xr.Dataset) -> list[str]:
    """Recall, beside the published values."""
    head = [f"recall at {100 * at:.0f} %, %" for at in board["fraction"].values]
    lines = ["| method | " + " | ".join(head) + " | area, % | seconds | published recall |", "|---|" + "---|" * 6]
    for method in board.method.values:
        row = board.sel({"method": method})
        recalls = [said(row.recall.sel(fraction=at), 1, 100) for at in board["fraction"].values]
        published = " / ".join(f"{value:.1f}" for value in PUBLISHED.get(str(method), ())) or "–"
        cells = [*recalls, said(row.auprc, 1, 100), f"{float(row.seconds.median()):.1f}", published]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def deletion_table(board: xr.Dataset) -> list[str]:
    """The cost of dropping neurons: for the target, other memories and other text."""
    lines = [
        "| method | dropped | target's accuracy | other memories' accuracy | target's edit distance | perplexity |",
        "|---|" + "---|" * 5,
    ]
    for method in board.method.values:
        for share in board.dropped.values:
            row = board.sel({"method": method, "dropped": share})
            cells = [said(row[name]) for name in ("target_accuracy", "other_accuracy")]
            cells += [said(row.target_edit_distance, 1), said(row.perplexity)]
            lines.append(f"| {method} | {100 * share:.1f} % | " + " | ".join(cells) + " |")
    return lines


def draw(injected: xr.Dataset, deleted: xr.Dataset) -> list[go.Figure]:
    """Recall by method; accuracy lost on the target against accuracy lost on other memories."""
    names = [str(name) for name in injected.method.values]
    recalls = go.Figure()
    for at in injected["fraction"].values:
        found = [interval(100 * injected.recall.sel({"method": name, "fraction": at}).values) for name in names]
        mean, low, high = np.array(found).T
        error = {"type": "data", "symmetric": False, "array": high - mean, "arrayminus": mean - low, "thickness": 1}
        recalls.add_bar(x=names, y=mean, error_y=error, name=f"top {100 * at:.0f} %")
    recalls.update_layout(barmode="group", title="Recall of the injected neurons (higher is better)", height=460)
    recalls.update_yaxes(title="recall, %")
    lost = go.Figure()
    for share in deleted.dropped.values:
        at = deleted.sel(dropped=share).mean("target")
        lost.add_scatter(
            x=at.other_accuracy, y=at.target_accuracy, text=names, mode="markers+text", name=f"{100 * share:.1f} %",
            textposition="top center",
        )  # fmt: skip
    lost.update_layout(title="Accuracy lost by dropping neurons (best: bottom right)", height=460)
    lost.update_xaxes(title="other memories, percentage points")
    lost.update_yaxes(title="target, percentage points")
    return [recalls, lost]


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
    count, others, rest = settings.targets, settings.others, settings.targets + settings.keep
    injected = injection_board(model, unseen[:count], unseen[count:rest], methods=settings.methods, seed=settings.seed)
    deleted = deletion_board(
        model,
        known[:count],
        known[count : count + others],
        # Perplexity is measured on text that no method was given.
        unseen[rest : rest + others],
        methods=settings.methods,
        seed=settings.seed,
    )
    result = injected.merge(deleted.drop_vars("seconds"), combine_attrs="drop")
    save(result, [], settings)  # before drawing, so that a failed figure does not lose the measurements
    figures = draw(injected, deleted)
    save(result, figures, settings)
    if settings.page is not None:
        for figure, name in zip(figures, ("recall", "deletion"), strict=True):
            photograph(
                figure.update_layout(margin={"t": 60, "r": 20}), settings.page.with_name(f"scoreboard-{name}.png")
            )
    write(settings, injected, deleted, shipped.continuation_len)
    return result


def write(settings: Settings, injected: xr.Dataset, deleted: xr.Dataset, length: int) -> None:
    """The page of docs.

    Args:
        settings: of the run.
        injected: the board of INJ.
        deleted: the board of DEL.
        length: of a continuation.
    """
    fixed = {name: value for name, value in asdict(settings).items() if name in ("seed", "targets", "others", "keep")}
    lines = [
        "# Localizer scoreboard",
        "",
        f"{stamp('scoreboard')}, {fixed}. Values are means over targets with 95 % bootstrap intervals.",
        "",
        "## INJ: inject a paragraph into a random 1 % of the neurons",
        "",
        f"EM after injection: {float(injected.em.mean()):.1f} of {length}. The last column has the recall published "
        "for GPT-2 124M at 1, 2 and 5 % (Chang et al. 2024). A random order has an area under the precision-recall "
        "curve of 1 %.",
        "",
        *injection_table(injected),
        "",
        "![Recall by method](scoreboard-recall.png)",
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
