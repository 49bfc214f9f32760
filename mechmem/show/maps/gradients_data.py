"""What gradient functions return, by component or by position, with its sign and its words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import xarray as xr

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.model.sites import REDUCTIONS, Reduction, component_grid, component_parts
from mechmem.show.maps.effects_data import Reading

NEEDED = (
    "need what mechmem.parameter_gradients, paragraph_gradients, weight_gradients, contrastive_gradients or "
    "activation_gradients returned"
)
DONE = {"max": "Largest absolute value", "sum": "Sum of the absolute values", "norm": "Euclidean norm"}


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of one set.

    Attributes:
        kind: by component, [paragraph, layer, component], or of activations, [paragraph, layer, head, pos].
        values: with or without paragraph; none of components is below zero.
        title: one line.
        what: a word for the numbers.
        units: "" for none.
        higher: what a high value means, in a sentence.
        signed: whether zero is in the middle.
        attrs: of the result.
    """

    kind: Literal["component", "activation"]
    values: xr.DataArray
    title: str
    what: str
    units: str
    higher: str
    signed: bool
    attrs: Mapping[str, Any]

    @property
    def cells(self) -> dict[str, int]:
        """Sizes of all dimensions but paragraph."""
        return {str(dim): size for dim, size in self.values.sizes.items() if dim != "paragraph"}

    @property
    def colours(self) -> str:
        """What colours mean, for gradients of activations."""
        if self.signed:
            return "Blue: the activation makes the text more likely (below zero); orange: less likely."
        return "Colours by the square root; without colour: 0."

    def of(self, paragraph: int | None) -> xr.DataArray:
        """One paragraph's, by place, or the mean."""
        if "paragraph" not in self.values.dims:
            return self.values
        return (
            self.values.mean("paragraph", keep_attrs=True)
            if paragraph is None
            else self.values.isel(paragraph=paragraph)
        )

    def reading(self, title: str, values: xr.DataArray) -> Reading:
        """As cells of a heatmap by position."""
        if self.signed:
            return Reading(title, "", values, blue="lower")
        return Reading(title, "", values, kind="root", whole="max")


def gradients_of(name: str, given: Any, reduction: str | None) -> Gradients:
    """The gradients that were given.

    Args:
        name: the argument, as the caller knows it.
        given: an array, or a value for each weight.
        reduction: of the latter.

    Raises:
        InputError: something else, or a reduction where there is nothing to reduce.
    """
    if isinstance(given, Mapping):
        return _of_weights(name, given, "max" if reduction is None else reduction)
    if reduction is not None:
        raise InputError(f"got reduction={reduction!r} and gradients by component or position; leave reduction out")
    if not isinstance(given, xr.DataArray):
        raise InputError(f"got {type(given).__name__} as {name}; {NEEDED}")
    dims = {str(dim) for dim in given.dims} - {"paragraph"}
    attrs = {str(key): value for key, value in given.attrs.items()}
    units = str(attrs.get("units", ""))
    higher = f"Higher: {attrs['higher']}." if "higher" in attrs else ""
    if dims == {"layer", "component"}:
        how = DONE.get(str(attrs.get("reduction")), "")
        higher = f"{how} of the gradient in each component. {higher}" if how else higher
        return Gradients(
            "component", given, "Gradients by component", "size of the gradient", units, higher, False, attrs
        )
    if "layer" in dims and "pos" in dims and dims <= {"layer", "head", "pos"}:
        method = str(attrs.get("method", given.name or "gradient"))
        title = f"Gradients of {attrs.get('site', 'activations')}"
        what = method.replace("_", " ")
        return Gradients("activation", given, title, what, units, higher, method != "gradient", attrs)
    raise InputError(f"got {name} with {dict(given.sizes)}; {NEEDED}")


def _of_weights(name: str, given: Mapping[str, Any], reduction: str) -> Gradients:
    check_choice("reduction", reduction, Reduction)
    if not given or not all(isinstance(value, torch.Tensor) for value in given.values()):
        raise InputError(f"got {name} without tensors; {NEEDED}")
    reduce = REDUCTIONS[reduction]
    sizes = {key: reduce(component_parts(key, value.detach()).double()).tolist() for key, value in given.items()}
    higher = f"{DONE[reduction]} of the weights' scores in each component, in the scores' own unit."
    return Gradients(
        "component", component_grid(sizes), "Scores of weights by component", "size", "", higher, False, {}
    )
