"""What ships with the package: a small trained model, its tokenizer, its paragraphs and how often its tokens occur."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from mechmem.data.fingerprint import fingerprint_of_file
from mechmem.data.paragraphs import Paragraphs

ASSETS = Path(__file__).parent.parent / "assets"
MODEL_FOLDER = ASSETS / "bundled"
PARAGRAPHS_FILE = ASSETS / "paragraphs.parquet"
COUNTS_FILE = ASSETS / "unigram_counts.npy"
TRAINING_FILE = ASSETS / "training.json"


def bundled_paragraphs() -> Paragraphs:
    """The shipped paragraphs, with columns `id, source, count, cluster, cluster_count, seen, text`.

    `count` is the exact number of times the 100 tokens occur in the training text, `cluster` the template, and
    `cluster_count` the occurrences of all the template's documents. `seen` is "trained", "unseen variant" (a trained
    template with slot values that were never trained on) or "never seen" (a template that was never trained on).
    """
    paragraphs = Paragraphs.load(PARAGRAPHS_FILE)
    return replace(paragraphs, tokenizer=fingerprint_of_file(MODEL_FOLDER / "tokenizer.json"))


def bundled_unigram_counts() -> Int[np.ndarray, " d_vocab"]:
    """How often every token id occurs in the bundled model's training text."""
    return np.load(COUNTS_FILE, allow_pickle=False)
