"""The residual stream after a layer in which an activation is replaced, for many cells at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.model.lean.attention import attention_pattern
from mechmem.model.lean.model import LeanModel
from mechmem.model.lean.trace import HEAD_SITES, Trace

# What the base run must keep besides the site itself.
NEEDED = {
    "resid_pre": ("resid_pre",),
    "resid_mid": ("resid_mid", "resid_pre"),
    "resid_post": (),
    "attn_out": ("resid_mid", "resid_pre"),
    "mlp_out": (),
    "mlp_post": (),
    **dict.fromkeys(("q", "k", "v", "z", "pattern"), ("q", "z", "resid_mid", "resid_pre")),
}
ALWAYS = ("k", "v", "resid_post")


@dataclass(frozen=True)
class Cells:
    """Rows of one forward: each patches one place of one pair at one layer; all [row].

    Attributes:
        layer: the layer, one for all rows.
        start: no row patches a position before it.
        stop: positions from here on are not scored, nor run.
        pair: whose run.
        part: head, or group of neurons; 0 where the site has neither.
        pos: position.
    """

    layer: int
    start: int
    stop: int
    pair: Int[Tensor, " row"]
    part: Int[Tensor, " row"]
    pos: Int[Tensor, " row"]


def entry(
    lean: LeanModel, site: str, base: Trace, source: Trace, cells: Cells, groups: Int[Tensor, " d_mlp"]
) -> tuple[Float[Tensor, "row pos d_model"], int]:
    """The residual stream of positions start ... stop - 1 with each row's cell replaced, and the layer it enters.

    Before position `pos` nothing changes; at the patched layer the other positions change only where they attend to
    what was patched (k, v). So most sites need one position of one MLP here.

    Args:
        lean: the model.
        site: what is replaced.
        base: the run that is patched.
        source: the run that the replacements come from.
        cells: which.
        groups: the group of each neuron, for site "mlp_post".
    """
    number, rows = cells.layer, torch.arange(len(cells.pair), device=lean.device)
    layer, pair, part, pos = lean.layers[number], cells.pair, cells.part, cells.pos
    window = slice(cells.start, cells.stop)

    def change(name: str) -> Tensor:
        """Source minus base at the patched position, [row, ...]."""
        one, other = (
            run[name][number, pair, part, pos] if name in ("q", "k", "v", "z") else run[name][number, pair, pos]
            for run in (source, base)
        )
        return one - other

    if site == "resid_pre":
        residual = base["resid_pre"][number, pair, window].clone()
        residual[rows, pos - cells.start] = source["resid_pre"][number, pair, pos]
        return residual, number
    if site in ("k", "v"):
        delta = _seen_by_later_queries(lean, site, base, source, cells)
        return after_heads(lean, base, cells, delta), number + 1
    residual = base["resid_post"][number, pair, window].clone()
    if site in ("resid_post", "mlp_out"):
        residual[rows, pos - cells.start] += change(site)
        return residual, number + 1
    if site == "mlp_post":
        chosen = groups == part[:, None]
        residual[rows, pos - cells.start] += (change(site) * chosen) @ layer.w_out
        return residual, number + 1
    if site == "resid_mid":
        written = change(site)
    elif site == "attn_out":
        written = change(site)
    else:
        z = change("z") if site == "z" else _own_z(lean, site, base, source, cells)
        written = torch.einsum("rd,rdm->rm", z, _head_output(lean, number)[part])
    before = base["resid_pre"][number, pair, pos]
    if lean.parallel:
        residual[rows, pos - cells.start] += written
    else:
        middle = base["resid_mid"][number, pair, pos] + written
        residual[rows, pos - cells.start] = lean.after_attention(layer, before, middle - before)
    return residual, number + 1


def entry_everywhere(
    lean: LeanModel, site: str, base: Trace, source: Trace, cells: Cells, groups: Int[Tensor, " d_mlp"]
) -> tuple[Float[Tensor, "row pos d_model"], int]:
    """As `entry`, with the site replaced at all positions start ... stop - 1 together.

    Positions before `start` are the same in both runs, so nothing is replaced there.
    """
    number, pair, part = cells.layer, cells.pair, cells.part
    window = slice(cells.start, cells.stop)
    if site in HEAD_SITES:
        delta = head_change(lean, site, base, source[site][number, pair, part], cells)
        return after_heads(lean, base, cells, delta), number + 1
    other = source[site][number, pair, window]
    if site in ("resid_pre", "resid_post"):
        return other.clone(), number if site == "resid_pre" else number + 1
    change = other - base[site][number, pair, window]
    if site in ("resid_mid", "attn_out"):
        return after_written(lean, base, cells, change), number + 1
    if site == "mlp_post":
        change = (change * (groups == part[:, None])[:, None]) @ lean.layers[number].w_out
    return base["resid_post"][number, pair, window] + change, number + 1


def head_change(
    lean: LeanModel, site: str, base: Trace, value: Float[Tensor, "row pos d"], cells: Cells
) -> Float[Tensor, "row run_pos d_head"]:
    """Change of a head's output at positions start ... stop - 1, when one of its activations is another everywhere.

    Args:
        lean: the model.
        site: q, k, v, z or pattern.
        base: the run that is changed; it keeps q, k, v and z, or without q and k the pattern instead.
        value: what each row's head has instead, at all positions: [row, pos, d_head], or [row, query_pos, key_pos].
        cells: which pair, layer and head; their `pos` is not used.
    """
    window = slice(cells.start, cells.stop)

    def own(name: str) -> Tensor:
        return base[name][cells.layer, cells.pair, cells.part]

    if site == "z":
        return value[:, window] - own("z")[:, window]
    if site == "pattern":
        weights = value[:, window]
    elif site == "v" and "pattern" in base.sites:
        weights = own("pattern")[:, window]
    else:
        layer = lean.layers[cells.layer]
        query, key = (value if site == name else own(name) for name in ("q", "k"))
        scores = torch.einsum("rqd,rkd->rqk", query[:, window], key) * layer.scale
        seen = lean.visible(0, key.shape[1], layer.window)[window]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return weights @ (value if site == "v" else own("v")) - own("z")[:, window]


def _head_output(lean: LeanModel, number: int) -> Float[Tensor, "head d_head d_model"]:
    return lean.layers[number].w_o.view(lean.n_heads, lean.d_head, -1)


def _own_z(lean: LeanModel, site: str, base: Trace, source: Trace, cells: Cells) -> Float[Tensor, "row d_head"]:
    """Change of a head's output at the patched query, from another query or another pattern."""
    number, pair, part, pos = cells.layer, cells.pair, cells.part, cells.pos
    if site == "pattern":
        weights = source["pattern"][number, pair, part, pos]
    else:
        layer = lean.layers[number]
        keys = base["k"][number, pair, part]
        queries = source["q"][number, pair, part, pos][:, None]
        seen = lean.visible(0, keys.shape[1], layer.window)[pos][:, None]
        weights = attention_pattern(queries, keys, seen, layer.scale)[:, 0]
    values = base["v"][number, pair, part]
    return torch.einsum("rk,rkd->rd", weights.to(values.dtype), values) - base["z"][number, pair, part, pos]


