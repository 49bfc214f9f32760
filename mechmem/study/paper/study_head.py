"""The head that the study is about, in a model that may be smaller than the study's."""

from __future__ import annotations

from mechmem.model.load import HookedTransformer
from mechmem.study.paper import published


def study_head(model: HookedTransformer) -> tuple[int, int]:
    """Layer 1 and head 2, or the nearest there is."""
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    return min(published.SALIENT_LAYER, layers - 1), min(published.SALIENT_HEAD, heads - 1)
