"""The rungs of the ladder: which models, which text, and where each keeps its snapshots."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from corpus_training import ModelTraining
from ladder_corpus import CorpusSettings

from mechmem.data.bounds import Count, Seed, check_fields
from mechmem.data.errors import InputError

# Name -> layers, width, heads: about 0.9, 3.5 and 5.8 million parameters; the last is the bundled model's shape.
SHAPES = {"1M": (4, 96, 4), "3M": (6, 192, 6), "6M": (6, 256, 8)}
# Over the width it is the learning rate: narrow models learn little at the bundled model's.
RATE_TIMES_WIDTH = 0.48
SMALLEST = "1M-small-seed0"


@dataclass(frozen=True)
class RungSettings(ModelTraining):
    """What decides one model.

    Attributes:
        batch: rows of n_ctx tokens in a step.
        warmup_steps: of the learning rate.
        corpus: the text.
        snapshots: models that are kept, at equal distances; the last is the finished one.
    """

    batch: Count = 8
    warmup_steps: Count = 100
    corpus: CorpusSettings = CorpusSettings()
    snapshots: Count = 8


@dataclass(frozen=True)
class Settings:
    """Which models, and what is done with them.

    Attributes:
        rung: "smallest", a name as 3M-large-seed1, or "all".
        small: tokens of the shorter text.
        large: tokens of the longer text.
        seeds: of the order, the places and the first weights.
        characters: length of the background that tokens are taken from.
        most_copies: documents with more copies are left out, so that a text may be small.
        batch: rows of 256 tokens in a step.
        checkpoint_every: steps between checkpoints.
        only: "train" stops before anything is measured.
        work: folder of the rungs.
    """

    rung: str = "smallest"
    small: Count = 4_000_000
    large: Count = 12_000_000
    seeds: tuple[Seed, ...] = (0, 1)
    characters: Count = 48_000_000
    most_copies: Count = 256
    batch: Count = 8
    checkpoint_every: Count = 200
    only: Literal["train"] | None = None
    work: Path = Path("runs/ladder")

    def __post_init__(self) -> None:
        check_fields(self)


def rungs(settings: Settings) -> dict[str, RungSettings]:
    """Every rung by name, in the order in which they are worth training."""
    texts = {"small": settings.small, "large": settings.large}
    found = {}
    for seed in settings.seeds:
        for text, tokens in texts.items():
            for shape, (layers, width, heads) in SHAPES.items():
                found[f"{shape}-{text}-seed{seed}"] = RungSettings(
                    seed=seed,
                    n_layers=layers,
                    d_model=width,
                    n_heads=heads,
                    learning_rate=RATE_TIMES_WIDTH / width,
                    batch=settings.batch,
                    checkpoint_every=settings.checkpoint_every,
                    corpus=CorpusSettings(
                        tokens=tokens, characters=settings.characters, most_copies=settings.most_copies
                    ),
                )
    return found


def chosen(settings: Settings) -> dict[str, RungSettings]:
    """The rungs that the settings name.

    Raises:
        InputError: there is none of that name; the sentence lists all.
    """
    known = rungs(settings)
    if settings.rung == "all":
        return known
    name = SMALLEST if settings.rung == "smallest" else settings.rung
    if name not in known:
        raise InputError(f"got rung {settings.rung!r}; need 'smallest', 'all' or one of {', '.join(known)}")
    return {name: known[name]}


def snapshot_steps(rung: RungSettings, steps: int) -> list[int]:
    """After which steps models are kept, ascending."""
    return sorted({max(1, steps * number // rung.snapshots) for number in range(1, rung.snapshots + 1)})


def snapshot_folder(folder: Path, step: int) -> Path:
    """Where a rung keeps the model of a step."""
    return folder / "snapshots" / f"step{step:06d}"
