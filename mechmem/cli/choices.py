"""Choices of options, listed here so that `--help` does not import the library; a test compares them with it."""

from typing import Literal

from mechmem.study.detection_settings import DetectMethod
from mechmem.study.patch_settings import Attribution as PatchAttribution
from mechmem.study.patch_settings import Directions as PatchDirection
from mechmem.study.patch_settings import Metric as PatchMetric
from mechmem.study.patch_settings import Scored as PatchScored
from mechmem.study.patch_settings import Site as PatchSite
from mechmem.study.patch_settings import Where as PatchWhere
from mechmem.study.settings import Method as UnlearnMethod
from mechmem.study.settings import Weights as EditWeights

__all__ = [
    "DetectMethod",
    "EditWeights",
    "Engine",
    "Localizer",
    "PatchAttribution",
    "PatchDirection",
    "PatchMetric",
    "PatchScored",
    "PatchSite",
    "PatchWhere",
    "Precision",
    "Replacement",
    "ScanMethod",
    "Scope",
    "UnlearnMethod",
    "WatchAction",
]

Localizer = Literal[
    "alignment",
    "hard_concrete",
    "slimming",
    "zero_out",
    "integrated",
    "gate_gradient",
    "attribution",
    "fisher",
    "difference",
    "gradient",
    "activations",
    "random",
]
ScanMethod = Literal["full", "cascade"]
Precision = Literal["float32", "bfloat16"]
Engine = Literal["local", "ray"]
Replacement = Literal["random", "runner-up"]
Scope = Literal["token", "rest", "prefix"]
WatchAction = Literal["flag", "stop", "block", "steer"]
