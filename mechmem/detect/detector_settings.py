"""How a detector is fitted: one object, one set of defaults for library and command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from mechmem.data.bounds import Count, Index, Level, Proportion, Rate, Size, check_fields
from mechmem.data.errors import InputError
from mechmem.detect.probes.rules import Rule

TreeDepth = Annotated[int, Interval(ge=1, le=8)]
Folds = Annotated[int, Interval(ge=2, le=100)]


@dataclass(frozen=True)
class DetectorSettings:
    """Settings of `train_detector`; None always means "not set".

    Attributes:
        rule: how scores of successive steps become an alarm: "max", "cusum" or "sprt".
        calibration: "platt", "isotonic", or "auto": isotonic from 1,000 held-out paragraphs of each set on.
        ks: steps at which probes are fitted; the threshold is that of all steps.
        depths: residual streams to choose from; None: after a third and two thirds of the layers, and at the end.
        heads: (layer, head) of the features "heads".
        neurons: (layer, neuron) of the features "neurons".
        rare: token ids that count as rare, for the features "heads".
        predictable: copies of the other paragraphs that are added as predictable text that nobody memorized, as a
            share of their number: the prefix repeats its own first 8 to 16 tokens.
        calibrate: share of the clusters on which scores are calibrated.
        conformal: share of the clusters from which the threshold is taken.
        folds: of cross-validation over clusters.
        penalties: C of logistic regression to choose from, for groups of more than 32 columns, such as "residual":
            the smaller, the smaller their weights.
        trees: of gradient boosting.
        tree_depth: questions from a tree's root to its leaves.

    Raises:
        InputError: a setting that is out of range, or parts that leave nothing to fit on.
    """

    rule: Rule = "max"
    calibration: Literal["auto", "platt", "isotonic"] = "auto"
    ks: tuple[Size, ...] = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
    depths: tuple[Index, ...] | None = None
    heads: tuple[tuple[int, int], ...] = ()
    neurons: tuple[tuple[int, int], ...] = ()
    rare: tuple[Index, ...] | None = None
    predictable: Proportion = 0.25
    calibrate: Level = 0.2
    conformal: Level = 0.3
    folds: Folds = 3
    penalties: tuple[Rate, ...] = (0.1, 0.3, 1.0, 3.0)
    trees: Count = 60
    tree_depth: TreeDepth = 3

    def __post_init__(self) -> None:
        check_fields(self)
        if self.calibrate + self.conformal >= 1:
            raise InputError(
                f"got calibrate {self.calibrate:g} and conformal {self.conformal:g}, which leaves no clusters to fit "
                "on; need a sum below 1"
            )
        for name in ("ks", "penalties"):
            if not getattr(self, name):
                raise InputError(f"got no {name}; need at least 1")
