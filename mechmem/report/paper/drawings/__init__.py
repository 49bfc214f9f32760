"""What draws each item's figures from its arrays."""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr

from mechmem.report.paper.drawing import Drawing
from mechmem.report.paper.drawings.contrastive_drawing import draw_contrastive
from mechmem.report.paper.drawings.finetuning_drawing import draw_finetuning
from mechmem.report.paper.drawings.gradients_drawing import draw_activation_gradients, draw_parameter_gradients
from mechmem.report.paper.drawings.head_drawing import draw_head
from mechmem.report.paper.drawings.noise_drawing import draw_noise
from mechmem.report.paper.drawings.patching_drawing import draw_patching
from mechmem.report.paper.drawings.perturbation_drawing import draw_perturbation
from mechmem.report.paper.drawings.sets_drawing import draw_sets

# By the item's name, as in `study.paper.items.ITEMS`; an item without an entry has no figure.
DRAWINGS: dict[str, Callable[[xr.Dataset], list[Drawing]]] = {
    "sets": draw_sets,
    "perturbation": draw_perturbation,
    "patching": draw_patching,
    "parameter_gradients": draw_parameter_gradients,
    "contrastive": draw_contrastive,
    "finetuning": draw_finetuning,
    "activation_gradients": draw_activation_gradients,
    "head": draw_head,
    "noise": draw_noise,
}
