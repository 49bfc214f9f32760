"""Train the ladder: models of three sizes on text whose every repetition was drawn by chance.

    python experiments/ladder.py --rung smallest    # minutes; resumes from its last checkpoint; safe to kill
    python experiments/ladder.py --rung 6M-small-seed0
    python experiments/ladder.py --rung all          # hours: three sizes, two texts, two seeds, one model at a time

The text is that of `ladder_corpus`: the shorter one holds the same inserted documents as the longer one, in less
background. A seed decides the order of the background, where the copies stand and the first weights; which document is
inserted how often is the same in all of them. A rung's folder holds its settings, training text, checkpoint, snapshots
in float16 and training.json.
"""

import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from corpus_training import ModelTraining, build, keep_allocator, save_model, step_count, train
from fused_step import fused_step
from inputs import start
from ladder_corpus import CorpusSettings, background, document_table, inserted_documents, training_text
from outputs import agree_on_settings, write_json
from transformers import GPTNeoForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from mechmem.data.assets import MODEL_FOLDER
from mechmem.data.bounds import Count, Seed, check_fields
from mechmem.data.checksums import checksum
from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.data.fingerprint import fingerprint
from mechmem.data.folder_lock import only_writer

# Name -> layers, width, heads: about 0.9, 3.5 and 5.8 million parameters; the last is the bundled model's shape.
SHAPES = {"1M": (4, 96, 4), "3M": (6, 192, 6), "6M": (6, 256, 8)}
# Over the width it is the learning rate: narrow models learn little at the bundled model's.
RATE_TIMES_WIDTH = 0.48
SMALLEST = "1M-small-seed0"
# Settings that do not decide the weights.
FREE = ("checkpoint_every", "log_every")


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
    """Which models.

    Attributes:
        rung: "smallest", a name as 3M-large-seed1, or "all".
        small: tokens of the shorter text.
        large: tokens of the longer text.
        seeds: of the order, the places and the first weights.
        characters: length of the background that tokens are taken from.
        most_copies: documents with more copies are left out, so that a text may be small.
        batch: rows of 256 tokens in a step.
        checkpoint_every: steps between checkpoints.
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


def tokenizer() -> PreTrainedTokenizerFast:
    """The bundled model's."""
    return PreTrainedTokenizerFast.from_pretrained(MODEL_FOLDER)


def prepare(rung: RungSettings, folder: Path) -> np.ndarray:
    """The rung's training text, [pos], written when it is not there, with its documents and the row of each copy."""
    if not (folder / "stream.npy").exists():
        tokens = tokenizer()
        encode = lambda texts: tokens(texts)["input_ids"]  # noqa: E731
        documents = inserted_documents(rung.corpus, encode)
        stream, rows = training_text(rung.corpus, documents, background(rung.corpus, encode, rung.seed), rung.seed)
        document_table(documents, fingerprint(tokens)).save(folder / "documents.parquet")
        for name, values in {"copies": rows, "stream": stream}.items():
            with replacing(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, values)
    return np.load(folder / "stream.npy", mmap_mode="r")


def cost(rung: RungSettings, stream: np.ndarray) -> str:
    """Tokens, parameters and time of a rung, from two steps on this machine."""
    model = build(rung)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rows = torch.from_numpy(stream[: rung.batch * rung.n_ctx].astype(np.int64)).view(rung.batch, -1)
    for _ in range(2):
        began = time.monotonic()
        fused_step(model, optimizer, rows, rung.clip_norm)
    steps = step_count(rung, stream)
    minutes = (time.monotonic() - began) * steps / 60
    millions = sum(weights.numel() for weights in model.parameters()) / 1e6
    return f"{millions:.1f} million parameters, {len(stream):,} tokens, {steps} steps, about {minutes:.0f} minutes"


def train_rung(rung: RungSettings, folder: Path) -> None:
    """Train one model from its last checkpoint on, and write its record; nothing is done for a finished one."""
    with only_writer(folder):
        agree_on_settings(folder, rung, free=FREE)
        if (folder / "training.json").exists():
            print(f"{folder.name}: finished before", flush=True)
            return
        stream = prepare(rung, folder)
        print(f"{folder.name}: {cost(rung, stream)}", flush=True)
        steps, tokens = step_count(rung, stream), tokenizer()

        def keep(model: GPTNeoForCausalLM, step: int) -> None:
            with replacing(snapshot_folder(folder, step)) as temporary:
                save_model(model, temporary)
                tokens.save_pretrained(temporary)

        marks = snapshot_steps(rung, steps)
        _, log = train(rung, stream, folder / "checkpoint", snapshots=marks, snapshot=keep, step_down=fused_step)
        digests = {str(mark): checksum(snapshot_folder(folder, mark) / "model.safetensors") for mark in marks}
        record = {
            "settings": asdict(rung),
            "stream_sha256": checksum(folder / "stream.npy"),
            "snapshot_sha256": digests,
            "tokens_seen": steps * rung.batch * rung.n_ctx,
            **{name: log[name] for name in ("steps", "seconds", "starts", "curve")},
            "precision": "float32 weights, bfloat16 products",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "date": time.strftime("%Y-%m-%d"),
        }
        write_json(folder / "training.json", record)


def snapshot_steps(rung: RungSettings, steps: int) -> list[int]:
    """After which steps models are kept, ascending."""
    return sorted({max(1, steps * number // rung.snapshots) for number in range(1, rung.snapshots + 1)})


def snapshot_folder(folder: Path, step: int) -> Path:
    """Where a rung keeps the model of a step."""
    return folder / "snapshots" / f"step{step:06d}"


def main(settings: Settings) -> None:
    """Train the rungs one after the other.

    Args:
        settings: which.
    """
    keep_allocator()
    disable_progress_bar()
    for name, rung in chosen(settings).items():
        train_rung(rung, settings.work / name)


if __name__ == "__main__":
    start(main, Settings, __doc__)
