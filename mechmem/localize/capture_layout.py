"""What a capture holds: its sites, layers, heads and positions, the axes of its arrays, and how large they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechmem.data.choices import shown
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.activation_sites import CaptureSite, capture_site_of
from mechmem.model.load import HookedTransformer
from mechmem.model.token_text import token_texts

BY_HEAD = ("q", "k", "v", "z", "result", "pattern", "scores")
WIDTH = {"z": "d_head", "q": "d_head", "k": "d_head", "v": "d_head", "mlp_post": "neuron"}
GRADIENT = "_gradient"


@dataclass(frozen=True)
class Layout:
    """Which activations are kept, and with which axes.

    Attributes:
        sites: in the order asked for.
        layers, heads: numbers, in the order asked for.
        positions: of tokens; queries, for patterns and scores, whose keys are all kept.
        length: tokens of a paragraph.
        sizes: sizes of d_head, d_model and neuron.
        dtype: of what is kept.
        gradients: whether each site has a gradient beside its activation.
    """

    sites: tuple[CaptureSite, ...]
    layers: np.ndarray
    heads: np.ndarray
    positions: np.ndarray
    length: int
    sizes: dict[str, int]
    dtype: np.dtype
    gradients: bool

    def dims(self, site: str) -> tuple[str, ...]:
        """The dimensions of a site's array."""
        head = ("head",) if site in BY_HEAD else ()
        if site in ("pattern", "scores"):
            return ("paragraph", "layer", *head, "query_pos", "key_pos")
        return ("paragraph", "layer", *head, "pos", WIDTH.get(site, "d_model"))

    def shape(self, site: str, paragraphs: int) -> tuple[int, ...]:
        """The shape of a site's array."""
        positions = len(self.positions)
        known = {"layer": len(self.layers), "head": len(self.heads), "pos": positions, "query_pos": positions}
        known |= {"paragraph": paragraphs, "key_pos": self.length} | self.sizes
        return tuple(known[name] for name in self.dims(site))

    @property
    def names(self) -> list[str]:
        """The arrays: one a site, or two."""
        return [site + ending for site in self.sites for ending in (("", GRADIENT) if self.gradients else ("",))]

    def nbytes(self, paragraphs: int) -> int:
        """The size of all arrays."""
        cells = sum(int(np.prod(self.shape(name.removesuffix(GRADIENT), paragraphs))) for name in self.names)
        return cells * self.dtype.itemsize

    def chosen(self, site: str, value: Tensor) -> np.ndarray:
        """The heads and positions that are kept, of one layer's activation [paragraph, head or none, pos, ...]."""
        heads = torch.as_tensor(self.heads, device=value.device)
        positions = torch.as_tensor(self.positions, device=value.device)
        if site in BY_HEAD and not np.array_equal(self.heads, np.arange(value.shape[1])):
            value = value.index_select(1, heads)
        axis = 2 if site in BY_HEAD else 1
        if not np.array_equal(self.positions, np.arange(value.shape[axis])):
            value = value.index_select(axis, positions)
        return value.to(torch.float64 if self.dtype == np.float64 else torch.float32).cpu().numpy()

    def coords(self, paragraphs: Paragraphs, tokenizer: Any) -> dict[str, Any]:
        """Labels of every axis that has some, and the tokens at each axis of positions."""
        coords: dict[str, Any] = {"paragraph": paragraphs.ids, "layer": self.layers}
        if any(site in BY_HEAD for site in self.sites):
            coords["head"] = self.heads
        texts = token_texts(tokenizer, paragraphs.tokens)
        places = {"pos": self.positions, "query_pos": self.positions, "key_pos": np.arange(self.length)}
        for axis, positions in places.items():
            if any(axis in self.dims(site) for site in self.sites):
                prefix = axis.removesuffix("pos")
                coords[axis] = positions
                coords[f"{prefix}token"] = (("paragraph", axis), paragraphs.tokens.numpy()[:, positions])
                coords[f"{prefix}text"] = (("paragraph", axis), texts[:, positions])
        return coords


def layout_of(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    sites: Sequence[str] | str,
    layers: Any,
    heads: Any,
    pos: Any,
    dtype: torch.dtype | None,
    *,
    gradients: bool,
) -> Layout:
    """What was asked for, checked.

    Raises:
        InputError: no or an unknown site, a layer, head or position that is not there, or a type that arrays lack.
    """
    given = (sites,) if isinstance(sites, str) else tuple(sites)
    if not given:
        raise InputError("got no sites; need at least one, such as 'z' or 'pattern'")
    known: tuple[CaptureSite, ...] = tuple(dict.fromkeys([capture_site_of(model, site) for site in given]))
    if gradients and "result" in known:
        raise InputError(
            "got the site 'result' with a gradient; it is that at 'attn_out' for every head: capture attn_out instead"
        )
    cfg = model.cfg
    length = paragraphs.tokens.shape[1]
    return Layout(
        sites=known,
        layers=_chosen("layers", layers, cfg.n_layers),
        heads=_chosen("heads", heads, cfg.n_heads),
        positions=_chosen("pos", pos, length),
        length=length,
        sizes={"d_head": cfg.d_head, "d_model": cfg.d_model, "neuron": cfg.d_mlp or 0},
        dtype=_stored(dtype, model.W_E.dtype),
        gradients=gradients,
    )


def _chosen(name: str, chosen: Any, count: int) -> np.ndarray:
    """Numbers below `count`, in the given order, from a number, several, a slice, or None for all."""
    if chosen is None:
        return np.arange(count)
    if isinstance(chosen, slice):
        found = np.arange(count)[chosen]
    else:
        try:
            found = np.atleast_1d(np.asarray(chosen))
        except (TypeError, ValueError, RuntimeError):
            found = np.empty((0, 0))  # no numbers at all
        if found.ndim != 1 or (len(found) and not np.issubdtype(found.dtype, np.integer)):
            raise InputError(f"got {shown(chosen)} as {name}; need whole numbers from 0 to {count - 1}, or a slice")
    if not len(found) or found.min() < 0 or found.max() >= count or len(np.unique(found)) < len(found):
        raise InputError(f"got {shown(chosen)} as {name}; need different numbers from 0 to {count - 1}, at least one")
    return found


def _stored(dtype: torch.dtype | None, own: torch.dtype) -> np.dtype:
    known = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
    if dtype is None:
        return np.dtype(np.float64 if own == torch.float64 else np.float32)
    if dtype not in known:
        raise InputError(f"got dtype {dtype}; need one that arrays have: {', '.join(map(str, known))}")
    return np.dtype(known[dtype])
