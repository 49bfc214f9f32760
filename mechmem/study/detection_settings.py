"""Everything that decides a study's detector, beside the study itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mechmem.data.bounds import Count, Level, check_fields
from mechmem.data.errors import InputError

# Those of `mechmem.train_detector`, named here so that settings are checked without importing torch; a test compares
# them.
Feature = Literal["output", "prefix", "residual", "lens"]
DetectMethod = Literal["auto", "logistic", "boosting"]


@dataclass(frozen=True)
class DetectionSettings:
    """Everything that decides a study's detector and what it is judged on.

    Half of the clusters are trained on, the other half are judged on; both halves hold memorized and other paragraphs.

    Attributes:
        features: what the detector reads at each step: output (statistics of the logits), prefix (the prompt's own
            loss), residual (the residual stream), lens (the stream read by the unembedding at several depths).
        method: logistic, boosting, or auto: whichever is better on held-out clusters of the training half.
        trained: paragraphs of each set to train on; not set: all of that half.
        evaluated: paragraphs of each set to judge on; not set: all of that half.
        false_alarms: the share of other generations that may raise the alarm.

    Raises:
        InputError: a value that is out of range, or no feature or one that is named twice.
    """

    features: tuple[Feature, ...] = ("output", "prefix", "residual")
    method: DetectMethod = "auto"
    trained: Count | None = 600
    evaluated: Count | None = 500
    false_alarms: Level = 0.01

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.features or len(set(self.features)) < len(self.features):
            raise InputError(f"got the features {list(self.features)}; need at least one, and each once")
