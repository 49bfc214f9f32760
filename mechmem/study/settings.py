"""Everything that decides a study's numbers: its settings, in two sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from mechmem.data.bounds import Amount, Count, Seed, Share, Size, check_fields
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.intervene.method_names import Method

Weights = Literal["all", "top", "fisher", "random"]
# Learning rates for the bundled model, chosen on other paragraphs than those a study reports: docs/learning-rate.md, by
# the rule that ends the study's edits; those of "edit" are from docs/unlearning.md. Random weights are a control and
# take the rate of the top weights.
BUNDLED_RATES: dict[tuple[str, str], float] = {
    ("npo", "all"): 1e-4,
    ("npo", "top"): 1e-2,
    ("npo", "random"): 1e-2,
    ("contrastive", "all"): 3e-4,
    ("contrastive", "top"): 3e-3,
    ("contrastive", "random"): 3e-3,
    ("edit", "all"): 3e-5,
    ("edit", "top"): 3e-3,
    ("edit", "random"): 3e-3,
}
# What `full` changes: the sizes of a study that may take an hour.
FULL: dict[str, Any] = {
    "decoded": None,
    "gradient_sample": 160,
    "ablation_sample": 48,
    "pairs": 12,
    "targets": 32,
    "evaluated": 100,
    "attack_prefixes": 32,
    "relearning_steps": 30,
    "steps": 100,
    "edits": ("npo all", "npo top", "npo random", "contrastive all", "contrastive top", "contrastive random"),
}


@dataclass(frozen=True)
class PlannedEdit:
    """One edit of a study.

    Attributes:
        method: of `mechmem.unlearn`.
        weights: which may move: all attention and MLP weights, those with the largest gradient (top) or the largest
            ratio of gradients (fisher), or as many random ones.
        learning_rate: None: it is searched on other paragraphs before the edit.
    """

    method: Method
    weights: Weights
    learning_rate: float | None

    @property
    def name(self) -> str:
        """The edit's folder in `edits/`."""
        return f"{self.method}-{self.weights}"

    def title(self, fraction: float) -> str:
        """What results and the report call it."""
        method = {"npo": "NPO", "simnpo": "SimNPO"}.get(self.method, self.method)
        return f"{method}, all weights" if self.weights == "all" else f"{method}, {self.weights} {100 * fraction:g} %"


@dataclass(frozen=True)
class StudySettings:
    """Everything that decides a study's numbers.

    Attributes:
        model: hub name, folder with a checkpoint, or "bundled".
        corpus: file or folder of text or token ids; not set: the bundled paragraphs, which need the bundled model.
        seed: decides every sample, split and order.
        prefix_len: tokens of a paragraph that the model is given; not set: what a parquet of paragraphs says, or else
            50.
        continuation_len: tokens that it must continue; not set: the rest of the rows of token ids, or 50 of text.
        limit: score at most this many paragraphs; not set: all.
        decoded: paragraphs decoded to the end, near misses first, for the edit distance; not set: all.
        gradient_sample: paragraphs of each set for gradients and attention.
        ablation_sample: paragraphs of each set for head ablation.
        pairs: memorized paragraphs that are patched with their worst perturbation.
        patched: share of the head outputs that are patched exactly, those with the largest estimated effect.
        targets: memorized paragraphs to unlearn, at most.
        targets_from: parquet of paragraphs; only memorized ones of these texts are unlearned. Not set: any.
        oracle: hub name or folder of a model of this one's recipe that was trained without the texts of targets_from;
            edits are compared with it. Not set: no such comparison.
        oracle_scale: the same of a model that was trained on all text with another seed: the unit of the distance to
            the oracle.
        evaluated: paragraphs in the keep set and in every other set that an edit is evaluated on.
        edits: what to try, each as "METHOD WEIGHTS" or "METHOD WEIGHTS RATE". WEIGHTS is all, top (largest gradient),
            fisher or random; RATE is a learning rate or auto. Without a rate, the bundled model uses rates chosen for
            it, and for other models a rate is searched. The first edit is exported.
        fraction: share of the attention and MLP weights that a sparse edit may change.
        steps: most updates of an edit.
        target_em: an edit stops when the targets' mean EM, in tokens, is as low as this; not set: a fifth of the
            continuation, 10 of 50.
        attack_prefixes: changed prefixes that an attack tries on each target.
        attack_samples: continuations that an attack samples for each target.
        relearning_steps: updates of the attack that trains the edited model on other memorized text.

    Raises:
        InputError: a value that is out of range, or an edit that cannot be read.
    """

    model: str = "bundled"
    corpus: str | None = None
    seed: Seed = 0
    prefix_len: Count | None = None
    continuation_len: Count | None = None
    limit: Count | None = None
    decoded: Size | None = 256
    gradient_sample: Count = 64
    ablation_sample: Count = 16
    pairs: Count = 6
    patched: Share = 0.03
    targets: Count = 12
    targets_from: str | None = None
    oracle: str | None = None
    oracle_scale: str | None = None
    evaluated: Count = 32
    edits: tuple[str, ...] = ("npo all", "npo top", "npo random", "contrastive top")
    fraction: Share = 0.001
    steps: Count = 30
    target_em: Amount | None = None
    attack_prefixes: Count = 8
    attack_samples: Count = 100
    relearning_steps: Count = 10

    def __post_init__(self) -> None:
        check_fields(self)
        if self.ablation_sample < 2:
            raise InputError(
                "got 1 as ablation_sample; need at least 2: a head is replaced by its mean over other paragraphs"
            )
        if self.oracle is not None and self.targets_from is None:
            raise InputError(
                f"got the oracle {self.oracle} without targets_from; need the parquet of paragraphs that it never read"
            )
        if self.oracle_scale is not None and self.oracle is None:
            raise InputError("got oracle_scale without an oracle; need both: oracle_scale is the unit of its distance")
        names = [edit.name for edit in self.planned_edits()]
        if not names or len(set(names)) < len(names):
            raise InputError(f"edits are {list(self.edits)}; need at least one, and each method and weights once")

    def planned_edits(self) -> list[PlannedEdit]:
        """The edits with their learning rates."""
        return [_planned(text, bundled=self.model == "bundled") for text in self.edits]

    @property
    def title(self) -> str:
        """The model as a report names it."""
        return "the bundled model" if self.model == "bundled" else self.model


def full(settings: StudySettings) -> StudySettings:
    """The same study with the sizes of `mechmem run --full`."""
    return replace(settings, **FULL)


def _planned(text: str, *, bundled: bool) -> PlannedEdit:
    words = text.split()
    if len(words) not in (2, 3) or words[1] not in get_args(Weights):
        raise InputError(
            f"got the edit {text!r}; need METHOD WEIGHTS or METHOD WEIGHTS RATE with weights of "
            f"{', '.join(get_args(Weights))}, such as 'npo top' or 'npo top 3e-3'"
        )
    method, weights = words[0], words[1]
    check_choice("the method of an edit", method, Method)
    rate = BUNDLED_RATES.get((method, weights)) if bundled else None
    if len(words) == 3:
        try:
            rate = None if words[2] == "auto" else float(words[2])
        except ValueError:
            raise InputError(f"got the edit {text!r}; need a number or auto as its learning rate") from None
        if rate is not None and not 0 < rate < float("inf"):
            raise InputError(f"got the edit {text!r}; need a learning rate above 0")
    return PlannedEdit(method, weights, rate)  # pyright: ignore[reportArgumentType]
