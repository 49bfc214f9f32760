"""The choice of features that a caller's words stand for, checked against the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from mechmem.data.bounds import check_bounds
from mechmem.data.choices import check_choice, shown
from mechmem.data.errors import InputError
from mechmem.data.token_counts import as_counts
from mechmem.detect.features.feature_choice import FeatureChoice, FeatureGroup
from mechmem.model.head_names import heads_of
from mechmem.model.load import HookedTransformer
from mechmem.model.vocabulary import vocabulary

# Rare are the rarest tokens that together make up this share of a corpus.
RARE_SHARE = 0.1


def feature_choice(
    model: HookedTransformer,
    features: Sequence[FeatureGroup] | str,
    depths: Any = None,
    heads: Any = None,
    neurons: Any = None,
    counts: Any = None,
) -> FeatureChoice:
    """What `detection_features` reads; see there for the arguments.

    Raises:
        InputError: an unknown group or one twice; a depth, head or neuron that the model does not have, or that no
            group uses.
    """
    groups = (features,) if isinstance(features, str) else tuple(features)
    for group in groups:
        check_choice("features", group, FeatureGroup)
    if not groups or len(set(groups)) < len(groups):
        raise InputError(f"got features {groups}; need at least one, each once: ('output', 'residual')")
    _check_used(groups, "depths", depths, ("residual", "lens"))
    _check_used(groups, "heads", heads, ("heads",))
    _check_used(groups, "neurons", neurons, ("neurons",))
    _check_used(groups, "counts", counts, ("heads",))
    chosen_heads: list[tuple[int, int]] = []
    if "heads" in groups:
        cfg = model.cfg
        every = [(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
        chosen_heads = heads_of(model, every if heads is None else heads)
    return FeatureChoice(
        groups=groups,  # pyright: ignore[reportArgumentType]
        depths=_depths(model, depths) if {"residual", "lens"} & set(groups) else (),
        heads=tuple(chosen_heads),
        neurons=_neurons(model, neurons) if "neurons" in groups else (),
        rare=None if counts is None else tuple(rare_tokens(as_counts(counts, model.cfg.d_vocab, vocabulary(model)))),
    )


def rare_tokens(counts: Num[np.ndarray, " d_vocab"]) -> list[int]:
    """The rarest tokens that together make up at most a tenth of the corpus, those that never occur among them."""
    order = np.argsort(counts, kind="stable")
    reached = np.cumsum(counts[order])
    return sorted(order[reached <= RARE_SHARE * counts.sum()].tolist())


def _check_used(groups: tuple[str, ...], name: str, given: Any, users: tuple[str, ...]) -> None:
    if given is not None and not set(users) & set(groups):
        raise InputError(
            f"got {name}, which the features {', '.join(groups)} do not use; leave it out, or add "
            f"{' or '.join(users)} to features"
        )


def _depths(model: HookedTransformer, depths: Any) -> tuple[int, ...]:
    last = model.cfg.n_layers
    if depths is None:
        return tuple(range(last + 1))
    try:
        given = list(depths) if isinstance(depths, Iterable) else [depths]
        found = tuple(check_bounds("depths", depth, int) for depth in given)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(0 <= depth <= last for depth in found) or len(set(found)) < len(found):
        raise InputError(f"got depths {shown(depths)}; need numbers from 0 to {last}, each once")
    return found


def _neurons(model: HookedTransformer, neurons: Any) -> tuple[tuple[int, int], ...]:
    layers, width = model.cfg.n_layers, model.cfg.d_mlp or 0
    try:
        found = tuple((check_bounds("layer", a, int), check_bounds("neuron", b, int)) for a, b in neurons)
    except (TypeError, ValueError):
        found = ()
    if (
        not found
        or len(set(found)) < len(found)
        or not all(0 <= layer < layers and 0 <= neuron < width for layer, neuron in found)
    ):
        raise InputError(
            f'the features "neurons" need (layer, neuron) pairs, layer below {layers} and neuron below {width}: '
            "neurons=[(1, 7)]"
        )
    return found
