"""Tables of the ladder's page: each is made of the rungs that are there, and holds intervals by cluster."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr
from ladder_agreement import document_agreement, shared_profile
from ladder_corpus import BASE, CONDITIONS, NEAR_DUPLICATE
from ladder_measure import steps_of
from ladder_where import centre_interval, centre_of_mass, layer_profile, located

import mechmem as mm
from mechmem.measure.scaling_curves import slope_terms

# Copies from which on a document is called inserted often.
OFTEN = 64
Measured = Mapping[str, xr.Dataset]


def chosen(result: xr.Dataset, **columns: str) -> xr.Dataset:
    """Rows with these values in their columns; the documents themselves, spread over training, unless said."""
    wanted = {"text_of": BASE, "condition": "spread"} | columns
    keep = np.all([result[name].values == value for name, value in wanted.items()], axis=0)
    return result.isel(paragraph=np.flatnonzero(keep))


def said(values: np.ndarray, clusters: np.ndarray, digits: int = 2) -> str:
    """A mean and its interval by cluster; a dash where there is nothing."""
    if not len(values):
        return "–"
    low, high = mm.cluster_bootstrap(values, clusters)
    return f"{np.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def row(cells: list[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def head(cells: list[str]) -> list[str]:
    """The first two lines of a table."""
    return [row(cells), row(["---"] * len(cells))]


def by_copies(results: Measured, measure: str, digits: int) -> list[str]:
    """One measure of finished models against copies, a column for each rung; prefix 50.

    Args:
        results: rung -> what was measured.
        measure: "whole" (share with the whole continuation), em, nll or p_extractable.
        digits: of the numbers.
    """
    lines, last = head(["copies", *results]), {name: final(result) for name, result in results.items()}
    for copies in np.unique(np.concatenate([result.copies.values for result in last.values()])):
        cells = []
        for result in last.values():
            here = result.isel(paragraph=np.flatnonzero(result.copies.values == copies))
            cells.append(said(values_of(here, measure), here.cluster.values, digits))
        lines.append(row([str(copies), *cells]))
    return lines


def final(result: xr.Dataset, prefix_len: int = 50) -> xr.Dataset:
    """The finished model's rows about documents that were spread over training."""
    return chosen(result).isel(step=-1).sel(prefix_len=prefix_len)


def values_of(result: xr.Dataset, measure: str) -> np.ndarray:
    """A measure of each paragraph; "whole" says whether EM is the whole continuation."""
    return result.em.values == 50 if measure == "whole" else result[measure].values


def laws(results: Measured) -> list[str]:
    """What a doubling of the copies, and of the prefix, changes."""
    lines = head(["model", "EM per doubling of copies", "NLL per doubling of copies", "EM per doubling of the prefix"])
    for name, result in results.items():
        last = final(result)
        trained = last.isel(paragraph=np.flatnonzero(last.copies.values > 0))
        doublings = np.log2(trained.copies.values)
        cells = [
            said(slope_terms(doublings, values_of(trained, measure)), trained.cluster.values, 2)
            for measure in ("em", "nll")
        ]
        often = chosen(result).isel(step=-1)
        often = often.isel(paragraph=np.flatnonzero(often.copies.values >= OFTEN))
        lengths = np.log2(often.prefix_len.values)
        centred = lengths - lengths.mean()
        slopes = often.em.transpose("paragraph", "prefix_len").values @ centred / (centred**2).sum()
        lines.append(row([name, *cells, said(slopes, often.cluster.values)]))
    return lines


def conditions(results: Measured) -> list[str]:
    """NLL against the share of training, by condition: what early copies leave, what late ones bring."""
    lines = []
    for name, result in results.items():
        shares = result.step.values / result.step.values[-1]
        lines += [f"**{name}**", "", *head(["condition", *(f"{share:.0%}" for share in shares)])]
        for condition in CONDITIONS:
            here = chosen(result, condition=condition).sel(prefix_len=50)
            here = here.isel(paragraph=np.flatnonzero(here.copies.values == OFTEN))
            cells = [said(here.nll.isel(step=step).values, here.cluster.values) for step in range(len(shares))]
            lines.append(row([condition, *cells]))
        lines.append("")
    return lines


def dilution(results: Measured) -> list[str]:
    """What three times the text costs: the longer text's value minus the shorter one's, same document and shape."""
    lines = head(["models", "copies", "EM", "NLL"])
    for name in results:
        other = name.replace("-small-", "-large-")
        if other == name or other not in results:
            continue
        short, long = final(results[name]), final(results[other])
        for low in (1, 8, OFTEN):
            rows = np.flatnonzero(
                (short.copies.values >= low) & (short.copies.values < (low * 8 if low < OFTEN else 1e9))
            )
            changes = [
                said(values_of(long, measure)[rows] - values_of(short, measure)[rows], short.cluster.values[rows])
                for measure in ("em", "nll")
            ]
            lines.append(row([f"{other} − {name}", f"{low} to {short.copies.values[rows].max()}", *changes]))
    return lines


