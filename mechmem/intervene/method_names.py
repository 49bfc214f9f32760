"""The methods of `unlearn` by name; torch is not imported here, so that settings and commands can check them fast."""

from __future__ import annotations

from typing import Literal

Method = Literal[
    "npo",
    "simnpo",
    "npo_sam",
    "dpo",
    "wga",
    "satimp",
    "rmu",
    "contrastive",
    "ascent",
    "grad_diff",
    "uniform",
    "neuron_drop",
    "head_drop",
    "balanced_subnet",
    "hard_concrete",
    "kfac",
    "task_arithmetic",
]
