"""Write the ladder's page from what was measured on the rungs that are there.

    python experiments/ladder_page.py                 # docs/ladder.md and its figure
    python experiments/ladder_page.py --page None     # only print it

Rungs that are missing are named at the top of the page.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import ladder_tables as tables
import ladder_where_tables as places
import numpy as np
import plotly.graph_objects as go
from inputs import start
from ladder_findings import findings
from ladder_law_table import law
from ladder_measure import measured, steps_of, trained_rungs
from ladder_rungs import Settings as LadderSettings
from ladder_rungs import rungs
from ladder_transplant_table import transplants
from ladder_unlearning_table import claims, differences, table, unlearned
from outputs import photograph, stamp, write_page

import mechmem as mm
from mechmem.data.bounds import check_fields
from mechmem.data.errors import InputError
from mechmem.data.netcdf import load_netcdf
from mechmem.stats.ranges import token_range

TITLE = "# The ladder: memories planted by the number of copies"
LAW = "How many copies make a memory"
FORGETTING = "What early documents lose"
SEEDS = "What seeds share"
PLACES = "Depth of the memory while training"
AGREEMENT = "Agreement of models about where it sits"
UNLEARNING = "Unlearning late documents"
COLOURS = {"1M": "#56B4E9", "3M": "#0072B2", "6M": "#D55E00"}


@dataclass(frozen=True)
class Settings:
    """Where the results are and where the page goes.

    Attributes:
        work: folder of the rungs.
        page: of docs, or None; the figure goes beside it.
    """

    work: Path = Path("runs/ladder")
    page: Path | None = Path("docs/ladder.md")

    def __post_init__(self) -> None:
        check_fields(self)


def folders_measured(work: Path) -> dict[str, Path]:
    """Rungs of which every snapshot was measured, in the order in which they are trained.

    Raises:
        InputError: there is none.
    """
    folders = {folder.name: folder for folder in trained_rungs(work)}
    known = [name for name in rungs(LadderSettings()) if name in folders]
    whole = {
        name: folders[name]
        for name in known
        if all((folders[name] / "measured" / f"step{step:06d}.nc").exists() for step in steps_of(folders[name]))
    }
    if not whole:
        raise InputError(f"got no measured rung in {work}; need at least 1: python experiments/ladder_measure.py first")
    return whole


def draw(results: tables.Measured) -> go.Figure:
    """EM against log2 of the copies, a line for each model, with intervals by cluster."""
    figure = go.Figure()
    for name, result in results.items():
        last = tables.final(result)
        copies = [value for value in np.unique(last.copies.values) if value > 0]
        points, within = [], token_range(tables.LENGTH)
        for value in copies:
            here = last.isel(paragraph=np.flatnonzero(last.copies.values == value))
            points.append(
                (here.em.values.mean(), *mm.cluster_bootstrap(here.em.values, here.cluster.values, within=within))
            )
        middle, low, high = np.array(points).T
        bars = {"type": "data", "symmetric": False, "thickness": 1, "array": high - middle, "arrayminus": middle - low}
        line = {"color": COLOURS[name.split("-")[0]], "dash": "dot" if "-large-" in name else "solid"}
        figure.add_scatter(x=copies, y=middle, name=name, mode="lines+markers", line=line, error_y=bars)
    figure.update_xaxes(type="log", title="copies in the training text", tickvals=[2**power for power in range(9)])
    figure.update_yaxes(title="EM of 50 tokens", range=[0, 50])
    return figure.update_layout(template="simple_white", width=900, height=480, margin={"t": 30, "r": 20})


def transplanted(folder: Path) -> bool:
    """Whether the rung's transplants were measured."""
    return (folder / "transplant.nc").exists()


def cost_line(folders: dict[str, Path]) -> list[str]:
    """What each model's training took."""
    lines = tables.head(["model", "tokens", "steps", "final loss", "minutes"])
    for name, folder in folders.items():
        record = json.loads((folder / "training.json").read_text())
        cells = [f"{record['tokens_seen']:,}", str(record["steps"]), f"{record['curve'][-1][1]:.2f}"]
        lines.append(tables.row([name, *cells, f"{record['seconds'] / 60:.0f}"]))
    return lines