def seeds_share(results: Measured) -> list[str]:
    """Of the documents inserted often, how many all seeds say whole, some, and none; and how far their NLL agrees."""
    lines = head(["models", "all seeds", "some", "none", "rank correlation of NLL"])
    for name in results:
        if not name.endswith("seed0"):
            continue
        group = [final(results[other]) for other in results if other.startswith(name.removesuffix("0"))]
        if len(group) < 2:
            continue
        rows = np.flatnonzero(group[0].copies.values >= OFTEN)
        whole = np.stack([values_of(each, "whole")[rows] for each in group])
        counts = [whole.all(0).sum(), (whole.any(0) & ~whole.all(0)).sum(), (~whole.any(0)).sum()]
        value, low, high = document_agreement(
            group[0].nll.values[rows], group[1].nll.values[rows], group[0].cluster.values[rows]
        )
        lines.append(row([name.removesuffix("-seed0"), *map(str, counts), f"{value:.2f} [{low:.2f}, {high:.2f}]"]))
    return lines


def near_duplicates(results: Measured) -> list[str]:
    """EM after the document's own prefix and after one with other tokens in its slots, inserted often."""
    lines = head(["model", "condition", "own prefix", "other slots", "difference"])
    for name, result in results.items():
        last = result.isel(step=-1).sel(prefix_len=50)
        for condition in ("spread", "changed slots"):
            pair = []
            for text_of in (BASE, NEAR_DUPLICATE):
                here = chosen(last, condition=condition, text_of=text_of)
                pair.append(here.isel(paragraph=np.flatnonzero(here.copies.values >= OFTEN)))
            base, other = (each.em.values for each in pair)
            clusters = pair[0].cluster.values
            cells = [said(values, clusters, 1) for values in (base, other, other - base)]
            lines.append(row([name, condition, *cells]))
    return lines


def depths(folders: Mapping[str, Path], method: str = "patching") -> list[str]:
    """Centre of mass of a method's layer profile against the share of training, 0 first layer and 1 last."""
    lines = []
    for name, folder in folders.items():
        found = located(folder)
        if not found:
            continue
        end = steps_of(folder)[-1]
        lines += head(["model", *(f"{step / end:.0%}" for step, _ in found)]) if not lines else []
        cells = []
        for _, result in found:
            profile = layer_profile(result[method]).transpose("paragraph", "layer").values
            centre, low, high = centre_interval(profile, np.arange(len(profile)))
            cells.append(f"{centre:.2f} [{low:.2f}, {high:.2f}]")
        lines.append(row([name, *cells]))
    return lines


def agreements(folders: Mapping[str, Path], method: str = "patching") -> list[str]:
    """Each pair of finished models: part of the layer profile that they share, and agreement on documents' depth."""
    lines = head(["models", "profile shared", "rank correlation of documents' depth"])
    found = {name: located(folder) for name, folder in folders.items()}
    profiles = {
        name: layer_profile(each[-1][1][method]).transpose("paragraph", "layer").values
        for name, each in found.items()
        if each
    }
    names = list(profiles)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            some, others = profiles[name], profiles[other]
            depth = centre_of_mass(some + 1e-12), centre_of_mass(others + 1e-12)
            value, low, high = document_agreement(*depth, np.arange(len(some)))
            lines.append(
                row([f"{name}, {other}", f"{shared_profile(some, others):.2f}", f"{value:.2f} [{low:.2f}, {high:.2f}]"])
            )
    return lines


def rare_token_heads(folders: Mapping[str, Path]) -> list[str]:
    """The head with the largest excess of attention to rare tokens in the finished model, and since when."""
    lines = head(["model", "head", "excess", "p", "at each snapshot, excess of the largest head (p)"])
    for name, folder in folders.items():
        found = located(folder)
        if not found:
            continue
        cells = []
        for _, result in found:
            layer, number = np.unravel_index(int(result.rare_excess.values.argmax()), result.rare_excess.shape)
            cell = result.isel(layer=layer, head=number)
            cells.append((f"L{layer}H{number}", float(cell.rare_excess), float(cell.rare_p_value)))
        course = ", ".join(f"{head_name} {excess:.3f} ({p:.3f})" for head_name, excess, p in cells)
        lines.append(row([name, cells[-1][0], f"{cells[-1][1]:.3f}", f"{cells[-1][2]:.3f}", course]))
    return lines
