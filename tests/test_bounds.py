"""Every number of the public surface has bounds: nonsense is refused before anything is computed.

The parameters are found by their annotations, so one that is added without bounds fails here.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from annotated_types import Interval

import mechmem as mm
from mechmem.data.bounds import annotations_of
from mechmem.data.errors import InputError

LOOKED_UP = {("Mask", "shapes"), ("Stop.exceeded", "row"), ("edit_weights", "changes")}
SEVERAL = (tuple, list, Sequence, Iterable)


def public_callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function, class and method of a class, by name."""
    for name in mm.__all__:
        found = getattr(mm, name)
        if inspect.isclass(found):
            yield name, found
            yield from (
                (f"{name}.{method}", getattr(found, method))
                for method, value in vars(found).items()
                if not method.startswith("_") and callable(getattr(value, "__func__", value))
            )
        elif callable(found):
            yield name, found


def numbers_in(annotation: Any) -> list[tuple[type, Interval | None]]:
    """Every kind of number that an annotation takes, with its bounds."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (int, float):
        return [(annotation, None)]
    if origin is typing.Annotated and parts[0] in (int, float):
        return [(parts[0], next((part for part in parts[1:] if isinstance(part, Interval)), None))]
    # Functions that are given are called with numbers that nobody typed.
    if origin in (Literal, Callable):
        return []
    # Heads and neurons, (layer, head), are looked up in the model, by functions that say which there are.
    if origin is tuple and parts == (int, int):
        return []
    return [found for part in parts for found in numbers_in(part)]


def numeric_parameters() -> list[tuple[str, str, Any]]:
    """(callable, parameter, annotation) of all that take a number, alone or in a sequence; options included."""
    found = []
    for name, owner in public_callables():
        known = dict(annotations_of(owner))
        for annotation in list(known.values()):
            options = next(iter(typing.get_args(annotation)), None)
            known |= typing.get_type_hints(options, include_extras=True) if typing.is_typeddict(options) else {}
        found += [
            (name, parameter, annotation)
            for parameter, annotation in known.items()
            if parameter != "return" and numbers_in(annotation) and (name, parameter) not in LOOKED_UP
        ]
    return found


NUMBERS = numeric_parameters()


def sentence_of(owner: Callable[..., Any], parameter: str, value: Any) -> str:
    """How a call with this value ends; nothing else is given, so that nothing can be computed."""
    with pytest.raises(InputError) as error:
        if not dataclasses.is_dataclass(owner):
            owner(**{parameter: value})
        else:
            # As a user meets it: the checks that tests switch on would answer before the class does.
            made = object.__new__(typing.cast(Any, owner))
            for field in dataclasses.fields(owner):
                default = None if field.default is dataclasses.MISSING else field.default
                default = default if field.default_factory is dataclasses.MISSING else field.default_factory()
                object.__setattr__(made, field.name, value if field.name == parameter else default)
            made.__post_init__()
    return str(error.value)


def test_numbers_are_found():
    known = {(name, parameter) for name, parameter, _ in NUMBERS}
    assert {("Training", "steps"), ("cluster", "run"), ("attribute", "groups"), ("Mask.top", "fraction")} <= known
    assert len(known) > 100


@pytest.mark.parametrize(("name", "parameter", "annotation"), NUMBERS, ids=lambda value: str(value)[:40])
def test_nonsense_is_refused_for_every_number(name, parameter, annotation):
    owner = dict(public_callables())[name]
    ((kind, bounds),) = numbers_in(annotation)
    assert bounds is not None, "a number without bounds"
    several = any(typing.get_origin(part) in SEVERAL for part in (annotation, *typing.get_args(annotation)))
    nonsense: list[Any] = [] if bounds == Interval() else [-1]
    nonsense += [float("nan"), float("inf"), -float("inf"), True, "5", 1j, torch.tensor(5)]
    nonsense += [2**70, 50.0, np.float32(2), np.bool_(True)] if kind is int else [10**400, np.float64("nan")]
    nonsense += [0] if bounds.gt == 0 or bounds.ge == 1 else []
    for value in nonsense:
        # The check of annotations that tests switch on is within the function's own.
        said = sentence_of(owner, parameter, [value] if several else value)
        assert f" as {parameter}" in said and "; need" in said and "\n" not in said, f"{value!r}: {said}"
