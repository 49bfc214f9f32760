"""The items of the study, in the order in which they are measured and shown."""

from __future__ import annotations

from collections.abc import Callable

from mechmem.study.paper.items.activation_gradients_finding import activation_gradients_item
from mechmem.study.paper.items.contrastive_finding import contrastive_item
from mechmem.study.paper.items.finetuning_finding import finetuning_item
from mechmem.study.paper.items.head_finding import head_item
from mechmem.study.paper.items.noise_finding import noise_item
from mechmem.study.paper.items.parameter_gradients_finding import parameter_gradients_item
from mechmem.study.paper.items.patching_finding import patching_item
from mechmem.study.paper.items.perturbation_finding import perturbation_item
from mechmem.study.paper.items.sets_finding import sets_item
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.rows import Finding

# What measures each item; it raises NotPossibleError, with the reason in words, where the corpus does not allow it.
ITEMS: dict[str, Callable[[PaperFolder], Finding]] = {
    "sets": sets_item,
    "perturbation": perturbation_item,
    "patching": patching_item,
    "parameter_gradients": parameter_gradients_item,
    "contrastive": contrastive_item,
    "finetuning": finetuning_item,
    "activation_gradients": activation_gradients_item,
    "head": head_item,
    "noise": noise_item,
}
