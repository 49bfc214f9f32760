"""Tables of the ladder's page about where memories sit, and whether other seeds, sizes and methods agree."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import xarray as xr
from ladder_agreement import depth_correlation, head_correlation, layer_correlation, over_rows, shared_profile
from ladder_measure import steps_of
from ladder_tables import head, row
from ladder_where import centre_interval, layer_profile, located

# Of [paragraph, layer, head]; what each says is in `ladder_where.head_effects`.
METHODS = ("patching", "attribution", "ablation", "activation_gradients")
DRAWS = 500
RELATIONS = ("seed", "text", "size")
Located = Mapping[str, list[tuple[int, xr.Dataset]]]


def all_located(folders: Mapping[str, Path]) -> Located:
    """Model -> step and result of each snapshot that was localized; models without any are left out."""
    found = {name: located(folder) for name, folder in folders.items()}
    return {name: each for name, each in found.items() if each}


def profile_of(result: xr.Dataset, method: str) -> np.ndarray:
    """A method's effects by layer, [paragraph, layer]."""
    return layer_profile(result[method]).transpose("paragraph", "layer").values


def depths(found: Located, folders: Mapping[str, Path]) -> list[str]:
    """Centre of mass of a method's layer profile against the share of training, 0 first layer and 1 last."""
    known = {
        name: {f"{step / steps_of(folders[name])[-1]:.0%}": result for step, result in snapshots}
        for name, snapshots in found.items()
    }
    shares = sorted({share for each in known.values() for share in each}, key=lambda share: float(share[:-1]))
    lines = head(["model", "method", *shares, "last minus first"])
    for name, snapshots in known.items():
        for method in METHODS:
            profiles = {share: profile_of(result, method) for share, result in snapshots.items()}
            cells = [_cell(_centre(profiles[share])) if share in profiles else "–" for share in shares]
            first, last = (list(profiles.values())[place] for place in (0, -1))
            cells.append("{:+.2f} [{:+.2f}, {:+.2f}]".format(*moved(first, last)))
            lines.append(row([name, method, *cells]))
    return lines


def _centre(profile: np.ndarray) -> tuple[float, float, float]:
    return centre_interval(profile, np.arange(len(profile)))


def moved(first: np.ndarray, last: np.ndarray) -> tuple[float, float, float]:
    """How much deeper the centre of mass of the second of two profiles [paragraph, layer] is, and its interval."""

    def change(rows: np.ndarray) -> float:
        depth = np.linspace(0, 1, first.shape[1])
        ends = [profile[rows].mean(0) for profile in (first, last)]
        before, after = (float(mean @ depth / mean.sum()) for mean in ends)
        return after - before

    return over_rows(change, np.arange(len(first)), DRAWS)


def layer_gradients(found: Located) -> list[str]:
    """By layer of the finished models: shares of the parameter gradients and of the neurons depended on most.

    A whole model gives one number for a layer: there is nothing to resample.
    """
    lines = head(["model", "parameter gradients, layer 0 to last", "neurons, layer 0 to last"])
    for name, snapshots in found.items():
        result = snapshots[-1][1]
        cells = [
            ", ".join(f"{value:.2f}" for value in result[key].values) for key in ("parameter_gradients", "neurons")
        ]
        lines.append(row([name, *cells]))
    return lines


def methods_agree(found: Located) -> list[str]:
    """Rank correlation over heads of each method with exact patching, and of layers, in the finished models."""
    others = METHODS[1:]
    lines = head(["model", *(f"{method}, heads" for method in others), *(f"{method}, layers" for method in others)])
    for name, snapshots in found.items():
        result = snapshots[-1][1]
        effects = {method: result[method].transpose("paragraph", "layer", "head").values for method in METHODS}
        clusters = np.arange(result.sizes["paragraph"])
        cells = []
        for agreement in (head_correlation, layer_correlation):
            for method in others:
                pair = effects["patching"], effects[method]
                cells.append(_cell(over_rows(lambda rows, p=pair, f=agreement: f(*p, rows), clusters, DRAWS)))
        lines.append(row([name, *cells]))
    return lines


def _cell(estimate: tuple[float, float, float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*estimate)


def pairs_by_relation(names: list[str]) -> dict[str, list[tuple[str, str]]]:
    """What two models differ in -> pairs that differ in nothing else."""
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in RELATIONS}
    for one, other in combinations(names, 2):
        shape, text, seed = (a != b for a, b in zip(one.split("-"), other.split("-"), strict=True))
        if shape + text + seed == 1:
            found[RELATIONS[0] if seed else RELATIONS[1] if text else RELATIONS[2]].append((one, other))
    return {relation: pairs for relation, pairs in found.items() if pairs}


def agreement_with(
    found: Located, pairs: list[tuple[str, str]], method: str, measure: str
) -> tuple[float, float, float]:
    """The mean over pairs of finished models of their agreement, and its interval over documents.

    Args:
        found: of `all_located`.
        pairs: of models.
        method: one of `METHODS`.
        measure: "profile", the part of the layer profile that is shared; "layers", the rank correlation of layers by
            relative depth; "documents", the rank correlation of documents' depth.
    """
    names = {name for pair in pairs for name in pair}
    profiles = {name: profile_of(found[name][-1][1], method) for name in names}
    measures = {"profile": shared_profile, "layers": layer_correlation, "documents": depth_correlation}

    def mean(rows: np.ndarray) -> float:
        drawn = {name: profile[rows] for name, profile in profiles.items()}
        return float(np.mean([measures[measure](drawn[one], drawn[other]) for one, other in pairs]))

    return over_rows(mean, np.arange(len(next(iter(profiles.values())))), DRAWS)


def agreements(found: Located) -> list[str]:
    """By what two models differ in, and by method: means over pairs of models that differ in nothing else."""
    lines = head(
        ["differ in", "pairs", "method", "profile shared", "rank correlation of layers", "of documents' depth"]
    )
    for relation, pairs in pairs_by_relation(list(found)).items():
        for method in METHODS:
            cells = [
                _cell(agreement_with(found, pairs, method, measure)) for measure in ("profile", "layers", "documents")
            ]
            lines.append(row([relation, str(len(pairs)), method, *cells]))
    return lines


def rare_token_heads(found: Located) -> list[str]:
    """The head with the largest excess of attention to rare tokens at each snapshot, with the test's p."""
    lines = head(["model", "head", "excess", "p", "at each snapshot, excess of the largest head (p)"])
    for name, snapshots in found.items():
        cells = [rarest(result) for _, result in snapshots]
        course = ", ".join(f"{head_name} {excess:.3f} ({p:.3f})" for head_name, excess, p in cells)
        lines.append(row([name, cells[-1][0], f"{cells[-1][1]:.3f}", f"{cells[-1][2]:.3f}", course]))
    return lines


def rarest(result: xr.Dataset) -> tuple[str, float, float]:
    """Name, excess and p of the head with the largest excess of attention to rare tokens."""
    layer, number = np.unravel_index(int(result.rare_excess.values.argmax()), result.rare_excess.shape)
    cell = result.isel(layer=layer, head=number)
    return f"L{layer}H{number}", float(cell.rare_excess), float(cell.rare_p_value)
