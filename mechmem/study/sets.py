"""Which paragraphs a study unlearns, holds and evaluates on."""

from __future__ import annotations

from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.cost_sets import cost_sets
from mechmem.study.folder import StudyFolder

TARGETS, HELD_OUT, NEAR = "targets", "held-out memorized", "near-duplicates"


def evaluation_sets(study: StudyFolder) -> tuple[dict[str, Paragraphs], Paragraphs]:
    """The sets that an edit is evaluated on, and the keep set: see `cost_sets`.

    Its set "memorized" is called "held-out memorized" here, since the targets are memorized too. The keep set shares no
    cluster with any of them.
    """
    settings = study.settings
    sets, keep = cost_sets(
        study.paragraphs,
        targets=settings.targets,
        targets_from=study.targets_from,
        evaluated=settings.evaluated,
        seed=settings.seed,
    )
    return {HELD_OUT if name == "memorized" else name: paragraphs for name, paragraphs in sets.items()}, keep


def held_out(study: StudyFolder) -> Paragraphs | None:
    """Memorized paragraphs that share no cluster with a target; None where there are none."""
    return evaluation_sets(study)[0].get(HELD_OUT)
