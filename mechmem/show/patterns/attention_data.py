"""Patterns and their tokens, from a model or from a capture, as one side of a view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.argument_checks import check_paragraphs, check_results
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.capture import capture
from mechmem.model.head_names import head_name, heads_of, parsed_heads
from mechmem.model.load import HookedTransformer
from mechmem.show.patterns.attention_side import Side
from mechmem.show.token_labels import shortened, token_labels


def sides_of(
    given: HookedTransformer | xr.Dataset,
    paragraphs: Paragraphs | None,
    heads: Sequence[tuple[int, int] | str] | str | None,
    counts: Any,
) -> list[Side]:
    """A side for each paragraph.

    Raises:
        InputError: as `show.attention`.
    """
    if isinstance(given, xr.Dataset):
        return _of_capture(given, heads, counts)
    if paragraphs is None:
        raise InputError("got a model and no paragraphs; need a few: show.attention(model, paragraphs[:2])")
    check_paragraphs("paragraphs", paragraphs)
    cfg = given.cfg
    every = [(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    chosen = every if heads is None else heads_of(given, heads)
    found = capture(given, paragraphs, sites="pattern", layers=sorted({layer for layer, _ in chosen}))
    sides = []
    for row in range(len(paragraphs)):
        tokens = paragraphs.tokens[row].tolist()
        pattern = _patterns(found.pattern.isel(paragraph=row), chosen)
        text = token_labels(given.tokenizer, tokens)
        sides.append(Side(_title(row, text), chosen, text, _counts(counts, tokens), paragraphs.prefix_len, pattern))
    return sides


def _of_capture(found: xr.Dataset, heads: Any, counts: Any) -> list[Side]:
    check_results("model", found, ("pattern", "key_token", "key_text"), "capture(model, paragraphs, sites='pattern')")
    if found.sizes["query_pos"] != found.sizes["key_pos"]:
        raise InputError(
            f"got patterns of {found.sizes['query_pos']} queries and {found.sizes['key_pos']} keys; need all queries: "
            "capture without pos"
        )
    layers, numbers = found.layer.values.tolist(), found["head"].values.tolist()
    every = [(layer, head) for layer in layers for head in numbers]
    chosen = every if heads is None else _among(every, heads)
    sides = []
    for row in range(found.sizes["paragraph"]):
        one = found.isel(paragraph=row)
        tokens, text = one.key_token.values.tolist(), [shortened(str(text)) or "∅" for text in one.key_text.values]
        pattern = _patterns(one.pattern, chosen)
        sides.append(Side(_title(row, text), chosen, text, _counts(counts, tokens), None, pattern))
    return sides


def _among(every: list[tuple[int, int]], heads: Sequence[Any] | str) -> list[tuple[int, int]]:
    given = [heads] if isinstance(heads, str) else list(heads)
    found = parsed_heads(given)
    missing = [head for head, pair in zip(given, found, strict=True) if pair not in every]
    if missing or not found:
        held = ", ".join(map(head_name, every[:6]))
        raise InputError(f"got heads {missing or given}; the capture holds {held}, ...")
    return [pair for pair in found if pair is not None]


def _title(row: int, text: list[str]) -> str:
    """Which paragraph: its place, and how it begins."""
    return f"{row}: {shortened(''.join(text[:20]).strip())}"


def _patterns(pattern: xr.DataArray, chosen: list[tuple[int, int]]) -> np.ndarray:
    """Of the chosen heads, [head, query_pos, key_pos]."""
    return np.stack([pattern.sel(layer=layer, head=head).values for layer, head in chosen])


def _counts(counts: Any, tokens: list[int]) -> list[int] | None:
    if counts is None:
        return None
    known = np.asarray(counts)
    if known.ndim != 1 or max(tokens) >= len(known):
        raise InputError(f"got counts of shape {known.shape} for tokens up to {max(tokens)}; need one for each token")
    return [int(count) for count in known[tokens]]
