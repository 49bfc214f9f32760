"""The colours of a heatmap's cells on paper; the page's script makes the same for its theme."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from mechmem.show.colour_scale import BLUE, ORANGE, PAPER
from mechmem.show.maps.heatmap import Heatmap
from mechmem.show.packed_numbers import four_digits

MISSING = (222, 224, 228)
# Of a logarithm's range: the least value must not look like none.
FAINTEST = 0.07


def shades(heatmap: Heatmap) -> Float[np.ndarray, "row column"]:
    """How strong the colour of each cell is, -1 (orange) to 1 (blue); 0 is the page's colour, NaN: nothing measured."""
    values = four_digits(heatmap.values).astype(float)
    least, most = heatmap.ends()
    if heatmap.kind == "diverging":
        shade = values / most
    elif heatmap.kind == "root":
        shade = np.sqrt(np.clip(values, 0, None) / most)
    elif heatmap.kind == "log":
        positive = np.where(values > 0, values, np.nan)
        part = np.log(positive / least) / np.log(most / least) if least > 0 else positive * 0
        shade = np.where(
            values > 0, FAINTEST + (1 - FAINTEST) * np.clip(part, 0, 1), np.where(values == 0, 0.0, np.nan)
        )
    else:
        shade = np.clip((values - least) / (most - least), 0, 1)
    return np.clip(shade, -1, 1)


def cell_pixels(heatmap: Heatmap) -> UInt8[np.ndarray, "row column 3"]:
    """A pixel for each cell."""
    shade = shades(heatmap)[..., None]
    size = np.abs(np.nan_to_num(shade))
    coloured = PAPER + (np.where(shade < 0, ORANGE, BLUE) - np.array(PAPER)) * size
    return np.rint(np.where(np.isnan(shade), MISSING, coloured)).astype(np.uint8)


def legend(heatmap: Heatmap) -> list[tuple[float, float]]:
    """(place from 0 to 1, value) of the colour bar's labels, in the order of values."""
    least, most = heatmap.ends()
    if heatmap.kind == "diverging":
        return [(0.0, -abs(most)), (0.5, 0.0), (1.0, abs(most))]
    middle = {"log": (least * most) ** 0.5, "root": most / 4}.get(heatmap.kind, (least + most) / 2)
    return [(0.0, least), (0.5, middle), (1.0, most)]
