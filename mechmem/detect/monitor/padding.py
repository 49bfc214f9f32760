"""Padding at the left of prompts that differ in length, from an attention mask."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from mechmem.data.errors import InputError


def left_padding(mask: Any, tokens: Int[Tensor, "row pos"]) -> Int[Tensor, " row"] | None:
    """Positions of padding of each row; None: there are none.

    Args:
        mask: 0 for padding and 1 for text, [row, pos]; None: all is text.
        tokens: of the prompts.

    Raises:
        InputError: padding elsewhere than at the left, or a mask of another shape.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape:
        came = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(
            f"got an attention mask of shape {came} for prompts of shape {list(tokens.shape)}; need [row, pos]: decode "
            "with the default cache"
        )
    text = mask != 0
    padding = (~text).sum(1)
    if not bool(padding.any()):
        return None
    if not bool((text[:, 1:] >= text[:, :-1]).all()) or not bool(text[:, -1].all()):
        raise InputError(
            "got prompts with padding inside or at the right; need it at the left: tokenizer.padding_side = 'left'"
        )
    return padding
