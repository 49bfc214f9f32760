"""How every command begins and ends: numbers within their bounds, errors as sentences, Ctrl-C with what is true."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from typer.core import TyperGroup

from mechmem.cli.interrupts import noting_interrupts
from mechmem.data.bounds import annotations_of, bounds_of, check_bounds, range_in_words
from mechmem.data.errors import InputError
from mechmem.data.full_disk import is_full_disk

console, errors = Console(), Console(stderr=True)
GOES_ON = "stopped; the same command goes on from what is done"
STARTS_AGAIN = "stopped; the same command starts again"
# Commands that find their own unfinished work.
_going_on: set[str] = set()


class Commands(TyperGroup):
    """All commands: none can end in another way than they do here."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the command line."""
        with plain_endings(lambda: STARTS_AGAIN):
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        with plain_endings(lambda: GOES_ON if ctx.invoked_subcommand in _going_on else STARTS_AGAIN):
            return super().invoke(ctx)


class App(typer.Typer):
    """The program; what Typer does before it reads the command line takes a tenth of a second."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Read the command line and run the command."""
        try:
            return super().__call__(*args, **kwargs)
        except KeyboardInterrupt:
            errors.print(STARTS_AGAIN, style="yellow", highlight=False)
            sys.exit(130)


app = App(
    cls=Commands,
    help="What a language model memorized, where it sits, and what removing it does.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@contextmanager
def plain_endings(stopped: Callable[[], str]) -> Iterator[None]:
    """Bad input ends with its sentence and code 2, Ctrl-C with what `stopped` says and 130; warnings are sentences."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, RuntimeWarning | UserWarning):
            errors.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        for category in (RuntimeWarning, UserWarning):
            warnings.simplefilter("default", category)
        with noting_interrupts() as interrupted:
            try:
                yield
                if interrupted():
                    raise KeyboardInterrupt
            except BaseException as error:
                # Raised where the line was printed, or by a command that ends in its own way.
                if isinstance(error, typer.Exit) and (error.exit_code == 130 or not interrupted()):
                    raise
                # Libraries that are stopped while they are imported raise all kinds of errors instead.
                if interrupted() or isinstance(error, KeyboardInterrupt):
                    errors.print(stopped(), style="yellow", highlight=False)
                    raise typer.Exit(130) from None
                said = _sentence(error)
                if said is None:
                    raise
                errors.print(f"error: {said}", style="bold red", markup=False, highlight=False, soft_wrap=True)
                raise typer.Exit(2) from None


def _sentence(error: BaseException) -> str | None:
    """What is wrong outside this program; None for its own defects, which keep their traceback."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and is_full_disk(error):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}the disk is full; what was there is unchanged: free some space and run it again"
    return None


def command(*, goes_on: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command of its name; numbers are checked before it begins.

    A parameter annotated with a dataclass stands for that class's fields: options that several commands share.

    Args:
        goes_on: whether the same command, after it was stopped, finds what it had done.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        groups, options = _flattened(function)

        def run(**values: Any) -> None:
            for name, option in options.items():
                values[name] = check_bounds(_flag(name, option.annotation), values[name], option.annotation)
            for group, kind in groups.items():
                values[group] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
            function(**values)

        # Typer gets plain kinds: its own checks would let infinity pass, and say the others in other words.
        plain = [option.replace(annotation=_plain(option.annotation)) for option in options.values()]
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = inspect.Signature(plain)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in plain}
        if goes_on:
            _going_on.add(function.__name__)
        app.command()(run)
        return run

    return register


def _flattened(function: Callable[..., None]) -> tuple[dict[str, Any], dict[str, inspect.Parameter]]:
    """The groups among a command's parameters, and every option by name, those of groups included."""
    known = annotations_of(function)
    groups = {name: kind for name, kind in known.items() if dataclasses.is_dataclass(kind)}
    options: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in groups:
            options[parameter.name] = parameter.replace(annotation=known[parameter.name])
            continue
        kinds = annotations_of(groups[parameter.name])
        for field in dataclasses.fields(groups[parameter.name]):
            annotation, default = kinds[field.name], field.default
            options[field.name] = parameter.replace(name=field.name, annotation=annotation, default=default)
    return groups, options


def wrote(*paths: Path) -> None:
    """Say which files or folders were written."""
    for path in paths:
        console.print(f"Wrote {path.resolve()}", soft_wrap=True, highlight=False)


def _option(annotation: Any) -> Any:
    return next((extra for extra in getattr(annotation, "__metadata__", ()) if hasattr(extra, "param_decls")), None)


def _flag(name: str, annotation: Any) -> str:
    """What the user calls it."""
    option = _option(annotation)
    declared = (option.param_decls or ()) if option is not None else ()
    return next((flag for flag in declared if flag.startswith("--")), f"--{name.replace('_', '-')}")


def _plain(annotation: Any) -> Any:
    """An option's annotation without its bounds, which `--help` says in words instead."""
    option, bounds = _option(annotation), bounds_of(annotation)
    kind = get_type_hints(type("_", (), {"__annotations__": {"kind": annotation}}))["kind"]
    if option is None:
        return kind
    option = copy.copy(option)
    if option.help and bounds is not None:
        option.help += f" ({range_in_words(bounds)})"
    return Annotated[kind, option]
