"""The models that `show.diff` compares with the original: one, an edit, parts of an edit, or several by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer
from mechmem.weights.sparse_edit import Edit


def steps_of(original: HookedTransformer, edited: Any, scales: Sequence[float] | None) -> dict[str, Any]:
    """Each step's name with its model or edit, in the order of the slider.

    Raises:
        InputError: neither models nor edits, none of them, or scales beside several.
    """
    if isinstance(edited, Mapping):
        if scales is not None:
            raise InputError("got scales and several steps; need scales with one edit or edited model: omit them")
        wrong = [name for name, step in edited.items() if not isinstance(step, HookedTransformer | Edit)]
        if wrong or not edited:
            raise InputError(f"got steps {str(wrong or 'none'):.80}; need a model or an mm.Edit for each name")
        return {str(name): step for name, step in edited.items()}
    if not isinstance(edited, HookedTransformer | Edit):
        raise InputError(
            f"got {type(edited).__name__} as edited; need a model, an mm.Edit, or a dict of these by name: "
            "{'step 10': model, ...}"
        )
    if scales is None:
        return {"edited": edited}
    if not scales:
        raise InputError("got no scales; need some shares of the edit, such as scales=[0.25, 0.5, 1]")
    edit = edited if isinstance(edited, Edit) else Edit.between(original, edited)
    return {f"{scale:g} × the edit": edit.scaled(scale) for scale in scales}


@contextmanager
def model_of(original: HookedTransformer, step: HookedTransformer | Edit) -> Iterator[HookedTransformer]:
    """The model of a step, for a block: an edit acts in place, and the weights are back to their bits after it."""
    if isinstance(step, HookedTransformer):
        yield step
        return
    with step.applied(original) as model:
        yield model
