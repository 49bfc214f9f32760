"""Transplants: some weights of one model in a copy of another, to see what they carry."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.fingerprint import fingerprint
from mechmem.model.load import HookedTransformer, provenance
from mechmem.model.public import public
from mechmem.weights.masks import Mask

# Settings that decide what equal weights compute.
_SAME = (
    "n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "act_fn", "normalization_type", "attn_types",
    "window_size", "positional_embedding_type", "parallel_attn_mlp", "use_attn_scale", "attn_scale", "eps",
)  # fmt: skip


@public("refuse")
def transplant(source: HookedTransformer, target: HookedTransformer, mask: Mask) -> HookedTransformer:
    """Return a copy of `target` in which the masked weights have `source`'s values; every other weight is target's.

    From a model that memorized a text into one that was trained the same way and never read it, this asks which
    weights carry the memory: a causal test that needs nothing planted. `verify_support(target, result, mask)` holds.

    Args:
        source: whose weights are taken; left as it is.
        target: of which a copy is made; left as it is.
        mask: which weights: `Mask.components(model, ["layer3", "L1H2"], biases=True)`, `Mask.top(...)` or any other.

    Returns:
        The copy, with target's tokenizer and provenance.

    Raises:
        InputError: models of other shapes, settings, dtypes or tokenizers; one of them folded and the other raw; an
            empty mask, or one of another model.
    """
    check_pair(source, target)
    _check_mask(target, mask)
    result = copy.deepcopy(target)
    with torch.no_grad():
        for (mine, theirs), index in _tensors(source, result, mask):
            mine.view(-1)[index] = theirs.reshape(-1)[index.to(theirs.device)].to(mine.device)
    return result


@contextmanager
def transplanted(source: HookedTransformer, model: HookedTransformer, mask: Mask) -> Iterator[HookedTransformer]:
    """`transplant` in place for a block; afterwards every weight has its former bits. Models are not checked."""
    with torch.no_grad():
        pairs = list(_tensors(source, model, mask))
        former = [mine.view(-1)[index].clone() for (mine, _), index in pairs]
        try:
            for (mine, theirs), index in pairs:
                mine.view(-1)[index] = theirs.reshape(-1)[index.to(theirs.device)].to(mine.device)
            yield model
        finally:
            for ((mine, _), index), kept in zip(pairs, former, strict=True):
                mine.view(-1)[index] = kept


def check_pair(source: HookedTransformer, target: HookedTransformer) -> None:
    """Refuse two models whose weights do not mean the same.

    Raises:
        InputError: says what differs.
    """
    for name in _SAME:
        theirs, mine = getattr(source.cfg, name, None), getattr(target.cfg, name, None)
        if theirs != mine:
            raise InputError(
                f"source has {name} {theirs} and target {mine}; need two models of one architecture, both raw or both "
                "folded: load them in the same way"
            )
    before, after = source.state_dict(), target.state_dict()
    if odd := sorted(before.keys() ^ after.keys()):
        raise InputError(f"one of source and target has no '{odd[0]}'; need two models of one architecture")
    for name, theirs in before.items():
        if (theirs.shape, theirs.dtype) != (after[name].shape, after[name].dtype):
            raise InputError(
                f"'{name}' is {list(theirs.shape)} of {theirs.dtype} in source and {list(after[name].shape)} of "
                f"{after[name].dtype} in target; need one shape and dtype: load both in the same way"
            )
    theirs, mine = _processing(source), _processing(target)
    if None not in (theirs, mine) and theirs != mine:
        raise InputError(
            f"source is {theirs} and target {mine}; need both raw or both folded: load them in the same way"
        )
    known = [fingerprint(model.tokenizer) for model in (source, target) if model.tokenizer is not None]
    if len(set(known)) > 1:
        raise InputError("source and target have different tokenizers; need two models that read the same ids")


def _processing(model: HookedTransformer) -> str | None:
    try:
        return provenance(model).processing
    except InputError:  # it was made by hand
        return None


def _check_mask(model: HookedTransformer, mask: Mask) -> None:
    if not mask.count:
        raise InputError("the mask chooses no weight; need at least one")
    parameters = dict(model.named_parameters())
    for name in mask.indices:
        found = tuple(parameters[name].shape) if name in parameters else None
        if found != tuple(mask.shapes[name]):
            raise InputError(
                f"the mask's '{name}' has shape {tuple(mask.shapes[name])} and the model's {found}; need a mask of "
                "this model: Mask.components(model, [...])"
            )


def _tensors(
    source: HookedTransformer, model: HookedTransformer, mask: Mask
) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
    """((the model's tensor, the source's), indices) of every tensor that the mask chooses from."""
    mine, theirs = dict(model.named_parameters()), dict(source.named_parameters())
    for name, index in mask.indices.items():
        yield (mine[name], theirs[name]), index.to(mine[name].device)
