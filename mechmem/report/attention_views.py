"""Attention views drawn by CircuitsVis, with its script once in the page and no way out for a paragraph's text."""

import html
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class View:
    """One CircuitsVis component and what it is to show.

    Attributes:
        component: the component's name in the bundle, as in `CircuitsVis.AttentionHeads`.
        props: what it is given; plain lists, numbers and strings, so that it can be written as JSON.
        label: a line above it.
    """

    component: str
    props: dict[str, Any]
    label: str = ""


def attention_heads(
    tokens: Sequence[str],
    pattern: Float[np.ndarray, "head query_pos key_pos"],
    names: Sequence[str],
) -> View:
    """A selectable grid of heads, each as a matrix of queries by keys; darker means more attention.

    The darkest colour is the largest weight on any key but the first: idle heads attend to the first
    key, and on a scale up to that weight everything else would be white. Keys after the query have no weight and stay
    white like the page, not grey as the component would paint them. It draws tokens on a canvas, as
    letters, and head names as React text, so both go unescaped.
    """
    props = {
        "tokens": list(tokens),
        "attention": _rounded(pattern),
        "attentionHeadNames": list(names),
        "maxValue": _scale(pattern),
        "positiveColor": "#0b5a94",
        "negativeColor": "#b35806",
        "maskUpperTri": False,
    }
    return View("AttentionHeads", props)


def received_attention(
    tokens: Sequence[str],
    pattern: Float[np.ndarray, "query_pos key_pos"],
    *,
    first_query: int,
    label: str,
) -> View:
    """The paragraph's tokens, each coloured by the attention that it receives from later queries.

    The value of a token is the mean weight on it over the queries from `first_query` on that can see it; higher means
    that the head looks there more. This component writes a token as innerHTML, so tokens are escaped here.
    """
    queries = np.arange(len(pattern))[:, None]
    able = (queries >= first_query) & (queries >= np.arange(pattern.shape[1])[None, :])
    received = np.where(able, pattern, 0).sum(0) / np.maximum(able.sum(0), 1)
    props = {
        "tokens": [html.escape(token) for token in tokens],
        "values": _rounded(received),
        "minValue": 0.0,
        "maxValue": round(float(received[1:].max(initial=1e-6)), 6),
        "positiveColor": "#0b5a94",
        "paddingBottom": 0,
    }
    return View("ColoredTokens", props, label)


def circuitsvis_script() -> str:
    """The JavaScript that CircuitsVis ships, which defines the global `CircuitsVis`.

    It is read as a file: importing the package would import torch, and its own HTML repeats the script in every view or
    points to a server.
    """
    spec = importlib.util.find_spec("circuitsvis")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("circuitsvis is not installed: the attention views need it (pip install circuitsvis)")
    return (Path(spec.submodule_search_locations[0]) / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")


def _scale(pattern: np.ndarray) -> float:
    return round(float(pattern[..., 1:].max(initial=1e-6)), 6)


def _rounded(values: np.ndarray) -> list[Any]:
    """Three digits are more than the eye sees, and a third of the bytes."""
    return np.round(np.nan_to_num(values.astype(float)), 3).tolist()
