"""The methods of `unlearn` that descend, each with its options: declared here and nowhere else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict

from mechmem.data.bounds import Amount, Index, Rate
from mechmem.data.choices import check_used
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.objectives import (
    Objective,
    Steering,
    hold_kl,
    lower_nll,
    negative_preference,
    preference,
    raise_nll,
    saturation_importance,
    simple_negative_preference,
    to_uniform,
    weighted_ascent,
)
from mechmem.localize.patch_effects import check_options


class UnlearnOptions(TypedDict, total=False):
    """What single methods of `unlearn` take; the others refuse it. None stands for the default.

    beta: "npo", "npo_sam", "dpo" (0.1), "simnpo" (2.5): how soon a forgotten paragraph is left alone; "satimp" (5): how
        little a forgotten token counts.
    margin: "simnpo" (0): nats per token that a paragraph's NLL is raised further.
    alpha: "wga" (1): how little a forgotten token counts.
    radius: "npo_sam" (0.01): how far uphill the gradient is taken, a Euclidean distance over all weights that may move.
    preferred: "dpo": row by row another continuation of the same prefix; None: what the model itself writes after the
        prefix with some of its tokens replaced (`mechmem.intervene.preferred`).
    layer: "rmu": whose residual stream is steered; None: the middle one.
    coefficient: "rmu" (2): length of the vector it is steered to, in mean lengths of the targets' residual stream.
    """

    beta: Rate | None
    margin: Amount | None
    alpha: Rate | None
    radius: Rate | None
    preferred: Paragraphs | None
    layer: Index | None
    coefficient: Rate | None


def _npo(beta: float = 0.1) -> Objective:
    return Objective(negative_preference(beta), hold_kl, compares=True)


def _simnpo(beta: float = 2.5, margin: float = 0.0) -> Objective:
    return Objective(simple_negative_preference(beta, margin), hold_kl)


def _npo_sam(beta: float = 0.1, radius: float = 0.01) -> Objective:
    """NPO that resists relearning (Fan et al. 2025, arXiv 2502.05374): the worst target term nearby is minimized."""
    return Objective(negative_preference(beta), hold_kl, compares=True, radius=radius)


def _dpo(beta: float = 0.1, preferred: Paragraphs | None = None) -> Objective:  # noqa: ARG001 - `unlearn` pairs it
    return Objective(preference(beta), hold_kl, compares=True, pairs=True)


def _wga(alpha: float = 1.0) -> Objective:
    return Objective(weighted_ascent(alpha), hold_kl)


def _satimp(beta: float = 5.0) -> Objective:
    return Objective(saturation_importance(beta), hold_kl)


def _rmu(layer: int = 0, coefficient: float = 2.0) -> Objective:
    return Objective(None, None, steering=Steering(layer, coefficient))


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "npo": _npo,
    "simnpo": _simnpo,
    "npo_sam": _npo_sam,
    "dpo": _dpo,
    "wga": _wga,
    "satimp": _satimp,
    "rmu": _rmu,
    "contrastive": lambda: Objective(raise_nll, hold_kl),
    "ascent": lambda: Objective(raise_nll, None),
    "grad_diff": lambda: Objective(raise_nll, lower_nll),
    "uniform": lambda: Objective(to_uniform, hold_kl),
}


def objective_of(method: str, options: Any) -> Objective | None:
    """What a method minimizes, with its options; None for a method that drops.

    Raises:
        TypeError: a keyword that no method has.
        InputError: an option that this method does not use.
    """
    check_options("unlearn", options, UnlearnOptions)
    make = OBJECTIVES.get(method)
    check_used(method, inspect.signature(make).parameters if make else (), options)
    given = {name: value for name, value in options.items() if value is not None}
    return make(**given) if make else None
