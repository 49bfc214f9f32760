"""What `mechmem unlearn`, `edit` and `memorize` share: options of training, and making one edit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mechmem.cli.choices import EditWeights
from mechmem.cli.commands import console, wrote
from mechmem.cli.display import live_progress
from mechmem.cli.studies import StudyOptions, opened_study
from mechmem.data import bounds
from mechmem.data.bounds import Amount, Count, Share, check_bounds
from mechmem.data.errors import InputError

WHICH, TRAINING = "Which weights may change", "Training"
Name = Annotated[str, typer.Option("--name", help="What to call it; it is written to OUT/edits/NAME.")]
Weights = Annotated[
    EditWeights,
    typer.Option(help="By gradient, by gradient over the keep set's (fisher), random, or all.", rich_help_panel=WHICH),
]
MaskFile = Annotated[
    Path | None, typer.Option("--mask", help="A mask file instead of --weights.", rich_help_panel=WHICH)
]
Fraction = Annotated[
    Share, typer.Option(help="Share of the attention and MLP weights that may change.", rich_help_panel=WHICH)
]
Steps = Annotated[Count, typer.Option(help="At most this many updates.", rich_help_panel=TRAINING)]
Rate = Annotated[
    str,
    typer.Option(
        "--learning-rate",
        help="Of AdamW; auto: the rate chosen for the bundled model, or for another model one that is searched.",
        rich_help_panel=TRAINING,
    ),
]
BatchSize = Annotated[
    Count | None, typer.Option("--batch-size", help="Paragraphs of each set in one update.", rich_help_panel=TRAINING)
]
Decay = Annotated[
    Amount | None,
    typer.Option("--weight-decay", help="Of AdamW, on the weights that may change.", rich_help_panel=TRAINING),
]
MaxNorm = Annotated[
    bounds.Rate | None, typer.Option("--max-norm", help="Clip the gradient to this norm.", rich_help_panel=TRAINING)
]
KeepWeight = Annotated[
    Amount | None,
    typer.Option("--keep-weight", help="Weight of the term that holds other text.", rich_help_panel=TRAINING),
]
NullSpace = Annotated[
    Share | None,
    typer.Option(
        "--null-space",
        help="Take from every update the input directions that carry this share of what other text puts in.",
        rich_help_panel=TRAINING,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Accepted and not needed: an interrupted edit is continued.", rich_help_panel=TRAINING
    ),
]


def learning_rate(text: str) -> float | None:
    """A number, or None for auto.

    Raises:
        InputError: neither.
    """
    if text == "auto":
        return None
    try:
        return check_bounds("--learning-rate", float(text), bounds.Rate)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"got {text!r} as --learning-rate; need a number or auto") from None


@dataclass(frozen=True)
class EditOptions:
    """Which weights an edit may change, and how they are trained."""

    weights: Weights = "top"
    mask: MaskFile = None
    fraction: Fraction = 0.001
    rate: Rate = "auto"
    batch_size: BatchSize = None
    weight_decay: Decay = None
    max_norm: MaxNorm = None
    keep_weight: KeepWeight = None
    null_space: NullSpace = None
    resume: Resume = False

    def values(self) -> dict[str, Any]:
        """These options as `EditSettings` takes them.

        Raises:
            InputError: a learning rate that is no number.
        """
        same = ("weights", "fraction", "batch_size", "weight_decay", "max_norm", "keep_weight", "null_space")
        mask = None if self.mask is None else str(self.mask)
        return {name: getattr(self, name) for name in same} | {"mask": mask, "learning_rate": learning_rate(self.rate)}


def make(options: StudyOptions, name: str, **values: Any) -> None:
    """Make an edit and say what it did, or that it did nothing."""
    # Refused before anything is loaded, scored or written.
    from mechmem.data.files import check_output
    from mechmem.study.edit_settings import EditSettings, check_edit_name

    study_settings, out = options.settings(), options.out
    settings = EditSettings(**values, seed=study_settings.seed)
    check_edit_name(name)
    check_output(out / "edits" / name, "folder")
    with console.status("loading"):
        from mechmem.study.edit_making import check_files, edit_folder, make_edit
        from mechmem.study.edits import outcome
    check_files(settings)
    study = opened_study(out, study_settings, device=options.device)

    with live_progress() as progress:
        history = make_edit(
            study,
            name,
            settings,
            progress=lambda done, total: progress(f"{settings.kind}, steps", done, total),
        )
    ended = {str(key).removeprefix("final_"): v for key, v in history.attrs.items() if str(key).startswith("final_")}
    table = Table("value", "at the end", title=f"Ended by: {history.attrs['ended']}")
    for key, value in ended.items():
        table.add_row(key, f"{float(value):.4g}")
    console.print(table)
    # The library warns where an edit did nothing, and says what to change.
    console.print(outcome(settings.kind, history), highlight=False, soft_wrap=True)
    wrote(edit_folder(study, name))
