"""An edit: the weights that changed, their new values, and the model of which they are; a small file."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mechmem.data.bounds import Factor, check_bounds, checked
from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.model.load import HookedTransformer, provenance
from mechmem.model.model_lock import holding
from mechmem.weights.edit_table import edit_table
from mechmem.weights.support import moved, tensor_pairs
from mechmem.weights.tensor_files import check_indices, read_tensors, split_names

SOURCE, STRENGTH = "source", "strength"


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """What an edit changed, bit for bit.

    Attributes:
        places: parameter name -> flat indices of its changed weights; None: all of them.
        values: parameter name -> their new values, flat; where all changed, in the parameter's shape.
        source: which weights were edited: a hash of them, and how they were processed.
        notes: short texts that are kept with it.
        strength: share of the way from the original weights to the new values; 1: the values themselves.

    Raises:
        InputError: places and values that do not belong together, indices that are not sorted and distinct, or values
            that are not finite.
    """

    places: Mapping[str, Tensor | None]
    values: Mapping[str, Tensor]
    source: str
    notes: Mapping[str, str] = field(default_factory=dict)
    strength: Factor = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", check_bounds("strength", self.strength, Factor))
        if odd := sorted(self.places.keys() ^ self.values.keys()):
            raise InputError(f"'{odd[0]}' has places or values alone; need both of each parameter")
        for name, index in self.places.items():
            values = self.values[name]
            if index is not None:
                check_indices(name, index)
                if values.shape != index.shape:
                    raise InputError(f"'{name}' has {list(values.shape)} values for {len(index)} places; need as many")
            if not values.is_floating_point() or not bool(values.isfinite().all()):
                raise InputError(f"'{name}' has values of {values.dtype} that are not finite weights")

    def __repr__(self) -> str:
        strength = "" if self.strength == 1 else f" at strength {self.strength:g}"
        return f"Edit({self.count:,} weights of {len(self.values)} tensors{strength}, of the model {self.source})"

    def _repr_html_(self) -> str:
        return edit_table(self)

    def __or__(self, other: Edit) -> Edit:
        """Both edits as one.

        Raises:
            InputError: edits of different models or strengths, or that give a weight different values.
        """
        return union(self, other)

    @checked
    def scaled(self, factor: Factor) -> Edit:
        """The same edit, more or less of it: 0.5 moves each weight half as far, -1 the other way.

        Raises:
            InputError: a factor that is not a finite number.
        """
        return replace(self, strength=self.strength * factor)

    @property
    def count(self) -> int:
        """How many weights it sets; some keep their bits where most of a tensor changed."""
        return sum(values.numel() for values in self.values.values())

    @staticmethod
    def between(original: HookedTransformer, edited: HookedTransformer, notes: Mapping[str, str] | None = None) -> Edit:
        """The weights in which two models differ in any bit.

        Raises:
            InputError: two models of different tensors.
        """
        with holding(original, edited):
            return Edit._between(original, edited, notes)

    @staticmethod
    def _between(original: HookedTransformer, edited: HookedTransformer, notes: Mapping[str, str] | None) -> Edit:
        places: dict[str, Tensor | None] = {}
        values: dict[str, Tensor] = {}
        for name, before, after in tensor_pairs(original, edited):
            changed = moved(before, after).nonzero().flatten().cpu()
            # An index takes twice the room of a weight.
            if 3 * len(changed) > after.numel():
                places[name], values[name] = None, after.detach().cpu().clone().contiguous()
            elif len(changed):
                places[name], values[name] = changed, after.detach().cpu().reshape(-1)[changed].clone()
        return Edit(places, values, _source(original), dict(notes or {}))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all: kilobytes for a sparse edit."""
        tensors: dict[str, Tensor] = {}
        for name, values in self.values.items():
            index = self.places[name]
            if index is None:
                tensors[f"whole.{name}"] = values
            else:
                tensors |= {f"place.{name}": index, f"value.{name}": values}
        with replacing(path, size=sum(tensor.nbytes for tensor in tensors.values())) as temporary:
            kept = {SOURCE: self.source} | ({} if self.strength == 1 else {STRENGTH: repr(self.strength)})
            save_file(tensors, temporary, metadata=dict(self.notes) | kept)

    @staticmethod
    def load(path: str | Path) -> Edit:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or one that `save` did not write.
        """
        tensors, notes = read_tensors(path, "Edit.save", "make the edit again")
        if SOURCE not in notes:
            raise InputError(f"{path}: is not an edit; need a file that Edit.save wrote")
        places: dict[str, Tensor | None] = {}
        values: dict[str, Tensor] = {}
        split = split_names(path, tensors, ("place", "value", "whole"), "Edit.save")
        for key, (kind, name) in sorted(split.items()):
            if kind == "place":
                places[name] = tensors[key]
            elif name in values or (kind == "whole" and name in places):
                raise InputError(f"{path}: holds the values of '{name}' twice; make the edit again")
            else:
                values[name] = tensors[key]
                if kind == "whole":
                    places[name] = None
        source, strength = notes.pop(SOURCE), notes.pop(STRENGTH, "1")
        try:
            return Edit(places, values, source, notes, float(strength))
        except ValueError as error:
            raise InputError(f"{path}: is damaged or was changed ({error}); make the edit again") from error

    def apply(self, model: HookedTransformer) -> HookedTransformer:
        """A copy of the original with the edit; the model given is unchanged.

        Raises:
            InputError: the model has other weights than the one that was edited, or has this edit already.
        """
        with holding(model):
            self._check(model)
            edited = copy.deepcopy(model)
        _put(edited, self.places, self._new(edited))
        return edited

    @contextmanager
    def applied(self, model: HookedTransformer) -> Iterator[HookedTransformer]:
        """Edit a model in place; after the block every weight has its former bits, whatever happened in it.

        The block holds the model's lock: other threads that use the model wait. Blocks of different edits may be
        nested.

        Raises:
            InputError: the model has other weights than the one that was edited, or has this edit already.
        """
        with holding(model):
            self._check(model)
            state, former = model.state_dict(), {}
            for name, index in self.places.items():
                former[name] = _chosen(state[name], index).clone()
            new = self._new(model)
            try:
                _put(model, self.places, new)
                yield model
            finally:
                _put(model, self.places, former)

    def _check(self, model: HookedTransformer) -> None:
        own = _source(model)
        if self.source != own:
            raise InputError(
                f"got an edit of the weights {self.source} for a model of the weights {own}; load the model that was "
                "edited"
            )
        state = model.state_dict()
        for name, index in self.places.items():
            values, known = self.values[name], state.get(name)
            if known is None or known.dtype != values.dtype:
                raise InputError(
                    f"got an edit of '{name}' as {values.dtype}, which the model has as "
                    f"{'none' if known is None else known.dtype}; load the model that was edited, with its dtype"
                )
            if index is None and values.shape != known.shape:
                raise InputError(
                    f"got an edit of '{name}' with shape {list(values.shape)} for the model's {list(known.shape)}; "
                    "make the edit again"
                )
            if index is not None:
                check_indices(name, index, known.numel())

        there = [torch.equal(_chosen(state[name], self.places[name]).cpu(), new) for name, new in self.values.items()]
        if there and all(there):
            raise InputError("the model has this edit already; apply it to the original")

    @torch.no_grad()
    def _new(self, model: HookedTransformer) -> Mapping[str, Tensor]:
        """The values that the model's weights get."""
        if self.strength == 1:
            return self.values
        state, new = model.state_dict(), {}
        for name, values in self.values.items():
            former = _chosen(state[name], self.places[name]).cpu().double()
            new[name] = (former + self.strength * (values.double() - former)).to(values.dtype)
        return new


