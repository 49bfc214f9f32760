"""A fitted detector: frozen, and what it needs to score a step of decoding and to raise an alarm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mechmem.data.bounds import Count, Level, Size, check_bounds, checked
from mechmem.data.errors import InputError
from mechmem.detect.detector_settings import DetectorSettings
from mechmem.detect.features.feature_choice import OFFLINE, FeatureChoice
from mechmem.detect.identity import Identity, model_identity
from mechmem.detect.probes.boosting import TreeProbes
from mechmem.detect.probes.buckets import bucket_of
from mechmem.detect.probes.calibration import Calibration, PlattCalibration
from mechmem.detect.probes.conformal import conformal_p_value, conformal_threshold
from mechmem.detect.probes.logistic import LogisticProbes
from mechmem.detect.probes.rules import Rule, Statistic
from mechmem.model.load import HookedTransformer

Probes = LogisticProbes | TreeProbes


@dataclass(frozen=True, eq=False)
class Detector:
    """Tells from a step's features whether a model recites, and bounds how often that is a false alarm.

    Made by `mechmem.train_detector`, used by `mechmem.Monitor` and `mechmem.evaluate_detector`.

    Attributes:
        choice: the features that it reads.
        names: of their columns, in order, [feature].
        buckets: first step of each group of steps that have a probe of their own.
        probes: the fitted probes.
        calibration: what makes probabilities of their log odds.
        rule: what is done with the scores of successive steps.
        null: statistics of whole generations that were not recited, one of each held-out cluster, sorted, nats.
        generation_len: own tokens of these generations: the threshold is for so many.
        identity: of the model.
        settings: with which it was trained.
        trained_on: hashes of the prefixes that it was fitted, calibrated or given its threshold on, sorted.
        notes: how it was chosen, and from how many paragraphs.
    """

    choice: FeatureChoice
    names: tuple[str, ...]
    buckets: tuple[Size, ...]
    probes: Probes
    calibration: Calibration
    rule: Rule
    null: Float[np.ndarray, " cluster"]
    generation_len: Count
    identity: Identity
    settings: DetectorSettings = field(default_factory=DetectorSettings)
    trained_on: Int64[np.ndarray, " prefix"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {"generation_len": Count, "buckets": tuple[Size, ...]}
        for name, kind in kinds.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_bounds(name, value, kind))

    def __repr__(self) -> str:
        return (
            f"Detector({self.method} on {self.reads}, {len(self.names)} columns, rule {self.rule!r}, "
            f"{self.generation_len} tokens, threshold from {len(self.null)} clusters)"
        )

    @property
    def method(self) -> str:
        """Which kind of probe: "logistic" or "boosting"."""
        return "logistic" if isinstance(self.probes, LogisticProbes) else "boosting"

    @property
    def reads(self) -> str:
        """The features in words: "output, residual of depth 4"."""
        depths = ", ".join(map(str, self.choice.stream_depths))
        named = {name: f"{name} of depth {depths}" for name in ("residual", "lens")}
        return ", ".join(named.get(group, group) for group in self.choice.groups)

    @property
    def online(self) -> bool:
        """Whether all of its features can be read while a model decodes."""
        return not set(self.choice.groups) & set(OFFLINE)

    @checked
    @torch.no_grad()
    def score(self, features: Float[Tensor, "row feature"], k: Size) -> Float[Tensor, " row"]:
        """The probability that each row recites, if as many rows did as did not.

        So log(s / (1 - s)) is the log likelihood ratio, to which the log odds of any base rate can be added.

        Args:
            features: columns as in `names`, on the device of the detector (`to`).
            k: own tokens said so far, from 0.

        Raises:
            InputError: another number of columns, or features that are not finite.
        """
        if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[1] != len(self.names):
            came = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(
                f"got features of shape {came} for a detector that reads {len(self.names)} columns; need [row, feature]"
            )
        bucket, rows = bucket_of(k, self.buckets), features.float()
        if self._lines is not None:
            bias, weight = self._lines[bucket]
            score = torch.sigmoid(torch.addmv(bias, rows, weight))
        else:
            score = self.calibration.score(self.probes.log_odds(rows, bucket), bucket)
        # One NaN makes a product NaN, and a sum of scores; of a tree, only the features themselves tell.
        if not math.isfinite((score if self.method == "logistic" else rows).sum().item()):
            raise InputError(
                f"got features that are not finite at k = {k}; need finite states: check the model's weights, or load "
                "it in float32"
            )
        return score

    @cached_property
    def _lines(self) -> list[tuple[Tensor, Tensor]] | None:
        """Bias and weights of logistic regression with Platt's line in them, for each bucket: one product a step."""
        probes, calibration = self.probes, self.calibration
        if not isinstance(probes, LogisticProbes) or not isinstance(calibration, PlattCalibration):
            return None
        weight = (calibration.slope[:, None] * probes.weight).cpu().double()
        bias = (calibration.slope * probes.bias + calibration.offset).cpu().double()
        bias = bias - (probes.mean.cpu().double() * weight).sum(1)
        device = probes.weight.device
        return [(b.float().to(device), w.float().to(device)) for b, w in zip(bias, weight, strict=True)]

    @checked
    def threshold(self, false_alarms: Level = 0.01) -> float:
        """The statistic above which there is an alarm, in nats of log odds.

        Over a whole generation of `generation_len` tokens, text of the kind of the other paragraphs raises an alarm
        with probability `false_alarms` at most, whatever the number of clusters and however well the probes fit: the
        bound assumes that a new text's cluster is exchangeable with those of `null`. A longer generation is several
        blocks, each with this bound.

        Returns:
            Infinity, and so no alarm ever, where `null` has fewer than 1/false_alarms - 1 clusters.
        """
        return conformal_threshold(self.null, false_alarms)

    def p_value(self, statistic: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """How often text that is not recited reaches this statistic within a generation; at least 1/(clusters + 1)."""
        return conformal_p_value(self._null.to(statistic.device), statistic)

    @cached_property
    def _null(self) -> Float[Tensor, " cluster"]:
        return torch.from_numpy(self.null.astype(np.float32))

    @checked
    def statistic(self, rows: Count, device: torch.device | str = "cpu") -> Statistic:
        """The running statistic of a batch of rows, before the first step."""
        return Statistic(self.rule, rows, self.generation_len, device)

    def to(self, device: torch.device | str) -> Detector:
        """The same detector with its probes on a device."""
        return replace(self, probes=self.probes.to(device), calibration=self.calibration.to(device))

    def check_model(self, model: HookedTransformer) -> None:
        """Refuse a model that this detector was not trained on; an edited one keeps its embedding and is accepted.

        Raises:
            InputError: another model, precision, processing or tokenizer.
        """
        self.identity.check(model_identity(model))

    def save(self, folder: str | Path) -> None:
        """Write `detector.safetensors` and `detector.json` into a folder of their own, whole or not at all.

        Raises:
            InputError: the folder holds files of something else, or cannot be written.
        """
        from mechmem.detect.stored_detector import write_detector

        write_detector(self, Path(folder))

    @staticmethod
    def load(folder: str | Path) -> Detector:
        """Read what `save` wrote.

        Raises:
            InputError: no such folder, or files that are damaged or of something else.
        """
        from mechmem.detect.stored_detector import read_detector

        return read_detector(Path(folder))
