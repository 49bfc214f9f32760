"""The sets: how many paragraphs each group of EM has."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechmem.study.paper import published
from mechmem.study.paper.folder import PaperFolder
from mechmem.study.paper.inputs import GROUPS
from mechmem.study.paper.rows import Finding, Row


def sets_item(paper: PaperFolder) -> Finding:
    """Count the groups."""
    groups = paper.sets.groups
    counts = [len(groups[name]) if name in groups else 0 for name in GROUPS]
    rows = [
        Row("sets", f"paragraphs of EM {name}", "as published", count, None, None, published.COUNTS[name], "paragraphs")
        for name, count in zip(GROUPS, counts, strict=True)
    ]
    data = xr.Dataset({"count": ("group", np.array(counts), {"units": "paragraphs"})}, {"group": list(GROUPS)})
    return Finding(tuple(rows), data)
