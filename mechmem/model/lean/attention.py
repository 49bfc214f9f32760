"""Attention as plain products, in blocks that fit the cache. Scores and softmax are at least float32 everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

# Attention scores held at once: 2 MB of float32.
SCORES_AT_ONCE = 2**19
# With more keys than this the fused kernel is as fast, and needs less memory.
LONG = 512


@dataclass(frozen=True)
class Heads:
    """What the heads of one layer attend with, and to.

    Attributes:
        query, key, value: [paragraph, head, pos, d_head]; queries are those of the last positions.
        seen: which keys each query sees.
        scale: factor of the products of queries and keys.
    """

    query: Float[Tensor, "paragraph head query_pos d_head"]
    key: Float[Tensor, "paragraph head key_pos d_head"]
    value: Float[Tensor, "paragraph head key_pos d_head"]
    seen: Bool[Tensor, "query_pos key_pos"]
    scale: float

    def scores(self) -> Float[Tensor, "paragraph head query_pos key_pos"]:
        """Attention scores, at least float32; minus infinity where a query does not see a key."""
        flat = attention_scores(self.query.flatten(0, 1), self.key.flatten(0, 1), self.seen, self.scale)
        return flat.unflatten(0, self.query.shape[:2])

    @cached_property
    def pattern(self) -> Float[Tensor, "paragraph head query_pos key_pos"]:
        """Attention weights, at least float32; computed when they are first asked for."""
        flat = attention_pattern(self.query.flatten(0, 1), self.key.flatten(0, 1), self.seen, self.scale)
        return flat.unflatten(0, self.query.shape[:2])

    @cached_property
    def output(self) -> Float[Tensor, "paragraph head query_pos d_head"]:
        """Values summed with these weights, z. Ask for the pattern first where both are needed."""
        if "pattern" in self.__dict__:
            return self.pattern.to(self.value.dtype) @ self.value
        return attend(self.query, self.key, self.value, self.seen, self.scale)


def attention_pattern(
    query: Float[Tensor, "row query_pos d_head"],
    key: Float[Tensor, "row key_pos d_head"],
    seen: Bool[Tensor, "*row query_pos key_pos"],
    scale: float,
) -> Float[Tensor, "row query_pos key_pos"]:
    """Softmax over the keys that each query sees; gradients flow."""
    return attention_scores(query, key, seen, scale).softmax(-1)


def attention_scores(
    query: Float[Tensor, "row query_pos d_head"],
    key: Float[Tensor, "row key_pos d_head"],
    seen: Bool[Tensor, "*row query_pos key_pos"],
    scale: float,
) -> Float[Tensor, "row query_pos key_pos"]:
    """Scaled products of queries and keys, minus infinity where a query does not see a key; gradients flow.

    Sixteen-bit queries and keys are raised to float32 first, as transformers does: their products can pass 65,504.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    hidden = torch.zeros(seen.shape, dtype=wide, device=seen.device).masked_fill_(~seen, -torch.inf)
    return torch.baddbmm(hidden, query.to(wide), key.to(wide).mT, alpha=scale)


def attend(
    query: Float[Tensor, "paragraph head query_pos d_head"],
    key: Float[Tensor, "paragraph head key_pos d_head"],
    value: Float[Tensor, "paragraph head key_pos d_head"],
    seen: Bool[Tensor, "query_pos key_pos"],
    scale: float,
) -> Float[Tensor, "paragraph head query_pos d_head"]:
    """Attention of the queries to the keys they see; gradients flow.

    On a CPU torch's fused kernel takes two to seven times as long as plain products, where the scores of some heads fit
    the cache together (docs/benchmarks/attention.md).
    """
    if query.device.type != "cpu" or key.shape[2] > LONG:
        return functional.scaled_dot_product_attention(query, key, value, seen, scale=scale)
    q, k, v = (x.flatten(0, 1) for x in (query, key, value))
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        # Blocks written into one tensor would have no gradient.
        z = attention_pattern(q, k, seen, scale).to(v.dtype) @ v
    else:
        z = torch.empty_like(q)
        step = max(1, SCORES_AT_ONCE // seen.numel())
        for start in range(0, len(z), step):
            part = slice(start, start + step)
            weights = attention_pattern(q[part], k[part], seen, scale)
            torch.bmm(weights.to(v.dtype), v[part], out=z[part])
    return z.unflatten(0, query.shape[:2])
