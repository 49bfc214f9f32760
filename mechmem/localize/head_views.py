"""One head's attention patterns on some paragraphs of each set, to look at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.capture import capture
from mechmem.model.load import HookedTransformer


def viewed_sets(
    memorized: Paragraphs, other: Paragraphs, perturbed: Paragraphs | None, examples: int
) -> dict[str, Paragraphs]:
    """The paragraphs of each set that are shown; perturbed ones in the order of their originals.

    Raises:
        InputError: perturbed paragraphs of another length, or none of these memorized ones.
    """
    if perturbed is None:
        sets = {"memorized": memorized, "other": other}
        return {name: paragraphs.select(np.arange(min(examples, len(paragraphs)))) for name, paragraphs in sets.items()}
    if perturbed.tokens.shape[1] != memorized.tokens.shape[1]:
        raise InputError(
            f"got perturbed paragraphs of {perturbed.tokens.shape[1]} tokens and memorized ones of "
            f"{memorized.tokens.shape[1]}; need one length: take worst_perturbations of the memorized ones"
        )
    place = {paragraph: row for row, paragraph in enumerate(perturbed.ids.tolist())}
    known = [row for row, paragraph in enumerate(memorized.ids.tolist()) if paragraph in place][:examples]
    if not known:
        raise InputError(
            "got perturbed paragraphs with none of the memorized paragraphs' ids; need the corrupt side of "
            "worst_perturbations of these"
        )
    chosen = memorized.select(known)
    return {
        "memorized": chosen,
        "perturbed": perturbed.select([place[paragraph] for paragraph in chosen.ids.tolist()]),
        "other": other.select(np.arange(min(examples, len(other)))),
    }


def head_views(model: HookedTransformer, sets: Mapping[str, Paragraphs], head: tuple[int, int]) -> xr.Dataset:
    """The head's attention patterns on all paragraphs of each set.

    Args:
        model: left as it is.
        sets: name -> paragraphs, all of one length.
        head: layer and head.

    Returns:
        pattern [view, query_pos, key_pos], with the coordinates view_set, paragraph_id [view], token and text
        [view, key_pos].
    """
    parts = []
    for name, paragraphs in sets.items():
        seen = capture(model, paragraphs, "pattern", layers=head[0], heads=head[1]).isel(layer=0, head=0, drop=True)
        parts.append(
            xr.Dataset(
                {"pattern": (("view", "query_pos", "key_pos"), seen.pattern.values, seen.pattern.attrs)},
                {
                    "set": ("view", [name] * len(paragraphs)),
                    "paragraph_id": ("view", paragraphs.ids),
                    "token": (("view", "key_pos"), seen.key_token.values),
                    "text": (("view", "key_pos"), seen.key_text.values),
                },
            )
        )
    views = xr.concat(parts, "view")
    return views.rename({"set": "view_set"}).assign_coords(
        query_pos=np.arange(views.sizes["query_pos"]), key_pos=np.arange(views.sizes["key_pos"])
    )
