"""Activations of paragraphs as labelled arrays: what run_with_cache gives, faster, with names on every axis."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mechmem.data.bounds import Count
from mechmem.data.errors import InputError
from mechmem.data.files import check_output
from mechmem.data.netcdf_parts import Declared, netcdf_in_parts, open_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.localize.capture_layout import GRADIENT, Layout, layout_of
from mechmem.localize.capture_room import check_room
from mechmem.localize.metrics import UNITS, Metric, Scored, metric_name, metric_of
from mechmem.model.activation_sites import CaptureSite
from mechmem.model.activations import activation_reader, arranged, point_of
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.forward import check_fit, residual_before, unembed_continuation
from mechmem.model.hooks import frozen, recording, with_hooks
from mechmem.model.lean.model import fast_float32
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

log = logging.getLogger(__name__)
MEANING = {
    "pattern": ("attention weight", "the query attends more to the key"),
    "scores": ("attention score before the softmax", "the query attends more to the key"),
}


@public("run")
def capture(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    sites: Sequence[CaptureSite | str] | str = ("z", "pattern", "v"),
    *,
    layers: Any = None,
    heads: Any = None,
    pos: Any = None,
    batch_size: Count | None = None,
    dtype: torch.dtype | None = None,
    out: str | Path | None = None,
    gradient_of: Metric | str | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Record activations, with paragraphs, layers, heads, positions and tokens as labels.

    Equal to `HookedTransformer.run_with_cache`, whose axes are put in one order, and faster where no hook is on the
    model: nothing after the last layer asked for runs, and no logits are computed. How large the answer will be is
    logged (logger "mechmem.localize.capture", level INFO).

    Args:
        model: left as it is; hooks on it act as usual.
        paragraphs: what is run, prefix and continuation together.
        sites: resid_pre, resid_mid, resid_post, attn_out, mlp_out (the residual stream and what is added to it); q, k,
            v, z (before the output matrix), result (what each head writes to the residual stream, without the layer's
            bias); pattern, scores (before the softmax; minus infinity where a query does not see a key); mlp_post
            (neurons). TransformerLens' names work, too: hook_z, attn.hook_z.
        layers: a number, several, or a slice; None: all. Layers after the last of them do not run.
        heads: the same, of heads; sites without heads are not affected.
        pos: the same, of token positions; of queries, for pattern and scores, which keep all keys.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        dtype: of the answer, float16, float32 or float64; None: the model's own, at least float32. The model runs in
            its own in any case.
        out: a netCDF file for an answer that does not fit in memory; written whole or not at all, and read back only
            where you look at it. None: the answer is in memory.
        gradient_of: adds `SITE_gradient`, the gradient of this metric of the paragraph with respect to each activation:
            "nll", or a function of `metrics.Scored` whose `clean` and `corrupt` are both the paragraph's continuation.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset with one variable a site: [paragraph, layer, pos, d_model], [paragraph, layer, head, pos, d_head],
        [paragraph, layer, head, query_pos, key_pos] or [paragraph, layer, pos, neuron]. Coordinates: `paragraph` ids,
        `layer`, `head`, positions, and `token` and `text` of each position (`query_token`, `key_token`, ... for
        patterns).

    Raises:
        InputError: an unknown site, or one that the model lacks; a layer, head or position that is not there; an answer
            larger than the memory or disk that is free; a metric that has no gradient; paragraphs that do not fit; a
            model that gives NaN or infinite values.
    """
    check_fit(model, paragraphs)
    metric = None if gradient_of is None else _differentiable(gradient_of)
    layout = layout_of(model, paragraphs, sites, layers, heads, pos, dtype, gradients=metric is not None)
    path = None if out is None else _netcdf_path(out)
    nbytes = layout.nbytes(len(paragraphs))
    log.info("capture of %s: %.1f MB", ", ".join(layout.names), nbytes / 1e6)
    check_room(nbytes, path)
    size = chosen_batch_size(batch_size, model.W_E.device, 16 if metric is None else 8)
    skeleton = xr.Dataset(coords=layout.coords(paragraphs, model.tokenizer), attrs={"paragraphs": len(paragraphs)})
    variables = {name: _variable(layout, name, len(paragraphs), metric) for name in layout.names}
    parts = batches(len(paragraphs), size, progress)
    if path is None:
        arrays = {name: np.empty(known.shape, known.dtype) for name, known in variables.items()}
        _fill(model, paragraphs, layout, metric, arrays, parts)
        return skeleton.assign({name: (known.dims, arrays[name], known.attrs) for name, known in variables.items()})
    with netcdf_in_parts(path, skeleton, variables) as opened:
        _fill(model, paragraphs, layout, metric, opened, parts)
    return open_netcdf(path)


