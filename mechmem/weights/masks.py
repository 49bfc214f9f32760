"""Masks: which single weights an intervention may touch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from safetensors.torch import save_file
from torch import Tensor

from mechmem.data.bounds import LARGEST, Index, Seed, Share, check_bounds, checked
from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import ATTENTION, editable_parameters
from mechmem.weights.component_choice import choose_components
from mechmem.weights.counts_table import counts_table
from mechmem.weights.mask_choice import Head, Per, check_shapes, choose_largest, size
from mechmem.weights.tensor_files import check_indices, read_tensors, split_names
from mechmem.weights.unit_choice import largest_within, ranked_units


@dataclass(frozen=True)
class Mask:
    """Chosen weights of a model.

    Attributes:
        indices: parameter name -> sorted, distinct flat indices (row-major), int64 [chosen]. Parameters without any
            chosen weight are not listed.
        shapes: parameter name -> shape, for every parameter the choice was made among, chosen weights or not.

    Raises:
        InputError: an index is out of range, unsorted or doubled, or belongs to a parameter without a shape.
    """

    indices: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for name, shape in self.shapes.items():
            # Too many weights would overflow where they are counted.
            if not shape or min(shape) < 1 or math.prod(shape) > LARGEST:
                raise InputError(f"'{name}' has the shape {tuple(shape)}; need sizes of at least 1")
        for name, chosen in self.indices.items():
            if name not in self.shapes:
                raise InputError(f"the mask has indices for '{name}' and no shape; give the parameter's shape too")
            check_indices(name, chosen, size(self.shapes[name]))
        object.__setattr__(self, "indices", {n: i for n, i in sorted(self.indices.items()) if len(i)})

    def __repr__(self) -> str:
        return f"Mask({self.count:,} of {self.total:,} weights, in {len(self.indices)} of {len(self.shapes)} tensors)"

    def _repr_html_(self) -> str:
        return counts_table(repr(self), {name: len(chosen) for name, chosen in self.indices.items()})

    @property
    def count(self) -> int:
        """How many weights are chosen."""
        return sum(len(chosen) for chosen in self.indices.values())

    @property
    def total(self) -> int:
        """How many weights the parameters have together; a mask with `count == total` chooses everything."""
        return sum(size(shape) for shape in self.shapes.values())

    @staticmethod
    @checked
    def top(
        weights: Mapping[str, Tensor],
        *,
        fraction: Share,
        per: Per = "model",
        layers: Iterable[Index] | None = None,
        heads: Iterable[Head] | None = None,
        parameters: Iterable[str] | None = None,
    ) -> Mask:
        """The weights with the largest absolute value of a score, usually of the gradient.

        Of equal scores the one that comes first, by parameter name and flat index, is taken. The count is exact:
        `round(fraction * candidates)` of each group that is ranked together, at least one. Candidates are the weights
        that the restrictions leave; those narrow the choice together. `total` still counts all of `weights`, so masks
        made with different restrictions can be united and compared.

        Args:
            weights: parameter name -> score, element by element, as `weight_gradients` gives; compared in 32 bits.
            fraction: share of the candidates, 0 < fraction <= 1.
            per: what is ranked together: "model": all candidates; "tensor": those of each parameter by itself;
                "component": those of W_Q, W_K, W_V, W_O, W_in and W_out by themselves, over all layers.
            layers: only weights of these layers.
            heads: only W_Q, W_K, W_V and W_O of these (layer, head) pairs, so no MLP weight.
            parameters: only these, by name or by the last part of it, `["W_V", "W_O"]` for example.

        Raises:
            InputError: the fraction is out of range, a score is NaN, an unknown `per`, a place that the scores do not
                have, or restrictions that leave nothing.
        """
        chosen = choose_largest(weights, fraction, per, layers, heads, parameters)
        return Mask(chosen, {name: tuple(weights[name].shape) for name in sorted(weights)})

    @staticmethod
    @checked
    def random_like(mask: Mask, *, seed: Seed) -> Mask:
        """As many weights of every tensor as `mask` has there, drawn uniformly: a control of equal size."""
        generator = torch.Generator().manual_seed(seed)
        chosen = {
            name: torch.randperm(size(mask.shapes[name]), generator=generator)[: len(indices)].sort().values
            for name, indices in mask.indices.items()
        }
        return Mask(chosen, mask.shapes)

    @staticmethod
    def neurons(model: HookedTransformer, neurons: Iterable[tuple[int, int]]) -> Mask:
        """The weights into and out of some MLP neurons: a column of W_in and a row of W_out for each.

        Args:
            model: whose weights; the choice is made among all attention and MLP weights.
            neurons: (layer, neuron) pairs, zero-based, in any order.

        Raises:
            InputError: no pair, or one that the model does not have.
        """
        _check_places(neurons := list(neurons), "neuron", model.cfg.n_layers, model.cfg.d_mlp or 0)
        need: dict[str, list[Any]] = {}
        for layer, neuron in neurons:
            need.setdefault(f"blocks.{layer}.mlp.W_in", []).append((slice(None), neuron))
            need.setdefault(f"blocks.{layer}.mlp.W_out", []).append(neuron)
        return _of_places(model, need)

    @staticmethod
    def heads(model: HookedTransformer, heads: Iterable[tuple[int, int]]) -> Mask:
        """The weights W_Q, W_K, W_V and W_O of some heads.

        Args:
            model: whose weights; the choice is made among all attention and MLP weights.
            heads: (layer, head) pairs, zero-based, in any order.

        Raises:
            InputError: no pair, or one that the model does not have.
        """
        _check_places(heads := list(heads), "head", model.cfg.n_layers, model.cfg.n_heads)
        need: dict[str, list[Any]] = {}
        for layer, head in heads:
            for letter in ATTENTION:
                need.setdefault(f"blocks.{layer}.attn.W_{letter}", []).append(head)
        return _of_places(model, need)

    @staticmethod
    @checked
    def components(model: HookedTransformer, components: Iterable[str], *, biases: bool = False) -> Mask:
        """The weights of whole parts of the model, by name.

        Args:
            model: whose weights; the choice is made among all attention and MLP weights, and what is named beside them.
            components: "layer3"; "attn3" or "mlp3", a layer's half; "L3H1", a head; "neuron3.17"; "embed" (with the
                positions); "unembed" (with the last layer norm).
            biases: also their biases, and the layer norm in front of "attn" and "mlp". Gradient descent moves
                attention and MLP weights alone and refuses such a mask; `transplant` takes it.

        Raises:
            InputError: no name, or one that the model does not have.
        """
        return Mask(*choose_components(model, components, biases))

    @staticmethod
    @checked
    def top_units(
        model: HookedTransformer,
        scores: xr.DataArray,
        *,
        fraction: Share,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Mask:
        """The weights of the neurons or heads with the highest scores, up to a share of all weights.

        A localizer of units becomes a mask of the same size as `Mask.top` gives. The count is exact,
        `round(fraction * total)`: units are taken wholly, from the highest score on, and of the last one a part.

        Args:
            model: whose weights; the choice is made among all attention and MLP weights.
            scores: [layer, neuron], as `localize_neurons` gives, or [layer, head], as `attribute` at site "z" summed
                over positions. The sign counts: the highest first.
            fraction: share of all attention and MLP weights, 0 < fraction <= 1.
            weights: parameter name -> score of each weight, as `weight_gradients` gives: which weights of the last
                unit, by absolute value; None: the first.

        Raises:
            InputError: other dimensions, scores of another model, NaN, or a share that the units do not have.
        """
        kind, units, whole, rest = ranked_units(model, scores, fraction)
        make = Mask.neurons if kind == "neuron" else Mask.heads
        taken = [make(model, units[:whole])] if whole else []
        if rest:
            last = make(model, units[whole : whole + 1])
            taken.append(Mask(largest_within(last.indices, weights, rest), last.shapes))
        return taken[0] if len(taken) == 1 else taken[0].union(taken[1])

    def union(self, other: Mask) -> Mask:
        """Weights chosen by either.

        Raises:
            InputError: the masks are of models with different shapes; so too for `intersection` and `overlap`.
        """
        return Mask({n: torch.cat([a, b]).unique() for n, a, b in self._pairs(other)}, self.shapes)

    def intersection(self, other: Mask) -> Mask:
        """Weights chosen by both."""
        return Mask({n: a[torch.isin(a, b)] for n, a, b in self._pairs(other)}, self.shapes)

    def overlap(self, other: Mask) -> float:
        """Jaccard index: weights chosen by both, over weights chosen by either, 0 to 1."""
        either = self.union(other).count
        return self.intersection(other).count / either if either else 0.0

    def complement(self) -> Mask:
        """Weights that are not chosen, of the same parameters."""
        chosen = {}
        for name, shape in self.shapes.items():
            free = torch.ones(size(shape), dtype=torch.bool)
            free[self.indices.get(name, torch.zeros(0, dtype=torch.long)).cpu()] = False
            chosen[name] = free.nonzero().flatten()
        return Mask(chosen, self.shapes)

    def _pairs(self, other: Mask) -> Iterator[tuple[str, Tensor, Tensor]]:
        if dict(self.shapes) != dict(other.shapes):
            raise InputError("the two masks are over parameters of different names or shapes; make both on one model")
        none = torch.zeros(0, dtype=torch.long)
        for name in self.shapes:
            yield name, self.indices.get(name, none), other.indices.get(name, none)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with indices and shapes."""
        tensors = {f"indices.{name}": chosen.contiguous() for name, chosen in self.indices.items()}
        tensors |= {f"shape.{name}": torch.tensor(shape) for name, shape in self.shapes.items()}
        with replacing(path, size=sum(tensor.nbytes for tensor in tensors.values())) as temporary:
            save_file(tensors, temporary)

    @staticmethod
    def load(path: str | Path, model: HookedTransformer | None = None) -> Mask:
        """Read what `save` wrote.

        Args:
            path: the safetensors file.
            model: refuse a mask unless its parameters are this model's attention and MLP weights, all of them.

        Raises:
            InputError: no such file, not a mask, or a mask of another model.
        """
        tensors, _ = read_tensors(path, "Mask.save", "save the mask again")
        split = split_names(path, tensors, ("indices", "shape"), "Mask.save")
        indices = {name: tensors[key] for key, (kind, name) in split.items() if kind == "indices"}
        shapes = {name: tensors[key] for key, (kind, name) in split.items() if kind == "shape"}
        for name, shape in shapes.items():
            if shape.ndim != 1 or shape.dtype != torch.int64:
                raise InputError(f"{path}: the shape of '{name}' is {shape.dtype}; need int64: save the mask again")
        try:
            mask = Mask(indices, {name: tuple(shape.tolist()) for name, shape in shapes.items()})
        except InputError as error:
            raise InputError(f"{path}: is not a mask ({error}); save the mask again") from error
        if model is not None:
            check_shapes(mask.shapes, model)
            missing = editable_parameters(model).keys() - mask.shapes.keys()
            if missing:
                raise InputError(
                    f"{path}: the mask has no shape for '{min(missing)}', which the model has; the mask is of another "
                    "model: make it from this model's gradients"
                )
        return mask


def _check_places(places: list[Any], what: str, layers: int, width: int) -> None:
    places = [(check_bounds("layer", layer, int), check_bounds(what, number, int)) for layer, number in places]
    wrong = [place for place in places if not (0 <= place[0] < layers and 0 <= place[1] < width)]
    if wrong or not places:
        raise InputError(
            f"got {what}s {(wrong or places)[:4]}; need (layer, {what}) pairs with layer below {layers} and {what} "
            f"below {width}, counted from zero"
        )


def _of_places(model: HookedTransformer, need: Mapping[str, list[Any]]) -> Mask:
    shapes = {name: tuple(parameter.shape) for name, parameter in editable_parameters(model).items()}
    chosen = {}
    for name, places in need.items():
        flat = torch.arange(size(shapes[name])).view(shapes[name])
        chosen[name] = torch.cat([flat[place].flatten() for place in places]).unique()
    return Mask(chosen, shapes)