# Heading -> what stands under it before the table.
NOTES = {
    LAW: (
        "Extractable: greedy decoding from 50 tokens gives the whole continuation. The chance is fitted by logistic "
        "regression on log2 of the copies with Firth's penalty, over all seeds. The NLL that is halved is that of "
        "documents never inserted. A number above the most copies that were inserted was not reached."
    ),
    FORGETTING: (
        f"Documents with {tables.OFTEN} copies in the first quarter of training: change of their NLL from its end to "
        "the end of training, beside that of documents never inserted. What copies brought: the difference of both."
    ),
    SEEDS: (
        f"Documents with {tables.OFTEN} copies or more. By chance: the share of all if each seed said its own at "
        "random among documents with the same copies. The correlation is that of NLL less the mean of its copies."
    ),
    PLACES: (
        "Centre of mass of the effects by layer: 0 is the first layer, 1 the last. Patching, attribution and ablation "
        "are of heads, in NLL; activation gradients are the largest of the NLL with respect to a head's values."
    ),
    AGREEMENT: (
        "Means over pairs of finished models that differ in nothing else, with intervals over documents. Heads of two "
        "models have no common order, so layers are compared, by relative depth; few layers make a rank correlation of "
        "layers a rough number."
    ),
    UNLEARNING: (
        "Targets are late documents, and the oracle is the snapshot from before them. Rows end when the targets' mean "
        "NLL is that of documents never inserted. A distance is KL(edited ‖ oracle) divided by KL(finished model ‖ "
        "oracle) on documents never inserted: at 1, the edited model is as far from the oracle as a quarter of "
        "training takes it on any text. Other memories: documents inserted often that no row is given."
    ),
}


def page_lines(folders: dict[str, Path]) -> list[str]:
    """The page."""
    results = {name: measured(folder) for name, folder in folders.items()}
    found = places.all_located(folders)
    moved = {name: load_netcdf(folder / "transplant.nc") for name, folder in folders.items() if transplanted(folder)}
    edited = {name: rows for name, folder in folders.items() if (rows := unlearned(folder))}
    sentences = findings(results, folders, found, moved, claims(edited))
    sections = {
        LAW: law(results, folders),
        "EM against copies": tables.by_copies(results, "em", 1),
        "Share with the whole continuation": tables.by_copies(results, "whole", 2),
        "NLL, nats per token": tables.by_copies(results, "nll", 2),
        "Chance that sampling says the continuation": tables.by_copies(results, "p_extractable", 1),
        "What a doubling changes": tables.laws(results),
        f"EM of documents with {tables.OFTEN} copies or more, by tokens of the prefix": tables.by_prefix(results),
        f"NLL of documents with {tables.OFTEN} copies while training": tables.conditions(results),
        FORGETTING: tables.forgetting(results),
        "Dilution: more text around the same copies": tables.dilution(results),
        SEEDS: tables.seeds_share(results),
        f"Which kinds are remembered, {tables.OFTEN} copies or more": tables.kinds(results),
        "Near-duplicates": tables.near_duplicates(results),
        PLACES: places.depths(found, folders),
        "Rank agreement of methods with exact patching": places.methods_agree(found),
        "Parameter gradients and neurons by layer": places.layer_gradients(found),
        AGREEMENT: places.agreements(found),
        "Attention to rare tokens": places.rare_token_heads(found),
        "Parts transplanted into the snapshot from before a text was read": transplants(moved),
        UNLEARNING: [*table(edited), "", *differences(edited)] if edited else [],
        "Cost": cost_line(folders),
    }
    lines = [TITLE, "", *(f"- {sentence}" for sentence in sentences), "", *about(folders)]
    for title, section in sections.items():
        note = [NOTES[title], ""] if title in NOTES else []
        empty = len(section) <= 2
        lines += ["", f"## {title}", "", *(["No models for this yet."] if empty else [*note, *section])]
    return lines


def about(folders: dict[str, Path]) -> list[str]:
    """What the page is about, which models are there, and its figure."""
    missing = [name for name in rungs(LadderSettings()) if name not in folders]
    there = f"{len(folders)} of {len(folders) + len(missing)} models are trained and measured"
    absent = f"; missing: {', '.join(missing)}." if missing else "."
    return [
        "Models of three sizes were trained on text whose inserted documents were assigned their number of copies at",
        "random within each kind: `python experiments/ladder.py`. Cells are means with 95 % intervals by cluster, of",
        "documents spread over training, after a prefix of 50 tokens, unless a heading says otherwise.",
        "",
        f"{there}{absent} {stamp('ladder_page')}.",
        "",
        "![EM against copies](ladder.png)",
    ]


def main(settings: Settings) -> None:
    """Write the page and its figure.

    Args:
        settings: where.
    """
    folders = folders_measured(settings.work)
    if settings.page is not None:
        photograph(
            draw({name: measured(folder) for name, folder in folders.items()}), settings.page.with_suffix(".png")
        )
    write_page(settings.page, page_lines(folders))


if __name__ == "__main__":
    start(main, Settings, __doc__)
