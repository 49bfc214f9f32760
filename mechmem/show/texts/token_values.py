"""Numbers of tokens, from what functions here return or from any array, as [paragraph, pos] with what they mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from mechmem.data.errors import InputError
from mechmem.data.paragraph_ids import aligned
from mechmem.data.paragraphs import Paragraphs

# What `higher` says where a large value is the bad end: less of the text is there.
WORSE = re.compile(
    r"^(less (memorized|survives|is still there|has come back|of the text|likely)|more damage)|raises the NLL"
    r"|less (likely|expected)",
    re.IGNORECASE,
)
NAMES = {"token_nll": "NLL", "match": "first choice"}


@dataclass(frozen=True)
class TokenValues:
    """A number of each token.

    Attributes:
        values: NaN where there is none.
        name: a few words.
        units: of the values; "": none.
        higher: what a higher value means; "": unknown.
        is_match: they say yes (1) or no (0): the token is the model's first choice.
    """

    values: Float[np.ndarray, "paragraph pos"]
    name: str
    units: str
    higher: str
    is_match: bool = False

    @property
    def blue_is_high(self) -> bool:
        """Whether the end that is better, or not known to be worse, is the high one."""
        return not WORSE.search(self.higher)


def token_values(given: Any, paragraphs: Paragraphs, variable: str | None, name: str = "values") -> TokenValues:
    """Values for every position of these paragraphs.

    Args:
        given: a Dataset or DataArray with dimensions paragraph and pos (or key_pos), found by ids where it has them, or
            an array [paragraph, pos] of as many positions as the paragraphs have.
        paragraphs: whose tokens are shown.
        variable: of a Dataset; None: token_nll.
        name: the argument, as the caller knows it.

    Raises:
        InputError: dimensions or sizes that do not fit, values that are no numbers, or a variable that is not there.
    """
    if isinstance(given, xr.Dataset):
        given = _variable(given, variable, name)
    elif variable is not None:
        raise InputError(f"got variable={variable!r} and no Dataset as {name}; omit it")
    if isinstance(given, xr.DataArray):
        return _of_labelled(given, paragraphs, name)
    rows, length = paragraphs.tokens.shape
    array = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given)
    if array.shape != (rows, length):
        raise InputError(
            f"got {name} of shape {array.shape} for {rows} paragraphs of {length} tokens; need ({rows}, {length}), "
            "with NaN where there is none, or a DataArray whose coordinate pos says which tokens it is about"
        )
    return TokenValues(_numbers(array, name), "value", "", "", array.dtype.kind == "b")


def _variable(given: xr.Dataset, variable: str | None, name: str) -> xr.DataArray:
    fitting = [str(key) for key, array in given.items() if {"paragraph", "pos"} <= set(map(str, array.dims))]
    chosen = "token_nll" if variable is None else variable
    if chosen not in given:
        raise InputError(
            f"got {name} without '{chosen}'; need variable= one of {', '.join(fitting) or 'none that fits'}, or what "
            "mechmem.score returned"
        )
    return given[chosen]


def _of_labelled(given: xr.DataArray, paragraphs: Paragraphs, name: str) -> TokenValues:
    array = given.squeeze([dim for dim, size in given.sizes.items() if size == 1 and dim not in ("paragraph", "pos")])
    if "pos" not in array.dims and "key_pos" in array.dims and "query_pos" not in array.dims:
        array = array.rename(key_pos="pos")
    if "paragraph" not in array.dims and len(paragraphs) == 1:
        array = array.drop_vars("paragraph", errors="ignore").expand_dims("paragraph")
    if set(array.dims) != {"paragraph", "pos"}:
        extra = [str(dim) for dim in array.dims if dim not in ("paragraph", "pos")]
        advice = f"choose one, {name}.sel({extra[0]}=0), or average" if extra else "one value for each token"
        raise InputError(
            f"got {name} with dimensions {', '.join(map(str, array.dims)) or 'none'}; need paragraph and pos: {advice}"
        )
    array = array.transpose("paragraph", "pos")
    if "paragraph" in array.coords:
        array = aligned(array, paragraphs)
    rows, length = paragraphs.tokens.shape
    places = array.pos.values if "pos" in array.coords else np.arange(array.sizes["pos"])
    if array.sizes["paragraph"] != rows or len(places) == 0 or places.min() < 0 or places.max() >= length:
        raise InputError(
            f"got {name} of {array.sizes['paragraph']} paragraphs and positions {places[:1]} to {places[-1:]} for "
            f"{rows} paragraphs of {length} tokens; need values of these tokens"
        )
    values = np.full((rows, length), np.nan)
    values[:, places] = _numbers(array.values, name)
    attrs = {key: str(given.attrs.get(key, "")) for key in ("units", "higher")}
    known = str(given.name or "")
    units = "" if attrs["units"] == "1" else attrs["units"]
    is_match = array.dtype.kind == "b" or known == "match"
    return TokenValues(values, NAMES.get(known, known or "value"), units, attrs["higher"], is_match)


def _numbers(array: np.ndarray, name: str) -> Float[np.ndarray, "paragraph pos"]:
    if array.dtype.kind not in "biuf":
        raise InputError(f"got {name} of {array.dtype}; need numbers")
    values = array.astype(float)
    if np.isinf(values).any():
        raise InputError(f"got infinite numbers as {name}; need finite ones, or NaN where there is none")
    return values