def _seen_by_later_queries(
    lean: LeanModel, site: str, base: Trace, source: Trace, cells: Cells
) -> Float[Tensor, "row pos d_head"]:
    """Change of a head's output at all run positions, when one key or one value is another."""
    number, pair, part, pos = cells.layer, cells.pair, cells.part, cells.pos
    layer, rows = lean.layers[number], torch.arange(len(cells.pair), device=lean.device)
    queries = base["q"][number, pair, part, cells.start : cells.stop]
    keys, values = base["k"][number, pair, part], base["v"][number, pair, part]
    other = source[site][number, pair, part, pos]
    seen = lean.visible(0, keys.shape[1], layer.window)[cells.start : cells.stop]
    if site == "k":
        keys[rows, pos] = other
    weights = attention_pattern(queries, keys, seen, layer.scale).to(values.dtype)
    if site == "v":
        return weights[rows, :, pos][..., None] * (other - values[rows, pos])[:, None]
    return torch.einsum("rqk,rkd->rqd", weights, values) - base["z"][number, pair, part, cells.start : cells.stop]


def after_heads(
    lean: LeanModel, base: Trace, cells: Cells, delta: Float[Tensor, "row pos d_head"]
) -> Float[Tensor, "row pos d_model"]:
    """The residual stream after the layer when one head's output changes everywhere."""
    return after_written(lean, base, cells, torch.bmm(delta, _head_output(lean, cells.layer)[cells.part]))


def after_written(
    lean: LeanModel, base: Trace, cells: Cells, written: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos d_model"]:
    """The residual stream after the layer when its attention writes so much more at the run positions."""
    number, pair, window = cells.layer, cells.pair, slice(cells.start, cells.stop)
    if lean.parallel:
        return base["resid_post"][number, pair, window] + written
    before = base["resid_pre"][number, pair, window]
    middle = base["resid_mid"][number, pair, window] + written
    return lean.after_attention(lean.layers[number], before, middle - before)
