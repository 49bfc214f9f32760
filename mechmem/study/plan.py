"""The stages of a study: what each is called and writes, and about how long it takes beside the others.

Nothing here imports torch: a finished study is recognized without it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mechmem.data.errors import InputError
from mechmem.study.settings import StudySettings


@dataclass(frozen=True)
class Stage:
    """One step of a study.

    Attributes:
        name: what the user calls it.
        title: what it does, for the progress display.
        file: what it writes last; where this file is, the stage is done.
        also: what it writes before.
        after: the stages whose files it reads.
        needs: what the paragraphs must hold: nothing; "sets", two clusters each of memorized and of other ones; or
            "held-out", memorized ones that are no targets besides.
    """

    name: str
    title: str
    file: str
    also: tuple[str, ...] = ()
    after: tuple[str, ...] = ("scan",)
    needs: str = "sets"

    @property
    def files(self) -> tuple[str, ...]:
        """All that it writes, beside its part of the edits."""
        return (*self.also, self.file)


STAGES = (
    Stage("scan", "scoring paragraphs", "paragraphs.parquet", after=(), needs="nothing"),
    Stage("gradients", "computing parameter gradients", "gradients.nc"),
    Stage("heads", "ablating heads", "heads.nc"),
    Stage(
        "attention", "measuring attention to rare tokens", "rare.nc", also=("attention.nc",), after=("scan", "heads")
    ),
    Stage("patch", "patching activations", "patching.nc"),
    Stage("unlearn", "unlearning", "unlearn.nc"),
    Stage("attack", "attacking the edits", "attacks.nc", after=("scan", "unlearn"), needs="held-out"),
    Stage(
        "report",
        "writing the report",
        "report.html",
        after=("scan", "gradients", "heads", "attention", "patch", "unlearn", "attack"),
        needs="nothing",
    ),
)
NAMES = tuple(stage.name for stage in STAGES)


def required(until: str) -> list[Stage]:
    """A stage and all that it needs, in order.

    Raises:
        InputError: there is no such stage.
    """
    if until not in NAMES:
        raise InputError(f"until is {until!r}; need one of the stages {', '.join(NAMES)}")
    wanted = {until}
    for stage in reversed(STAGES):
        if stage.name in wanted:
            wanted |= set(stage.after)
    return [stage for stage in STAGES if stage.name in wanted]


def stage_costs(settings: StudySettings, paragraphs: int, heads: int) -> dict[str, float]:
    """About how many paragraphs' forwards each stage takes: enough to say how much of a run is left."""
    decoded = paragraphs if settings.decoded is None else min(settings.decoded, paragraphs)
    edits, targets = len(settings.edits), settings.targets
    return {
        "scan": paragraphs + 2.0 * decoded,
        "gradients": 8.0 * settings.gradient_sample,
        "heads": 1.0 * settings.ablation_sample * heads,
        "attention": 6.0 * settings.gradient_sample,
        "patch": 150.0 * settings.pairs,
        "unlearn": edits * (3.0 * 32 * min(settings.steps, 40) + 15.0 * settings.evaluated),
        "attack": edits * targets * (2.0 * settings.attack_prefixes + 6.0 * settings.relearning_steps),
        "report": 100.0,
    }
