"""The model card of an edited checkpoint: what was changed, by which settings, at what price."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.paragraphs import Paragraphs
from mechmem.model.load import HookedTransformer, provenance
from mechmem.model.public import public
from mechmem.weights.support import changed_weights

VERBS = {"unlearn": "trained to forget", "edit": "trained to continue differently", "memorize": "trained to memorize"}
# Variable of `evaluate` -> title, digits; each has dimensions [model, set] or [set].
SHOWN = {
    "em": ("EM", 1),
    "match_fraction": ("match, %", 1),
    "edit_distance": ("edit distance", 1),
    "perplexity": ("perplexity", 2),
    "kl": ("KL", 3),
    "changed_top1": ("changed top-1, %", 1),
}
# The same where an oracle was given.
BESIDE_ORACLE = {
    "p_extractable": ("p-extractable, %", 1),
    "oracle_kl": ("KL to the oracle", 3),
    "oracle_distance": ("distance", 2),
}
PERCENT = {"match_fraction", "changed_top1", "p_extractable"}


def paragraph_hashes(paras: Paragraphs) -> list[str]:
    """SHA-256 of each paragraph's ids, prefix and continuation, as 32-bit little-endian integers."""
    rows = paras.tokens.numpy().astype("<i4")
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows]


@public("refuse")
def edit_card(
    model: HookedTransformer,
    edited: HookedTransformer,
    targets: Paragraphs,
    *,
    settings: Mapping[str, Any],
    history: xr.Dataset | None = None,
    costs: xr.Dataset | None = None,
) -> str:
    """A README.md for `export`. What was removed is named by hash and never by its text.

    Args:
        model: the original.
        edited: the same after the edit.
        targets: the paragraphs that were meant.
        settings: of the edit; `kind` may be "unlearn", "edit" or "memorize". A text given by the user is left out.
        history: of the edit.
        costs: what `evaluate` returned.
    """
    known = provenance(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    verb = VERBS.get(str(settings.get("kind")), "edited on")
    lines = [
        "---",
        "library_name: transformers",
        "tags: [mechmem, model-editing]",
        "---",
        "",
        "# An edited language model",
        "",
        f"The model `{known.name}` (weights {known.weight_hash}) was {verb} {len(targets)} paragraphs with mechmem "
        f"{importlib.metadata.version('mechmem')}.{_outcome(history, targets)} "
        f"{changed_weights(model, edited):,} of its {total:,} weights differ "
        "from the original's; all others are the same bit for bit.",
        "",
        "## Settings",
        "",
        *(f"- {name}: {value}" for name, value in settings.items() if value is not None and name != "text"),
    ]
    if history is not None:
        lines.append(f"- ended by: {history.attrs.get('ended')}")
    if costs is not None:
        head, rows = cost_rows(costs)
        lines += [
            "",
            "## What it cost",
            "",
            "Before → after, with the 95 % interval after the edit, by cluster.",
        ]
        lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]
    lines += [
        "",
        "## Paragraphs",
        "",
        f"SHA-256 of the {targets.tokens.shape[1]} token ids of each, as 32-bit little-endian integers:",
        "",
        *(f"- `{digest}`" for digest in paragraph_hashes(targets)),
    ]
    return "\n".join(lines) + "\n"


def _outcome(history: xr.Dataset | None, targets: Paragraphs) -> str:
    """What the edit reached, as far as its history says: what was meant is not always what happened."""
    known = {} if history is None else history.attrs
    if "em_before" not in known or "em_after" not in known:
        return ""
    before, after = float(known["em_before"]), float(known["em_after"])
    change = "" if abs(after - before) >= 1 else " The edit did not do what it was meant to do."
    return (
        " The mean exact match of these texts (for a rewritten memory, of the new one) is "
        f"{before:.1f} of {targets.continuation_len} tokens before and {after:.1f} after."
        f"{change}"
    )


def cost_rows(costs: xr.Dataset, columns: Mapping[str, tuple[str, int]] = SHOWN) -> tuple[list[str], list[list[str]]]:
    """A table of what `evaluate` found: titles, and a row a set."""
    shown = {name: how for name, how in columns.items() if name in costs}
    rows = []
    for name in costs["set"].values:
        at = costs.sel({"set": name})
        rows.append([str(name), *(_cell(at, variable, digits) for variable, (_, digits) in shown.items())])
    return ["set", *(title for title, _ in shown.values())], rows


def _cell(costs: xr.Dataset, name: str, digits: int) -> str:
    factor = 100 if name in PERCENT else 1

    def number(value: xr.DataArray) -> str:
        return f"{factor * float(value):.{digits}f}"

    value = costs[name]
    interval = ""
    if f"{name}_low" in costs:
        low, high = (costs[f"{name}_{end}"] for end in ("low", "high"))
        ends = [end.sel(model="after") if "model" in end.dims else end for end in (low, high)]
        if all(np.isfinite(float(end)) for end in ends):
            interval = f" [{number(ends[0])}, {number(ends[1])}]"
    if "model" in value.dims:
        return f"{number(value.sel(model='before'))} → {number(value.sel(model='after'))}{interval}"
    return number(value) + interval
