"""What each function needs in order to give, of some paragraphs, what it gives of them among all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import xarray as xr

from mechmem.data.bounds import annotations_of, check_bounds
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.netcdf import UNNAMED
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.part_folder import ARRAY, AXIS, PartFolder
from mechmem.localize.ablated_runs import AblatedRuns
from mechmem.localize.ablation import HeadPart, ablate_heads, ablated_cells, head_changes
from mechmem.localize.ablation_runs import check_ablation
from mechmem.localize.patching import patch
from mechmem.measure.perturb import PerturbedRuns, mean_changes, perturb_prefix
from mechmem.model.lean.weights import unsupported
from mechmem.model.load import HookedTransformer

# How many paragraphs a result is of: in a part, how many the part is of.
COUNTS = ("paragraphs", "pairs")


@runtime_checkable
class Job(Protocol):
    """A function with its arguments, to be done some paragraphs at a time.

    Args:
        function: the public function.
        model: its first argument.
        sets: its paragraphs, row by row of each other where they are several.
        options: its other arguments.
    """

    def __init__(
        self, function: Callable[..., Any], model: HookedTransformer, sets: list[Paragraphs], options: dict[str, Any]
    ) -> None: ...

    def measure(self, rows: slice) -> xr.Dataset:
        """The result of some rows; what has no paragraphs is of these rows alone."""
        ...

    @staticmethod
    def summary(parts: PartFolder, own: list[xr.Dataset], sets: list[Paragraphs]) -> xr.Dataset:
        """What has no paragraphs, of all rows.

        Args:
            parts: all of them.
            own: what has no paragraphs, of each part.
            sets: as the job's.
        """
        ...


class PlainJob:
    """Any function whose rows do not depend on each other."""

    def __init__(
        self, function: Callable[..., Any], model: HookedTransformer, sets: list[Paragraphs], options: dict[str, Any]
    ) -> None:
        self._function, self._model, self._sets, self._options = function, model, sets, options

    def measure(self, rows: slice) -> xr.Dataset:
        """Call the function with these rows."""
        return as_part(
            self._function(self._model, *(each[rows] for each in self._sets), **self._options), self._function
        )

    @staticmethod
    def summary(parts: PartFolder, own: list[xr.Dataset], sets: list[Paragraphs]) -> xr.Dataset:  # noqa: ARG004
        """What is the same in all parts; counts are added."""
        for other in own[1:]:
            check_alike(own[0], other)
        counts = {name: sum(each.attrs[name] for each in own) for name in COUNTS if name in own[0].attrs}
        return own[0].assign_attrs(counts)


class PerturbJob:
    """`perturb_prefix`: replacements are drawn for all paragraphs at once."""

    def __init__(
        self, function: Callable[..., Any], model: HookedTransformer, sets: list[Paragraphs], options: dict[str, Any]
    ) -> None:
        known = inspect.signature(function).parameters.values()
        defaults = {each.name: each.default for each in known if each.default is not each.empty}
        self._runs = PerturbedRuns(model, *sets, **(defaults | options))

    def measure(self, rows: slice) -> xr.Dataset:
        """Perturb some rows."""
        return self._runs.measure(rows)

    @staticmethod
    def summary(parts: PartFolder, own: list[xr.Dataset], sets: list[Paragraphs]) -> xr.Dataset:
        """Profiles are averaged, and intervals are those of all paragraphs."""
        weights = [rows.stop - rows.start for rows in parts.rows]
        result = own[0].copy()
        for name in ("nll_profile", "match_profile"):
            result[name] = own[0][name].copy(data=np.average([part[name] for part in own], 0, weights))
        return result.assign(mean_changes(parts.joined("em_change"), sets[0]))


class PatchJob(PlainJob):
    """`patch`, without the mean over pairs."""

    def __init__(
        self, function: Callable[..., Any], model: HookedTransformer, sets: list[Paragraphs], options: dict[str, Any]
    ) -> None:
        if options.get("normalize"):
            raise InputError(
                "got normalize=True for a patch by parts; need it without: divide the result by source - base, which "
                "are in its attrs"
            )
        super().__init__(function, model, sets, keeping_paragraphs(options))

    @staticmethod
    def summary(parts: PartFolder, own: list[xr.Dataset], sets: list[Paragraphs]) -> xr.Dataset:
        """The metric of both runs is averaged over all pairs."""
        weights = [rows.stop - rows.start for rows in parts.rows]
        ends = {name: float(np.average([each.attrs[name] for each in own], 0, weights)) for name in ("base", "source")}
        return PlainJob.summary(parts, [each.assign_attrs(ends) for each in own], sets)


class AblateJob:
    """`ablate_heads`: what stands in for a head is taken from all paragraphs."""

    def __init__(
        self,
        function: Callable[..., Any],  # noqa: ARG002 - every job takes it
        model: HookedTransformer,
        sets: list[Paragraphs],
        options: dict[str, Any],
    ) -> None:
        keeping_paragraphs(options)
        how: dict[str, Any] = {"method": "mean", "site": "z", "seed": 0, "batch_size": None}
        how |= {name: value for name, value in options.items() if name in how}
        check_choice("site", how["site"], HeadPart)
        check_ablation(model, sets[0], how["method"])
        if reason := unsupported(model):
            raise InputError(f"{reason}; need a GPT-Neo, GPT-2 or GPT-NeoX: use ablate_heads without parts")
        self._model, self._cells = model, ablated_cells(model, options.get("heads"))
        self._runs, self._ids = AblatedRuns(model, sets[0], **how), sets[0].ids
        self._attrs = {name: how[name] for name in ("method", "site", "seed")}

    def measure(self, rows: slice) -> xr.Dataset:
        """Ablate every head for some rows."""
        changes = self._runs.changes(self._cells, rows=rows)
        result = head_changes(self._model, self._ids[rows], self._cells, changes)
        return result.assign_attrs(self._attrs | {"paragraphs": rows.stop - rows.start})

    summary = staticmethod(PlainJob.summary)


JOBS: Mapping[Callable[..., Any], type[Job]] = {perturb_prefix: PerturbJob, patch: PatchJob, ablate_heads: AblateJob}


def job_kind(function: Callable[..., Any]) -> type[Job]:
    """The class of a function's jobs."""
    return JOBS.get(function, PlainJob)


