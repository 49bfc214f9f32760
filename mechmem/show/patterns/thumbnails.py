"""Still images of patterns: every pixel is the largest weight that falls on it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from mechmem.show.colour_scale import BLUE, PAPER
from mechmem.show.patterns.attention_side import Side, grid_of

# Of a head in the still picture of a grid.
SIZE, GAP = 40, 3


def coloured(weights: Float[np.ndarray, "row column"]) -> UInt8[np.ndarray, "row column 3"]:
    """White to blue, by the square root of the weight."""
    share = np.sqrt(np.clip(weights, 0, 1))[..., None]
    return np.rint(PAPER + (np.array(BLUE) - PAPER) * share).astype(np.uint8)


def thumbnail(pattern: Float[np.ndarray, "query_pos key_pos"], size: int) -> Float[np.ndarray, "row column"]:
    """A pattern on at most `size` pixels a side."""
    length = len(pattern)
    side = min(size, length)
    starts = np.searchsorted(np.arange(length) * side // length, np.arange(side))
    return np.maximum.reduceat(np.maximum.reduceat(pattern, starts, 0), starts, 1)


def grid_pixels(side: Side) -> UInt8[np.ndarray, "row column 3"]:
    """All heads of a side, as they stand in the grid."""
    columns = grid_of(side.heads)["columns"]
    lines = -(-len(side.heads) // columns)
    step = min(SIZE, side.pattern.shape[-1]) + GAP
    pixels = np.full((lines * step, columns * step, 3), 230, np.uint8)
    for number, pattern in enumerate(side.pattern):
        row, column = divmod(number, columns)
        image = coloured(thumbnail(pattern, SIZE))
        pixels[row * step : row * step + len(image), column * step : column * step + len(image)] = image
    return pixels