def _fill(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    layout: Layout,
    metric: Metric | None,
    arrays: Mapping[str, Any],
    parts: Iterator[slice],
) -> None:
    place = {int(layer): index for index, layer in enumerate(layout.layers)}
    read = None if metric is not None else activation_reader(model, layout.sites, sorted(place))
    for rows in parts:
        tokens = paragraphs.tokens[rows]

        def receive(name: str, layer: int, value: Tensor, rows: slice = rows) -> None:
            arrays[name][rows, place[layer]] = layout.chosen(name.removesuffix(GRADIENT), value)

        if read is not None:
            read(tokens, receive)
        else:
            assert metric is not None
            _with_gradients(model, tokens, paragraphs.prefix_len, layout, metric, receive)


def _with_gradients(
    model: HookedTransformer, tokens: Tensor, prefix_len: int, layout: Layout, metric: Metric, receive: Any
) -> None:
    """Activations and the gradient of the sum of the paragraphs' metrics, which do not depend on each other."""
    cells = [(site, int(layer)) for site in layout.sites for layer in layout.layers]
    names = [point_of(site, layer) for site, layer in cells]
    tokens = tokens.to(model.cfg.device)
    with frozen(model), fast_float32(model.W_E.device), torch.enable_grad(), with_hooks(model, {"hook_embed": _leaf}):
        with recording(model, names) as recorded:
            logits = unembed_continuation(model, residual_before(model, tokens, model.cfg.n_layers), prefix_len)
        true = tokens[:, prefix_len:]
        values = metric(Scored(logits, true, true, lambda: logits.detach()))
        if not values.requires_grad:
            raise InputError(f"the metric '{metric_name(metric)}' has no gradient; need one that has, such as 'nll'")
        gradients = torch.autograd.grad(values.sum(), [recorded[name] for name in names])
    for (site, layer), name, gradient in zip(cells, names, gradients, strict=True):
        receive(site, layer, arranged(model, site, layer, recorded[name].detach()))
        receive(site + GRADIENT, layer, arranged(model, site, layer, gradient))


def _leaf(value: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens passes both
    """Gradients begin at the embeddings: no weight asks for one."""
    return value.detach().requires_grad_()


def _variable(layout: Layout, name: str, paragraphs: int, metric: Metric | None) -> Declared:
    site = name.removesuffix(GRADIENT)
    units, higher = MEANING.get(site, ("activation", "the activation is larger"))
    if name != site:
        assert metric is not None
        what = metric_name(metric)
        units = f"{UNITS.get(what, what)} per unit of activation"
        higher = f"a larger activation raises {what}"
    attrs = {"units": units, "higher": higher}
    return Declared(layout.dims(site), layout.shape(site, paragraphs), layout.dtype, attrs)


def _differentiable(given: Metric | str) -> Metric:
    metric = metric_of(given)
    if isinstance(given, str) and given != "nll":
        raise InputError(
            f"got gradient_of={given!r}; need 'nll' or a function of metrics.Scored: of one paragraph without a "
            "counterpart the others have no gradient"
        )
    return metric


def _netcdf_path(out: str | Path) -> Path:
    path = Path(out)
    if path.suffix != ".nc":
        raise InputError(f"got out='{path}'; need a file name that ends in .nc")
    check_output(path)
    return path
