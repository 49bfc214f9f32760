"""What stages keep beside their results, so that a study can be looked at without its model."""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.capture import capture
from mechmem.model.load import HookedTransformer
from mechmem.show.token_labels import token_labels
from mechmem.stats.cell_intervals import cell_intervals
from mechmem.stats.ranges import range_of

# Attention weights kept: six paragraphs of 100 tokens in 144 heads are 9 million, one byte each.
MOST_WEIGHTS = 16_000_000
MOST_PARAGRAPHS = 6
LEVELS = 255


def labels_of(model: HookedTransformer, tokens: Int[Tensor, "paragraph pos"]) -> np.ndarray:
    """A label of each token as people read it, [paragraph, pos]: white space visible, parts of a letter as bytes."""
    ids, places = np.unique(tokens.cpu().numpy(), return_inverse=True)
    labels = np.array(token_labels(model.tokenizer, ids.tolist()), dtype=object)
    return labels[places.reshape(tuple(tokens.shape))]


def with_intervals(result: xr.Dataset, paragraphs: Paragraphs) -> xr.Dataset:
    """The mean of every variable over paragraphs, and its 95 % interval as `NAME_low` and `NAME_high`.

    Args:
        result: variables [paragraph, ...] that `stats.ranges` knows by name, in the order of the paragraphs.
        paragraphs: intervals are by their clusters.
    """
    means = result.mean("paragraph", skipna=False, keep_attrs=True)
    for name, values in result.data_vars.items():
        ordered = values.transpose("paragraph", ...)
        within = range_of(str(name), paragraphs.continuation_len)
        ends = cell_intervals(ordered.values, paragraphs.clusters, within=within)
        for end, bound in zip(("low", "high"), ends, strict=True):
            means[f"{name}_{end}"] = (ordered.dims[1:], bound, dict(values.attrs))
    return means


def texts_and_patterns(model: HookedTransformer, clean: Paragraphs, corrupt: Paragraphs) -> xr.Dataset:
    """The tokens of pairs, and the attention of all heads on the first few clean paragraphs.

    Returns:
        clean_text, corrupt_text [paragraph, pos]; pattern [shown, layer, head, query_pos, key_pos], one byte each: 255
        times the square root of the attention weight; shown: the paragraphs' ids. As many paragraphs as fit into
        16 million weights, at most six.
    """
    texts = {
        name: (("paragraph", "pos"), labels_of(model, paragraphs.tokens))
        for name, paragraphs in (("clean_text", clean), ("corrupt_text", corrupt))
    }
    weights = model.cfg.n_layers * model.cfg.n_heads * clean.tokens.shape[1] ** 2
    count = min(len(clean), MOST_PARAGRAPHS, MOST_WEIGHTS // weights)
    result = xr.Dataset(texts, {"paragraph": clean.ids})
    if not count:
        return result
    first = clean.select(np.arange(count))
    pattern = capture(model, first, sites="pattern").pattern.transpose(
        "paragraph", "layer", "head", "query_pos", "key_pos"
    )
    attrs = {"units": "255 times the square root of the attention weight", "higher": "attends more to the key"}
    levels = np.rint(LEVELS * np.sqrt(np.clip(pattern.values, 0, 1))).astype(np.uint8)
    return result.assign(
        pattern=(("shown", "layer", "head", "query_pos", "key_pos"), levels, attrs), shown=("shown", first.ids)
    )
