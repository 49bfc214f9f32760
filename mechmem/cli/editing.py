"""What `mechmem unlearn`, `edit` and `memorize` share: options of training, and making one edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mechmem.cli.app import console, wrote
from mechmem.cli.choices import EditWeights
from mechmem.cli.display import live_progress

if TYPE_CHECKING:
    from mechmem.study.folder import StudyFolder

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
    float, typer.Option(help="Share of the attention and MLP weights that may change.", rich_help_panel=WHICH)
]
Steps = Annotated[int, typer.Option(help="At most this many updates.", rich_help_panel=TRAINING)]
Rate = Annotated[
    str,
    typer.Option(
        "--learning-rate",
        help="Of AdamW; auto: the rate chosen for the bundled model, or for another model one that is searched.",
        rich_help_panel=TRAINING,
    ),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help="Paragraphs of each set in one update.", rich_help_panel=TRAINING)
]
Decay = Annotated[
    float | None,
    typer.Option("--weight-decay", help="Of AdamW, on the weights that may change.", rich_help_panel=TRAINING),
]
MaxNorm = Annotated[
    float | None, typer.Option("--max-norm", help="Clip the gradient to this norm.", rich_help_panel=TRAINING)
]
KeepWeight = Annotated[
    float | None,
    typer.Option("--keep-weight", help="Weight of the term that holds other text.", rich_help_panel=TRAINING),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted edit.", rich_help_panel=TRAINING)]


def learning_rate(text: str) -> float | None:
    """A number, or None for auto.

    Raises:
        InputError: neither.
    """
    from mechmem.data.errors import InputError

    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise InputError(f"--learning-rate is {text!r}; need a number or auto") from None


def make(study: StudyFolder, name: str, resume: bool, **values: Any) -> None:
    """Make an edit and say what it did, or that it did nothing."""
    from mechmem.study.edit_settings import EditSettings
    from mechmem.study.edits import edit_folder, make_edit, outcome

    settings = EditSettings(**values)
    with live_progress() as progress:
        history = make_edit(
            study,
            name,
            settings,
            resume=resume,
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
