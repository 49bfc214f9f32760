"""Numbers and names as the report writes them."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from mechmem.data.ranking import largest


def head_name(layer: int, head: int) -> str:
    """`L1H2`: layer 1, head 2, both counted from zero."""
    return f"L{layer}H{head}"


def plural(number: int, noun: str) -> str:
    """`1 paragraph`, `1,204 paragraphs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(share: float) -> str:
    """A share of one as percent: `3.3 %`; small ones keep a digit that says something."""
    value = 100 * share
    return f"{value:.1f} %" if value == 0 or abs(value) >= 0.1 else f"{value:.2g} %"


def signed(value: float, digits: int = 1) -> str:
    """`+0.3`, `−12.0`, with a true minus sign; what rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def best_heads(values: xr.DataArray, top: int) -> list[tuple[str, float]]:
    """Names and values of the heads with the largest values of [layer, head], largest first."""
    grid = values.transpose("layer", "head")
    order = largest(grid.values, top)
    names = []
    for place in order:
        row, column = np.unravel_index(place, grid.shape)
        names.append((head_name(int(grid.layer[row]), int(grid["head"][column])), float(grid.values[row, column])))
    return names
