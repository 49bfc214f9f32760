"""Perturbed paragraphs to show beside memorized ones in a head's report."""

from __future__ import annotations

import numpy as np

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.worst_pairs import worst_perturbations
from mechmem.study.folder import StudyFolder


def perturbed_examples(study: StudyFolder, memorized: Paragraphs, examples: int) -> Paragraphs | None:
    """The worst perturbations of the first memorized paragraphs; None where no replacement changes any of them."""
    first = memorized.select(np.arange(min(examples, len(memorized))))
    found = perturb_prefix(study.model, first, seed=study.settings.seed)
    try:
        return worst_perturbations(study.model, first, found)[1]
    except InputError:
        # A memory that no single replacement changes has nothing to show.
        return None