def union(first: Edit, second: Edit) -> Edit:
    """Both edits as one; the notes of the second count where both have some of one name.

    Raises:
        InputError: edits of different models or strengths, or that give a weight different values.
    """
    if (first.source, first.strength) != (second.source, second.strength):
        raise InputError(
            f"got edits of {first.source} at strength {first.strength:g} and of {second.source} at strength "
            f"{second.strength:g}; need edits of one model and strength: apply one after the other"
        )
    places, values = dict(first.places), dict(first.values)
    for name, index in second.places.items():
        if name not in places:
            places[name], values[name] = index, second.values[name]
            continue
        own = places[name]
        if own is None or index is None:
            same = own is None and index is None and torch.equal(values[name], second.values[name])
            both, kept, clash = own, values[name], 0 if same else 1
        else:
            both = torch.cat([own, index]).unique()
            kept = torch.empty(len(both), dtype=values[name].dtype)
            kept[torch.searchsorted(both, index)] = second.values[name]
            clash = int((kept[torch.searchsorted(both, own)] != values[name])[torch.isin(own, index)].sum())
            kept[torch.searchsorted(both, own)] = values[name]
        if clash:
            raise InputError(f"both edits set weights of '{name}' to different values; apply one after the other")
        places[name], values[name] = both, kept
    return Edit(places, values, first.source, {**first.notes, **second.notes}, first.strength)


@torch.no_grad()
def _put(model: HookedTransformer, places: Mapping[str, Tensor | None], values: Mapping[str, Tensor]) -> None:
    state = model.state_dict()
    for name, index in places.items():
        new = values[name].to(state[name].device)
        if index is None:
            state[name].copy_(new)
        else:
            state[name].view(-1)[index.to(state[name].device)] = new


def save_edit(
    model: HookedTransformer, edited: HookedTransformer, path: str | Path, notes: Mapping[str, str] | None = None
) -> None:
    """Write the weights in which two models differ; `Edit.between` and `Edit.save` in one."""
    Edit.between(model, edited, notes).save(path)


def load_edit(model: HookedTransformer, path: str | Path) -> tuple[HookedTransformer, dict[str, str]]:
    """A copy of the original with a saved edit, and the file's notes; `Edit.load` and `Edit.apply` in one."""
    edit = Edit.load(path)
    return edit.apply(model), dict(edit.notes)


def _chosen(tensor: Tensor, index: Tensor | None) -> Tensor:
    tensor = tensor.detach()
    return tensor if index is None else tensor.reshape(-1)[index.to(tensor.device)]


@torch.no_grad()
def _source(model: HookedTransformer) -> str:
    """Where the weights come from; those of a model that was not loaded by `load_model` are hashed themselves."""
    try:
        known = provenance(model)
    except InputError:
        digest = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]
    return f"{known.weight_hash} ({known.processing})"
