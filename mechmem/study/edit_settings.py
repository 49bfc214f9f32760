"""Everything that decides one edit of a study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mechmem.data.bounds import Amount, Count, Rate, Seed, Share, check_fields
from mechmem.data.errors import InputError
from mechmem.study.settings import Method, Weights

Kind = Literal["unlearn", "edit", "memorize"]


@dataclass(frozen=True)
class EditSettings:
    """Everything that decides an edit, beside its study.

    Attributes:
        kind: unlearn the study's targets, edit them to continue with another text, or memorize new paragraphs.
        method: of `unlearn`.
        weights: those with the largest gradient (top), the largest ratio to the keep set's (fisher), as many random
            ones, or all.
        mask: a file that `Mask.save` wrote, instead of `weights`.
        fraction: share of the attention and MLP weights.
        steps: at most this many updates.
        learning_rate: of AdamW; None: the rate chosen for the bundled model, or for another model one that is searched.
        batch_size: paragraphs of each set in one update; None: the library's default.
        weight_decay: of AdamW, on the weights that may change.
        max_norm: clip the gradient to this Euclidean norm.
        keep_weight: of the term that holds the keep set; None: 1.
        null_space: updates lose their part in the input directions that carry this share of the keep set's inputs.
        seed: masks and orders.
        target_em: unlearning ends when the targets' mean EM is as low as this; None: a fifth of the continuation.
        keep_kl: unlearning ends before KL on the keep set passes this, in nats per token.
        text: the new continuation of an edit; None: what the model says after its worst single-token perturbation.
        paragraphs: a file of paragraphs to memorize, token ids as `Paragraphs.load` reads them; None: one `other` one.
    """

    kind: Kind = "unlearn"
    method: Method = "npo"
    weights: Weights = "top"
    mask: str | None = None
    fraction: Share = 0.001
    steps: Count = 100
    learning_rate: Rate | None = None
    batch_size: Count | None = None
    weight_decay: Amount | None = None
    max_norm: Rate | None = None
    keep_weight: Amount | None = None
    null_space: Share | None = None
    seed: Seed = 0
    target_em: Amount | None = None
    keep_kl: Amount | None = None
    text: str | None = None
    paragraphs: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.text is not None and any("\ud800" <= letter <= "\udfff" for letter in self.text):
            raise InputError(f"got the text {self.text!r}, which is not Unicode; need text that UTF-8 can hold")


def check_edit_name(name: str) -> None:
    """Refuse an edit's name that is more than a name: it is a folder in the study's.

    Raises:
        InputError: slashes, a dot at the beginning, or nothing.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"got the edit's name {name!r}; need a plain name such as 'top' without slashes")
