"""Numbers with bounds, declared once each: for functions, for frozen settings and for the command line.

A parameter `steps: Count` is a whole number of at least 1 wherever it is given. Functions check such parameters with
`@checked` or `@mechmem.model.public.public`, settings with `check_fields(self)`; all of them end in `check_bounds`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import numbers
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from annotated_types import Interval
from typing_extensions import Unpack

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.progress import reporting

P = ParamSpec("P")
R = TypeVar("R")
# The largest number that NumPy, torch and files hold as an integer.
LARGEST = 2**63 - 1
SEVERAL = (tuple, list, Sequence, Collection, Iterable)

Count = Annotated[int, Interval(ge=1, le=LARGEST)]
Size = Annotated[int, Interval(ge=0, le=LARGEST)]
Seed = Annotated[int, Interval(ge=0, le=LARGEST)]
# A layer, head, neuron or position, counted from zero.
Index = Annotated[int, Interval(ge=0, le=LARGEST)]
Share = Annotated[float, Interval(gt=0, le=1)]
# A share that may be zero: the threshold of a filter.
Proportion = Annotated[float, Interval(ge=0, le=1)]
# A confidence level: neither end has an interval.
Level = Annotated[float, Interval(gt=0, lt=1)]
Rate = Annotated[float, Interval(gt=0)]
# A weight of a term, a scale, a threshold in tokens or nats: zero is allowed.
Amount = Annotated[float, Interval(ge=0)]
# Any finite number, below zero as well.
Factor = Annotated[float, Interval()]


def check_bounds(name: str, value: Any, annotation: Any) -> Any:
    """The value as a plain number, if its annotation allows it; what the annotation says nothing about is not checked.

    Args:
        name: the argument, as the caller knows it.
        value: what was given. NumPy's numbers count as Python's; a truth value is no number, and 50.0 is not whole.
        annotation: a type, one with bounds, a `Literal`, a union, or a tuple or sequence of these.

    Raises:
        InputError: another kind of value, one out of its bounds, or one that is not finite.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = next((extra for extra in arguments[1:] if isinstance(extra, Interval)), None)
        return _number(name, value, arguments[0], bounds) if bounds else check_bounds(name, value, arguments[0])
    if annotation in (int, float):
        return _number(name, value, annotation, None)
    if origin in (typing.Union, types.UnionType):
        return _one_of(name, value, arguments)
    if origin is Literal:
        check_choice(name, value, annotation)
    elif origin is Unpack:
        options = typing.get_type_hints(arguments[0], include_extras=True)
        return {option: check_bounds(option, given, options.get(option)) for option, given in value.items()}
    elif annotation is bool or annotation is str:
        return _plain_kind(name, value, annotation)
    elif origin in SEVERAL:
        return _items(name, value, origin, arguments)
    elif inspect.isclass(annotation) and annotation.__module__.startswith("xarray."):
        if not isinstance(value, annotation):
            result = annotation.__name__
            raise InputError(
                f"got {type(value).__name__} as {name}; need the {result} that a function of mechmem returned"
            )
    return value


def check_fields(settings: Any) -> None:
    """Check every field of a frozen dataclass, in `__post_init__`, and keep the values as plain numbers.

    Raises:
        InputError: names the first field that is wrong.
    """
    for field in fields(settings):
        annotation, value = annotations_of(type(settings)).get(field.name), getattr(settings, field.name)
        value = check_bounds(field.name, value, annotation)
        kinds = (annotation, *typing.get_args(annotation))
        inner = [kind for kind in kinds if inspect.isclass(kind) and is_dataclass(kind)]
        if inner and not isinstance(value, tuple(inner)) and (value is not None or annotation in inner):
            raise InputError(f"got {_shown(value)} as {field.name}; need a mechmem.{inner[0].__name__}")
        object.__setattr__(settings, field.name, value)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check a function's arguments when it is called; for functions of a model, `public` does the same."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checks(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind_partial(*args, **kwargs)
        for name, value in bound.arguments.items():
            bound.arguments[name] = check_bounds(name, value, annotations_of(function).get(name))
        if "progress" not in signature.parameters:
            return function(*bound.args, **bound.kwargs)
        with reporting(bound.arguments.get("progress"), function.__name__) as report:
            bound.arguments["progress"] = report
            return function(*bound.args, **bound.kwargs)

    return checks


