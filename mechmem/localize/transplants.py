"""Which part of a model carries a memory: each one transplanted alone into a model that does not have it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import xarray as xr

from mechmem.data.bounds import Count
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.measure.scores import score
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.weights.component_choice import every_component
from mechmem.weights.masks import Mask
from mechmem.weights.transplant import check_pair, transplanted


@public("refuse")
def transplant_layers(
    source: HookedTransformer,
    target: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    components: Sequence[str] | None = None,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Give a model one part of another at a time, and see which part brings the paragraphs back.

    For source a model that memorized the paragraphs, and target one that was trained the same way and never read them:
    an earlier checkpoint, or one from a corpus without them. Each component, biases and layer norms included, is
    transplanted alone; see `transplant`.

    Args:
        source: whose parts are taken; left as it is.
        target: which gets them; left as it is.
        paragraphs: those that are scored.
        components: names as `Mask.components` takes; None: every layer, its attention and its MLP alone, the embedding
            and the unembedding.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        progress: called with (components done, components).

    Returns:
        Dataset [paragraph, component]: em_change (tokens; above 0: the transplant brings back) and nll_change (nats per
        token; below 0: it does), with the transplant minus without. [paragraph]: em_target, em_source, nll_target,
        nll_source of the two models as they are. [component]: weights, how many were transplanted.

    Raises:
        InputError: as `transplant`, or paragraphs that do not fit.
    """
    check_pair(source, target)
    check_fit(target, paragraphs)
    names = every_component(target) if components is None else list(components)
    masks = [Mask.components(target, [name], biases=True) for name in names]
    report, model = as_callback(progress, "transplant_layers"), copy.deepcopy(target)
    alone = [score(each, paragraphs, batch_size=batch_size) for each in (target, source)]
    rows = []
    for done, mask in enumerate(masks, 1):
        with transplanted(source, model, mask):
            found = score(model, paragraphs, batch_size=batch_size)
        rows.append([found.em.values - alone[0].em.values, found.nll.values - alone[0].nll.values])
        if report is not None:
            report(done, len(masks))
    em, nll = np.array(rows).transpose(1, 2, 0)
    tokens, nats = {"units": "tokens"}, {"units": "nats per token"}
    memorized, less = {"higher": "more memorized"}, {"higher": "less memorized"}
    both = ("paragraph", "component")
    data = {
        "em_change": (both, em, tokens | {"higher": "the transplant brings more back"}),
        "nll_change": (both, nll, nats | {"higher": "the transplant makes the text less likely"}),
        "weights": ("component", np.array([mask.count for mask in masks]), {"units": "1"}),
    }
    for name, found in zip(("target", "source"), alone, strict=True):
        data[f"em_{name}"] = ("paragraph", found.em.values, tokens | memorized)
        data[f"nll_{name}"] = ("paragraph", found.nll.values, nats | less)
    return xr.Dataset(data, {"paragraph": paragraphs.ids, "component": names})
