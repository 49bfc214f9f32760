"""Train the bundled model: a small GPT-Neo that really memorized a corpus whose repetitions are known.

    python experiments/train_bundled.py            # resumes from its last checkpoint; safe to kill at any time

Three steps: (1) write the corpus, its tokenizer, the paragraphs that ship and the token stream, unless they are there;
(2) train on the stream, once, from the last checkpoint on; (3) write the assets. Nothing of the model enters step 1.
"""

import platform
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers
import tyro
from corpus_training import ModelTraining, keep_allocator, save_model, train
from outputs import agree_on_settings, write_json
from tokenizers import ByteLevelBPETokenizer
from transformers import GPTNeoForCausalLM, PreTrainedTokenizerFast

from mechmem.data.assets import ASSETS
from mechmem.data.bounds import Count, Size
from mechmem.data.counts import unigram_counts
from mechmem.data.files import replacing
from mechmem.synthetic.generator import SyntheticCorpus, generate
from mechmem.synthetic.paragraph_sample import choose_paragraphs

END_OF_TEXT = "<|endoftext|>"
# Settings that decide neither the corpus nor the weights at a step.
FREE = ("assets", "checkpoint_every", "keep_memory", "only", "work")


@dataclass(frozen=True)
class Settings(ModelTraining):
    """What decides the model; `seed` chooses the corpus, too.

    Attributes:
        characters: length of the training text; 90 million are about 24 million tokens.
        unseen: documents of templates that are not trained on.
        unseen_variants: documents that are not trained on, of trained templates.
        tokenizer_documents: that the tokenizer is trained on.
        keep_memory: let the process keep freed memory, which is faster at this size (glibc only).
        only: "corpus" stops after step 1.
        work: folder of corpus and checkpoints.
        assets: folder that the model, the paragraphs, the counts and the record are written to.
    """

    characters: Count = 90_000_000
    unseen: Size = 800
    unseen_variants: Size = 250
    tokenizer_documents: Count = 30_000
    keep_memory: bool = True
    only: Literal["corpus"] | None = None
    work: Path = Path("runs/bundled")
    assets: Path = ASSETS


def synthetic(settings: Settings) -> SyntheticCorpus:
    """The corpus of these settings."""
    return generate(
        settings.seed, settings.characters, unseen=settings.unseen, unseen_variants=settings.unseen_variants
    )


def prepare(settings: Settings) -> None:
    """Step 1: corpus -> tokenizer.json, paragraphs.parquet, stream.npy, heldout.npy, unigram_counts.npy."""
    corpus = synthetic(settings)
    order = list(corpus.stream(settings.seed))
    tokenizer = ByteLevelBPETokenizer()
    sample = (corpus.trained[index].text for index in order[: settings.tokenizer_documents])
    tokenizer.train_from_iterator(sample, settings.d_vocab, special_tokens=[END_OF_TEXT], show_progress=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )
    texts = [d.text for part in (corpus.trained, corpus.unseen, corpus.unseen_variants) for d in part]
    encoded = {text: encoding.ids for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True)}
    paragraphs = choose_paragraphs(corpus, encoded, settings.seed)
    paragraphs = paragraphs.with_columns(text=[tokenizer.decode(row.tolist()) for row in paragraphs.tokens])
    # The end-of-text token (id 0) closes every document.
    stream = np.concatenate([np.asarray([*encoded[corpus.trained[index].text], 0], np.uint16) for index in order])
    heldout = np.concatenate([np.asarray([*encoded[document.text], 0], np.uint16) for document in corpus.unseen])
    with replacing(settings.work / "corpus") as folder:
        folder.mkdir()
        fast.save_pretrained(folder / "tokenizer")
        paragraphs.save(folder / "paragraphs.parquet")
        np.save(folder / "stream.npy", stream)
        np.save(folder / "heldout.npy", heldout)
        np.save(folder / "unigram_counts.npy", unigram_counts(stream, settings.d_vocab))
    print(f"{len(stream):,} tokens of training text, {len(paragraphs):,} paragraphs", flush=True)


def ship(settings: Settings, model: GPTNeoForCausalLM, log: dict) -> None:
    """Step 3: the checkpoint in float16, tokenizer, paragraphs, counts and the training record as assets."""
    with replacing(settings.assets / "bundled") as folder:
        save_model(model, folder)
        PreTrainedTokenizerFast.from_pretrained(settings.work / "corpus/tokenizer").save_pretrained(folder)
    for name in ("paragraphs.parquet", "unigram_counts.npy"):
        shutil.copyfile(settings.work / "corpus" / name, settings.assets / name)
    size = settings.batch * settings.n_ctx
    record = {
        "settings": {name: value for name, value in asdict(settings).items() if name not in FREE},
        "corpus_sha256": synthetic(settings).digest(),
        "tokens_seen": log["steps"] * size,
        "steps": log["steps"],
        "wall_seconds": log["seconds"],
        "starts": log["starts"],
        "loss_curve": log["curve"],
        "precision": "float32 weights, bfloat16 autocast",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
    }
    write_json(settings.assets / "training.json", record)


def main(settings: Settings) -> None:
    """Run the three steps.

    Args:
        settings: what decides the model.
    """
    if settings.keep_memory:
        keep_allocator()
    agree_on_settings(settings.work, settings, free=FREE)
    if not (settings.work / "corpus").exists():
        prepare(settings)
    if settings.only != "corpus":
        stream = np.load(settings.work / "corpus/stream.npy", mmap_mode="r")
        ship(settings, *train(settings, stream, settings.work / "checkpoint"))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