@functools.cache
def annotations_of(owner: Any) -> dict[str, Any]:
    """Annotations of a function or class as types; modules postpone them. Those of type checkers alone are left out."""
    found: dict[str, Any] = {}
    for inner in reversed(owner.__mro__[:-1]) if inspect.isclass(owner) else [inspect.unwrap(owner)]:
        known = vars(sys.modules[inner.__module__])
        for name, annotation in inspect.get_annotations(inner).items():
            with contextlib.suppress(NameError, AttributeError, TypeError):
                found[name] = eval(annotation, known) if isinstance(annotation, str) else annotation
    return found


def bounds_of(annotation: Any) -> Interval | None:
    """The bounds of an annotation, or of what it takes beside None."""
    for extra in getattr(annotation, "__metadata__", ()):
        if isinstance(extra, Interval):
            return extra
    inner = (*typing.get_args(annotation)[:1], *typing.get_args(getattr(annotation, "__origin__", None)))
    return next((found for each in inner if (found := bounds_of(each)) is not None), None)


def range_in_words(bounds: Interval, value: Any = 0) -> str:
    """The range in words: "at least 1", "above 0 and at most 1"."""
    ends = [f"at least {bounds.ge}"] if bounds.ge is not None else []
    ends += [f"above {bounds.gt}"] if bounds.gt is not None else []
    # What nobody exceeds by a slip is not said before it happens.
    ends += [f"at most {bounds.le}"] if bounds.le is not None and (bounds.le != LARGEST or value > LARGEST) else []
    ends += [f"below {bounds.lt}"] if bounds.lt is not None else []
    return " and ".join(ends)


def _needed(kind: Any, bounds: Interval | None, value: Any) -> str:
    words = range_in_words(bounds, value) if bounds is not None else ""
    of = "of " if words.startswith("at") else ""
    return f"a {'whole' if kind is int else 'finite'} number {of}{words}".strip()


def _number(name: str, value: Any, kind: Any, bounds: Interval | None) -> Any:
    plain: Any = None
    if isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            plain = typing.cast(Any, kind)(value)
    if plain is None or (kind is float and not math.isfinite(plain)) or not _within(plain, bounds):
        raise InputError(f"got {_shown(value)} as {name}; need {_needed(kind, bounds, plain or 0)}")
    return plain


def _within(value: Any, bounds: Any) -> bool:
    if bounds is None:
        return True
    low = (bounds.ge is None or value >= bounds.ge) and (bounds.gt is None or value > bounds.gt)
    return low and (bounds.le is None or value <= bounds.le) and (bounds.lt is None or value < bounds.lt)


def _one_of(name: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    """The value as the first of a union's kinds that takes it."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    refused: list[tuple[bool, InputError]] = []
    for kind in kinds:
        if inspect.isclass(kind) and kind not in (int, float, bool, str):
            if isinstance(value, kind):
                return value
            continue
        try:
            return check_bounds(name, value, kind)
        except InputError as error:
            refused.append((several == (typing.get_origin(kind) in SEVERAL), error))
    if refused:
        # What is said is about the kind that was meant, if that can be told.
        raise next((error for alike, error in refused if alike), refused[0][1])
    return value


def _plain_kind(name: str, value: Any, kind: type) -> Any:
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    # NumPy's truth values are bools of another class; importing it here would slow every `mechmem --help`.
    if not isinstance(value, kind) and not (kind is bool and type(value).__name__ in ("bool", "bool_")):
        raise InputError(f"got {_shown(value)} as {name}; need {'True or False' if kind is bool else 'text'}")
    return kind(value)


def _items(name: str, value: Any, origin: Any, arguments: tuple[Any, ...]) -> Any:
    """A sequence whose items are checked, as a tuple where it was annotated as one, or else as a list."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InputError(f"got {_shown(value)} as {name}; need several values: [value, ...]")
    try:
        items = getattr(value, "tolist", lambda: list(value))()
    except (RuntimeError, TypeError) as error:  # a tensor without numbers, a scalar that says it can be iterated
        raise InputError(f"got {type(value).__name__} as {name}, which gives no values ({error})") from None
    fixed = origin is tuple and Ellipsis not in arguments
    if fixed and len(items) != len(arguments):
        raise InputError(f"got {len(items)} values as {name}; need {len(arguments)}")
    kinds = arguments if fixed else arguments[:1] * len(items)
    items = [check_bounds(f"{name}[{i}]", item, kind) for i, (item, kind) in enumerate(zip(items, kinds, strict=True))]
    return tuple(items) if origin is tuple else items


def _shown(value: Any) -> str:
    """A value for a message: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    plain = getattr(value, "item", lambda: value)() if isinstance(value, numbers.Number) else value
    return reprlib.repr(plain) if isinstance(plain, int | float | str | None) else type(value).__name__
