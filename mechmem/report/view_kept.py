"""What stages kept of single paragraphs, for the linked view: patching heatmaps and attention patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from mechmem.report.sections.attention import side_of
from mechmem.report.study_files import StudyFiles
from mechmem.show.maps.heatmap import Heatmap, page_heatmap
from mechmem.show.maps.heatmap_axes import layer_axis, part_axis, position_axis, token_axis
from mechmem.show.patterns.attention_picture import page_data
from mechmem.show.patterns.attention_side import Side
from mechmem.show.token_labels import shortened

# Characters of packed patterns in one view: about three paragraphs of 100 tokens in 48 heads, and a few in a few heads.
MOST_PATTERNS = 740_000
LEVELS = 255


def kept_of(study: StudyFiles) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]]]:
    """Row of the paragraph -> its `maps`, its `attention` and a sentence on its perturbation; and the maps' axes."""
    if study.paragraphs is None:
        return {}, []
    row_of = {identity: row for row, identity in enumerate(study.paragraphs.ids.tolist())}
    kept: dict[int, dict[str, Any]] = {}
    axes: list[dict[str, Any]] = []
    if study.patching is not None:
        for place, identity in enumerate(_ids(study.patching).tolist()):
            if identity in row_of:
                kept[row_of[identity]] = _patched(study.patching, place, study.paragraphs.prefix_len, axes)
    left = MOST_PATTERNS
    for identity, side in _sides(study):
        data = page_data([[side]], [""], None)
        size = len(data["paragraphs"][0]["sides"][0]["packed"])
        row = row_of.get(identity)
        if row is None or size > left:
            continue
        left -= size
        kept.setdefault(row, {})["attention"] = data
    return kept, axes


def _ids(patching: xr.Dataset) -> np.ndarray:
    """Of studies of the first release, whose results had no coordinate `paragraph`, too."""
    return patching.paragraph.values if "paragraph" in patching.coords else patching["id"].values


def _patched(patching: xr.Dataset, place: int, prefix: int, axes: list[dict[str, Any]]) -> dict[str, Any]:
    one = patching.isel(paragraph=place)
    changed, impact = int(one.perturbed_pos), int(one.impact_pos)
    positions = one.pos.values.tolist()
    columns = position_axis(positions, prefix)
    texts = None
    if "clean_text" in one:
        texts = [[str(text) for text in one[name].values] for name in ("clean_text", "corrupt_text")]
        columns = token_axis(positions, texts[0], texts[1], prefix)
    base, source = (float(one.resid_pre.attrs[name]) for name in ("base", "source"))
    stream = Heatmap(
        "NLL change by restoring the residual stream before a layer",
        one.resid_pre.transpose("layer", "pos").values,
        layer_axis(one.layer.values.tolist()),
        columns,
        "nats per token",
        "diverging",
        blue="lower",
    )
    z = one.z.transpose("layer", "head", "pos").values
    measured = np.isfinite(z).any(-1)
    heads = Heatmap(
        "NLL change by restoring a head's output, summed over positions",
        np.where(measured, np.nansum(z, -1), np.nan),
        layer_axis(one.layer.values.tolist()),
        part_axis("head", one["head"].values.tolist()),
        "nats per token",
        "diverging",
        blue="lower",
        joint="",
    )
    return {
        "maps": [page_heatmap(stream, axes), page_heatmap(heads, axes)],
        "perturbed": {
            "pos": changed,
            "impact": impact,
            "texts": None if texts is None else [texts[0][changed], texts[1][changed]],
            "mean": f"{base - source:.1f}",
        },
    }


def _sides(study: StudyFiles) -> list[tuple[Any, Side]]:
    """Paragraphs with attention patterns: a few heads of a few of them, then all heads of those that were patched."""
    prefix = None if study.paragraphs is None else study.paragraphs.prefix_len
    sides = _few_heads(study, prefix)
    if study.patching is not None and "pattern" in study.patching:
        patching = study.patching
        ids = _ids(patching).tolist()
        heads = [(int(layer), int(head)) for layer in patching.layer.values for head in patching["head"].values]
        for identity, levels in zip(patching.shown.values.tolist(), patching.pattern.values, strict=True):
            weights = (levels.astype(np.float32) / LEVELS) ** 2
            text = [str(label) for label in patching.clean_text.values[ids.index(identity)]]
            pattern = weights.reshape(len(heads), *weights.shape[-2:])
            sides.append((identity, Side(f"paragraph {identity}", heads, text, None, prefix, pattern)))
    return sides


def _few_heads(study: StudyFiles, prefix: int | None) -> list[tuple[Any, Side]]:
    """One side for each paragraph of attention.nc, with the heads of all its views."""
    if study.attention is None:
        return []
    found: dict[Any, Side] = {}
    for number in range(study.attention.sizes["view"]):
        view = study.attention.isel(view=number)
        identity, side = view.paragraph_id.item(), side_of(view, prefix)
        if identity in found:
            before = found[identity]
            new = [place for place, pair in enumerate(side.heads) if pair not in before.heads]
            heads = [*before.heads, *(side.heads[place] for place in new)]
            pattern = np.concatenate([before.pattern, side.pattern[new]])
            side = Side(before.title, heads, [shortened(text) for text in before.text], None, prefix, pattern)
        found[identity] = side
    return list(found.items())
