"""Which bundled paragraphs the experiments of the paper's figures look at, and how they write what they find."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from torch import Tensor

import mechmem as mm
from mechmem.data.files import replacing
from mechmem.model.load import HookedTransformer

MEMORIZED_OTHER = {"memorized": (50, 50), "other": (0, 10)}


def by_em(
    model: HookedTransformer, ranges: Mapping[str, tuple[int, int]], *, candidates: int, each: int, seed: int
) -> dict[str, mm.Paragraphs]:
    """Bundled paragraphs of each EM range in random order, no cluster twice within or across ranges.

    Args:
        model: scores them.
        ranges: name -> lowest and highest EM.
        candidates: paragraphs that are scored, drawn at random.
        each: most paragraphs of a range.
        seed: of the draw.

    Returns:
        Name -> paragraphs with a column `em`, equally many of each range.
    """
    shipped = mm.bundled_paragraphs()
    pool = shipped.select(np.random.default_rng(seed).permutation(len(shipped))[:candidates])
    em, cluster = mm.score(model, pool).em.values, pool.column("cluster")
    members = {name: np.flatnonzero((em >= low) & (em <= high)) for name, (low, high) in ranges.items()}
    taken: set[int] = set()
    chosen: dict[str, list[int]] = {}
    # The smallest range chooses first: a cluster that others can do without may be most of what it has.
    for name in sorted(members, key=lambda name: len(members[name])):
        chosen[name] = []
        for index in members[name].tolist():
            if len(chosen[name]) < each and int(cluster[index]) not in taken:
                taken.add(int(cluster[index]))
                chosen[name].append(index)
    count = min(len(rows) for rows in chosen.values())
    if count == 0:
        raise ValueError(f"a range of {list(ranges)} has no paragraph among {len(pool)} candidates; score more of them")
    return {name: pool.select(chosen[name][:count]).with_columns(em=em[chosen[name][:count]]) for name in ranges}


def token_texts(model: HookedTransformer, tokens: Tensor) -> list[str]:
    """Each token's text, [pos]."""
    assert model.tokenizer is not None
    return [str(model.tokenizer.decode([token])) for token in tokens.tolist()]


def save(result: xr.Dataset, figures: Sequence[go.Figure], settings: Any) -> None:
    """Write result.nc with the settings in its attributes, and figure.html, which loads nothing.

    Args:
        result: gets the attribute `settings`, as JSON.
        figures: of the page, from the top down.
        settings: a dataclass with a field `out`, the folder.
    """
    result.attrs["settings"] = json.dumps(asdict(settings), default=str)
    with replacing(settings.out / "result.nc") as temporary:
        result.to_netcdf(temporary, engine="h5netcdf")
    # Plotly's script is needed once.
    parts = [figure.to_html(full_html=False, include_plotlyjs=number == 0) for number, figure in enumerate(figures)]
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{settings.out.name}</title></head>'
    with replacing(settings.out / "figure.html") as temporary:
        temporary.write_text(f"{head}<body>{''.join(parts)}</body></html>\n", encoding="utf-8")
