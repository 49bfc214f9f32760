"""The models that the oracle's distances need: one that never read the targets, and one of another seed.

    python experiments/oracle_training.py --which oracle    # about an hour on two cores; resumes; safe to kill
    python experiments/oracle_training.py --which seed

Both follow the bundled model's recipe; their steps are `fused_step`, which differs from its plain step by rounding. The
oracle has its corpus, order and first weights, without every document of the targets' clusters, near-duplicates
included. The other has the whole corpus in another order, from other weights: it shows how far apart two models lie
that were trained on the same text.
"""

import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from corpus_training import ModelTraining, keep_allocator, save_model, train
from fused_step import fused_step
from inputs import start
from outputs import agree_on_settings, write_json
from target_sets import target_clusters
from transformers import PreTrainedTokenizerFast

import mechmem as mm
from mechmem.data.assets import MODEL_FOLDER
from mechmem.data.bounds import Count, Seed, Size
from mechmem.data.files import replacing
from mechmem.data.own_files import read_json
from mechmem.synthetic.generator import generate


@dataclass(frozen=True)
class Settings(ModelTraining):
    """What decides the two models.

    Attributes:
        which: "oracle": without the targets' clusters; "seed": with all text, and another seed.
        other_seed: of the order and the first weights of the second.
        characters: length of the whole training text.
        unseen: as of the bundled model's corpus; it decides nothing here but the generator's later numbers.
        unseen_variants: the same.
        seeds: of the unlearning experiment.
        targets: clusters that each of its seeds forgets.
        work: folder of the models.
    """

    which: Literal["oracle", "seed"] = "oracle"
    other_seed: Seed = 1
    characters: Count = 90_000_000
    unseen: Size = 800
    unseen_variants: Size = 250
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    targets: Count = 32
    work: Path = Path("runs/oracle")


def left_out(settings: Settings) -> list[int]:
    """The targets' clusters, ascending."""
    model, paragraphs = mm.load_model("bundled", device="cpu"), mm.bundled_paragraphs()
    em = mm.score(model, paragraphs).em.values
    clusters = target_clusters(paragraphs, em, settings.seeds, settings.targets)
    return sorted(cluster for some in clusters.values() for cluster in some)


def token_stream(settings: Settings, without: list[int]) -> np.ndarray:
    """The training text of the bundled model in the order of the seed, without some clusters, [pos]."""
    corpus = generate(
        settings.seed, settings.characters, unseen=settings.unseen, unseen_variants=settings.unseen_variants
    )
    order = list(corpus.stream(settings.seed if settings.which == "oracle" else settings.other_seed))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_FOLDER)
    encoded = tokenizer([document.text for document in corpus.trained])["input_ids"]
    removed = set(without)
    kept = [index for index in order if corpus.trained[index].cluster not in removed]
    # The end-of-text token (id 0) closes every document.
    return np.concatenate([np.asarray([*encoded[index], 0], np.uint16) for index in kept])


def _reseeded(settings: Settings) -> Settings:
    return replace(settings, seed=settings.other_seed)


def main(settings: Settings) -> None:
    """Write the stream, train, and write the model with its record.

    Args:
        settings: what decides the models.
    """
    keep_allocator()
    folder = settings.work / settings.which
    agree_on_settings(folder, settings, free=("checkpoint_every", "work"))
    if not (folder / "stream.npy").exists():
        without = left_out(settings) if settings.which == "oracle" else []
        write_json(folder / "left_out.json", {"clusters": without})
        stream = token_stream(settings, without)
        with replacing(folder / "stream.npy") as temporary, temporary.open("wb") as file:
            np.save(file, stream)
        print(f"{len(stream):,} tokens, {len(without)} clusters left out", flush=True)
    without = read_json(folder / "left_out.json", {"clusters": list})["clusters"]
    stream = np.load(folder / "stream.npy", mmap_mode="r")
    used = settings if settings.which == "oracle" else _reseeded(settings)
    model, log = train(used, stream, folder / "checkpoint", step_down=fused_step)
    with replacing(folder / "model") as temporary:
        save_model(model, temporary)
        PreTrainedTokenizerFast.from_pretrained(MODEL_FOLDER).save_pretrained(temporary)
    unread = mm.bundled_paragraphs()
    unread.select(np.isin(unread.clusters, without)).save(folder / "unread.parquet")
    record = {
        "settings": asdict(settings),
        "left_out": without,
        "tokens_seen": log["steps"] * settings.batch * settings.n_ctx,
        **{name: log[name] for name in ("steps", "seconds", "starts", "curve")},
        "precision": "float32 weights, bfloat16 autocast",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
    }
    write_json(folder / "training.json", record)


if __name__ == "__main__":
    start(main, Settings, __doc__)
