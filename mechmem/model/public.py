"""The contract of every public function that takes a model: kinds of arguments, hooks, old names, progress.

A `HookedTransformer` may have hooks on it. A function either runs them or refuses the model; none ignores them. Each
public function declares which, with this decorator and nowhere else:

    @public("run")       # its result is what the model computes with its hooks
    @public("refuse")    # it reads or changes weights, or replays parts of the forward, which would ignore hooks
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, ParamSpec, TypeVar

from transformer_lens import HookedTransformer

from mechmem.data.argument_checks import check_paragraphs, check_sets
from mechmem.data.bounds import annotations_of, check_bounds
from mechmem.data.errors import InputError
from mechmem.data.progress import reporting
from mechmem.model.devices import check_device, check_dtype
from mechmem.model.hooks import refuse_hooks
from mechmem.model.model_lock import holding

P = ParamSpec("P")
R = TypeVar("R")
HookPolicy = Literal["run", "refuse"]


def public(
    hooks: HookPolicy, renamed: Mapping[str, str] | None = None, unused: Collection[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a public function that takes one or more models, and check its arguments when it is called.

    1. Arguments under their old names, and those without effect, are accepted, with a DeprecationWarning.
    2. `progress` becomes what it stands for (`mechmem.data.progress.reporting`): a bar for True, closed at the end.
    3. Arguments annotated as `HookedTransformer`, `Paragraphs` or another class of this package must be of this kind;
       the error says how to get one.
    4. Numbers must be within the bounds of their annotation (`mechmem.data.bounds`), and come as Python's own.
    5. With "refuse", no model may have hooks on it.
    6. The locks of its models are held from step 3 on: a second thread that uses one of them waits.

    Args:
        hooks: whether the function runs the hooks that are on a model, or refuses such a model.
        renamed: old name of an argument -> its name now; the next release drops the old names.
        unused: keyword arguments that had an effect once; whatever is given is dropped. The next release refuses them.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            _rename(function.__name__, renamed or {}, kwargs)
            _drop(function.__name__, unused, kwargs)
            given = signature.bind_partial(*args, **kwargs)
            # Held before hooks are looked for: those of another thread's work are gone when it is done.
            with reported(given.arguments), holding(*_models(given.arguments.values())):
                for name, value in given.arguments.items():
                    parameter = signature.parameters[name]
                    several = parameter.kind is inspect.Parameter.VAR_POSITIONAL
                    for each in value if several else (value,):
                        _check(function, name, parameter.annotation, each, hooks)
                    given.arguments[name] = check_bounds(name, value, annotations_of(function).get(name))
                return function(*given.args, **given.kwargs)

        @contextlib.contextmanager
        def reported(arguments: dict[str, Any]) -> Iterator[None]:
            if "progress" not in signature.parameters:
                yield
                return
            with reporting(arguments.get("progress"), function.__name__) as arguments["progress"]:
                yield

        typing.cast(Any, checked).hooks = hooks
        return checked

    return decorate


def check_kind(name: str, model: Any) -> None:
    """Refuse anything but a HookedTransformer.

    Raises:
        InputError: another kind of object; the message says how to get a model.
    """
    if not isinstance(model, HookedTransformer):
        raise InputError(
            f"got {type(model).__name__} as {name}; need a HookedTransformer: load one with mechmem.load_model(name or "
            "folder)"
        )


def _models(values: Iterable[Any]) -> list[HookedTransformer]:
    """The models among arguments, those in a mapping such as {"name": model} included."""
    inner = (each for value in values for each in (value.values() if isinstance(value, Mapping) else [value]))
    return [value for value in inner if isinstance(value, HookedTransformer)]


def _rename(function: str, renamed: Mapping[str, str], kwargs: dict[str, Any]) -> None:
    for old in [name for name in kwargs if name in renamed]:
        new = renamed[old]
        if new in kwargs:
            raise InputError(f"{function} got {old} and {new}, which are one argument; omit {old}")
        warnings.warn(f"{function}: {old} is called {new} now", DeprecationWarning, stacklevel=3)
        kwargs[new] = kwargs.pop(old)


def _drop(function: str, unused: Collection[str], kwargs: dict[str, Any]) -> None:
    for name in [name for name in kwargs if name in unused]:
        warnings.warn(f"{function}: {name} has no effect any more; omit it", DeprecationWarning, stacklevel=3)
        del kwargs[name]


def _check(function: Callable[..., Any], name: str, annotation: Any, value: Any, hooks: HookPolicy) -> None:
    # Annotations are strings where a module postpones them.
    kind = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if value is None and kind.endswith("| None"):
        return
    kind = kind.removesuffix("| None").strip().rsplit(".", 1)[-1]
    if kind == "HookedTransformer":
        check_kind(name, value)
        if hooks == "refuse":
            refuse_hooks(value, function.__name__)  # pyright: ignore[reportArgumentType]
    elif kind == "Paragraphs":
        check_paragraphs(name, value)
    elif kind == "Mapping[str, Paragraphs]":
        check_sets(name, value)
    elif kind == "dtype":
        check_dtype(value)
    elif name == "device":
        check_device(value)
    else:
        _check_noun(name, value, inspect.unwrap(function).__globals__.get(kind))


def _check_noun(name: str, value: Any, noun: Any) -> None:
    """Refuse another kind where the annotation names a class of this package, such as Mask, Edit or Training."""
    if inspect.isclass(noun) and noun.__module__.startswith("mechmem.") and not isinstance(value, noun):
        raise InputError(f"got {type(value).__name__} as {name}; need a mechmem.{noun.__name__}")
