"""The table of how many copies make a memory, and how that changes with the models' size and text."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from ladder_law import Estimate, groups_of, half_extractable, half_nll, joint_law, said_copies, stacked
from ladder_measure import steps_of
from ladder_rungs import snapshot_folder
from ladder_tables import Measured, final, head, row, said
from safetensors import safe_open

from mechmem.data.own_files import read_json
from mechmem.stats.ranges import SHARE


def sizes_of(folder: Path) -> tuple[int, int]:
    """Parameters of a rung's model, and tokens that it was trained on."""
    path = snapshot_folder(folder, steps_of(folder)[-1]) / "model.safetensors"
    with safe_open(path, "pt") as file:
        # The unembedding is the embedding.
        shapes = [file.get_slice(name).get_shape() for name in file.keys() if name != "lm_head.weight"]  # noqa: SIM118
    tokens = read_json(folder / "training.json", {"tokens_seen": int})["tokens_seen"]
    return sum(int(np.prod(shape)) for shape in shapes), int(tokens)


def finished(results: Measured, names: Sequence[str]) -> dict[str, xr.Dataset]:
    """What was measured of these finished models, about documents spread over training."""
    return {name: final(results[name]) for name in names}


def needed(results: Measured) -> dict[str, tuple[Estimate, Estimate, int]]:
    """Shape and text -> log2 of the copies for half extractable and for half the NLL, and the most copies."""
    found = {}
    for group, names in groups_of(list(results)).items():
        last = finished(results, names)
        copies, clusters = last[names[0]].copies.values, last[names[0]].cluster.values
        trained = copies > 0
        whole = half_extractable(copies[trained], stacked(last, names, "whole")[trained], clusters[trained])
        found[group] = whole, half_nll(copies, stacked(last, names, "nll"), clusters), int(copies.max())
    return found


def law(results: Measured, folders: Mapping[str, Path]) -> list[str]:
    """How many copies make half of the documents extractable, and take half of the NLL."""
    lines = head(
        ["models", "seeds", "parameters", "tokens", "share at the most copies", "copies for half", "for half the NLL"]
    )
    groups = groups_of(list(results))
    for group, (whole, nll, most) in needed(results).items():
        last = finished(results, groups[group])
        first = last[groups[group][0]]
        share = stacked(last, groups[group], "whole")[first.copies.values == most].mean(1)
        # Of one model truth values, whose interval stays within 0 and 1.
        share = share.astype(bool) if len(groups[group]) == 1 else share
        clusters = first.cluster.values[first.copies.values == most]
        size, tokens = sizes_of(folders[groups[group][0]])
        cells = [str(len(groups[group])), f"{size:,}", f"{tokens:,}"]
        cells.append(f"{said(share, clusters, within=SHARE)} at {most}")
        lines.append(row([group, *cells, said_copies(whole, most), said_copies(nll, most)]))
    return lines


def exchange(results: Measured, folders: Mapping[str, Path]) -> dict[str, Estimate]:
    """By what factor twice the parameters, or the tokens, change the copies needed; empty for models of one size."""
    names = list(results)
    last = finished(results, names)
    copies, clusters = last[names[0]].copies.values, last[names[0]].cluster.values
    trained, sizes = copies > 0, np.array([sizes_of(folders[name]) for name in names])
    whole = stacked(last, names, "whole")[trained]
    return joint_law(copies[trained], whole, sizes[:, 0], sizes[:, 1], clusters[trained]) if whole.any() else {}
