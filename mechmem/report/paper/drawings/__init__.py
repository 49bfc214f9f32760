"""What draws each item's figures from its arrays."""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr

from mechmem.report.paper.drawing import Drawing
from mechmem.report.paper.drawings.sets import draw_sets

# By the item's name, as in `study.paper.items.ITEMS`; an item without an entry has no figure.
DRAWINGS: dict[str, Callable[[xr.Dataset], list[Drawing]]] = {
    "sets": draw_sets,
}
