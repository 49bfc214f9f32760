"""The line below a picture: which model, which seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer, provenance


def facts(attrs: Mapping[str, Any], model: object = None, **more: Any) -> str:
    """Model name and seed where they are known, and more of the kind, in one line; "" if nothing is known.

    Args:
        attrs: of the result.
        model: whose result it is, where the caller has it.
        more: further facts, by name.
    """
    known = {"model": _name(model) or attrs.get("model"), "seed": attrs.get("seed")} | more
    said = [f"{name.replace('_', ' ')} {value}" for name, value in known.items() if value is not None]
    line = "; ".join(said)
    return f"{line[0].upper()}{line[1:]}." if line else ""


def _name(model: object) -> str | None:
    if not isinstance(model, HookedTransformer):
        return None
    try:
        found = provenance(model)
    except InputError:
        return None
    return f"{found.name} ({found.processing} weights)"