def checked_options(
    function: Callable[..., Any], model: HookedTransformer, sets: list[Paragraphs], options: dict[str, Any]
) -> dict[str, Any]:
    """The options of a call, if the function has them and they are within their bounds.

    Raises:
        TypeError: an option that the function does not have.
        InputError: an option out of its bounds.
    """
    inspect.signature(function).bind(model, *sets, **options)
    known = annotations_of(function)
    return {name: check_bounds(name, value, known.get(name)) for name, value in options.items()}


def keeping_paragraphs(options: dict[str, Any]) -> dict[str, Any]:
    """Options with average=False.

    Raises:
        InputError: the mean was asked for.
    """
    if options.get("average", False):
        raise InputError("got average=True for a result by parts; need average=False: take .mean('paragraph') of it")
    return options | {"average": False}


def as_part(result: Any, function: Callable[..., Any]) -> xr.Dataset:
    """A function's result as a Dataset, if it can be joined along its paragraphs.

    Raises:
        InputError: it has no such dimension.
    """
    if isinstance(result, xr.DataArray):
        name = UNNAMED if result.name is None else str(result.name)
        attrs = result.attrs | {ARRAY: name}
        result = result.drop_attrs(deep=False).to_dataset(name=name).assign_attrs(attrs)
    if not isinstance(result, xr.Dataset) or AXIS not in result.dims:
        what = f"dimensions {', '.join(map(str, result.dims))}" if isinstance(result, xr.Dataset) else type(result)
        raise InputError(
            f"{function.__name__} gives {what}; need a Dataset or DataArray with the dimension '{AXIS}', such as "
            "capture, perturb_prefix, patch, ablate_heads or paragraph_gradients give"
        )
    return result


def check_alike(one: xr.Dataset, other: xr.Dataset) -> None:
    """Refuse parts that differ in something that is not of single paragraphs.

    Raises:
        InputError: names it.
    """
    attrs = [{name: value for name, value in each.attrs.items() if name not in COUNTS} for each in (one, other)]
    names = [name for name in {**one.variables, **other.variables} if not _same(one.get(name), other.get(name))]
    names += [name for name in {**attrs[0], **attrs[1]} if not _equal(*(each.get(name) for each in attrs))]
    if names:
        raise InputError(
            f"'{names[0]}' differs between parts, so the result depends on which paragraphs are together; call the "
            "function on all of them"
        )


def _equal(one: Any, other: Any) -> bool:
    return np.array_equal(one, other)


def _same(one: xr.DataArray | None, other: xr.DataArray | None) -> bool:
    return one is not None and other is not None and one.identical(other)
