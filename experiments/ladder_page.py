"""Write the ladder's page from what was measured on the rungs that are there.

    python experiments/ladder_page.py                 # docs/ladder.md and its figure
    python experiments/ladder_page.py --page None     # only print it

Rungs that are missing are named at the top of the page.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import ladder_tables as tables
import numpy as np
import plotly.graph_objects as go
from inputs import start
from ladder_measure import measured, steps_of, trained_rungs
from ladder_rungs import Settings as LadderSettings
from ladder_rungs import rungs
from ladder_transplant_table import transplants
from outputs import photograph, stamp, write_page

import mechmem as mm
from mechmem.data.bounds import check_fields
from mechmem.data.errors import InputError
from mechmem.data.netcdf import load_netcdf

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
        points = []
        for value in copies:
            here = last.isel(paragraph=np.flatnonzero(last.copies.values == value))
            points.append((here.em.values.mean(), *mm.cluster_bootstrap(here.em.values, here.cluster.values)))
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


def page_lines(folders: dict[str, Path]) -> list[str]:
    """The page."""
    results = {name: measured(folder) for name, folder in folders.items()}
    missing = [name for name in rungs(LadderSettings()) if name not in folders]
    there = f"{len(folders)} of {len(folders) + len(missing)} models are trained and measured"
    absent = f"; missing: {', '.join(missing)}." if missing else "."
    sections = {
        "EM against copies": tables.by_copies(results, "em", 1),
        "Share with the whole continuation": tables.by_copies(results, "whole", 2),
        "NLL, nats per token": tables.by_copies(results, "nll", 2),
        "Chance that sampling says the continuation": tables.by_copies(results, "p_extractable", 6),
        "What a doubling changes": tables.laws(results),
        f"NLL of documents with {tables.OFTEN} copies while training": tables.conditions(results),
        "Dilution: three times the text around the same copies": tables.dilution(results),
        "What seeds share": tables.seeds_share(results),
        "Near-duplicates": tables.near_duplicates(results),
        "Depth of the memory while training": tables.depths(folders),
        "Agreement of models about where it sits": tables.agreements(folders),
        "Attention to rare tokens": tables.rare_token_heads(folders),
        "Parts transplanted into the snapshot from before a text was read": transplants(
            {name: load_netcdf(folder / "transplant.nc") for name, folder in folders.items() if transplanted(folder)}
        ),
        "Cost": cost_line(folders),
    }
    lines = [
        "# The ladder: memories planted by the number of copies",
        "",
        "Models of three sizes were trained on text whose inserted documents were assigned their number of copies at",
        "random within each kind: `python experiments/ladder.py`. Cells are means with 95 % intervals by cluster, of",
        "documents spread over training, after a prefix of 50 tokens, unless a heading says otherwise.",
        "",
        f"{there}{absent} {stamp('ladder_page')}.",
        "",
        "![EM against copies](ladder.png)",
    ]
    for title, section in sections.items():
        empty = len(section) <= 2
        lines += ["", f"## {title}", "", *(["No pair of models for this yet."] if empty else section)]
    return lines


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
