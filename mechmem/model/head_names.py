"""Attention heads as (layer, head) pairs or by name: L1H2 is layer 1, head 2, both counted from zero."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mechmem.data.bounds import check_bounds
from mechmem.data.errors import InputError

# Pages name heads and must not wait for torch.
if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
else:
    HookedTransformer = Any

NAME = re.compile(r"L(\d+)H(\d+)", re.IGNORECASE)


def heads_of(model: HookedTransformer, heads: Sequence[tuple[int, int] | str]) -> list[tuple[int, int]]:
    """The (layer, head) pairs, in the given order.

    Raises:
        InputError: none, one that the model does not have, or something that is neither a pair nor a name.
    """
    found = parsed_heads(heads)
    layers, width = model.cfg.n_layers, model.cfg.n_heads
    wrong = [
        given
        for given, pair in zip(heads, found, strict=False)
        if pair is None or not (0 <= pair[0] < layers and 0 <= pair[1] < width)
    ]
    if wrong or not found:
        raise InputError(
            f"got heads {wrong or list(heads)}; need (layer, head) pairs or names (L1H2), layer below {layers} and "
            f"head below {width}, counted from zero"
        )
    return [pair for pair in found if pair is not None]


def parsed_heads(heads: Sequence[Any] | str) -> list[tuple[int, int] | None]:
    """The (layer, head) pair of each name or pair; None for what is neither."""
    return [_pair(head) for head in ([heads] if isinstance(heads, str) else heads)]


def head_name(head: tuple[int, int]) -> str:
    """Layer 1, head 2 -> L1H2."""
    return f"L{head[0]}H{head[1]}"


def _pair(head: Any) -> tuple[int, int] | None:
    if isinstance(head, str):
        match = NAME.fullmatch(head)
        return None if match is None else (int(match[1]), int(match[2]))
    try:
        layer, number = head
        return check_bounds("layer", layer, int), check_bounds("head", number, int)
    except (TypeError, ValueError):
        return None
