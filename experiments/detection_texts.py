"""Predictable texts that no model was trained on: what follows is plain from the prefix, so nothing need be memorized.

Every text is made of fresh words: drawn by the synthetic grammar with a seed of its own, from the bundled corpus's own
vocabulary. Its continuation is known by construction, which makes these the hardest honest negatives of a detector: a
model says them with as much confidence as a recitation, and learned none of them.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch

import mechmem as mm
from mechmem.data.hashes import row_hashes, window_hashes
from mechmem.model.load import HookedTransformer
from mechmem.synthetic.grammar import Writer, fill
from mechmem.synthetic.lexicon import Lexicon, Topic

LINES = 80
SEED = 1_000_003


def counting(w: Writer) -> str:
    """Numbered items, all of one name."""
    name = f"{w.adjective()} {w.noun()}"
    return "\n".join(f"{number}. {name}" for number in range(1, LINES))


def numbered_keys(w: Writer) -> str:
    """Settings with a running number."""
    key, value = w.identifier(separator="_"), w.one_of("true", "false", "none")
    return "\n".join(f"{key}_{number} = {value}" for number in range(1, LINES))


def repeated_sentence(w: Writer) -> str:
    """A fresh sentence, again and again."""
    return " ".join([w.sentence("present")] * LINES)


def repeated_list(w: Writer) -> str:
    """Three fresh names in turn."""
    names = [w.noun_phrase() for _ in range(3)]
    return "\n".join(f"- {names[number % 3]}" for number in range(LINES))


def constant_table(w: Writer) -> str:
    """A table in which every row is the same."""
    row = f"{w.adjective()} {w.noun()} | {w.rng.randint(10, 99)}.{w.rng.randint(0, 9)} | {w.adjective()}"
    return "\n".join([" | ".join(["Item", w.noun().capitalize(), w.noun().capitalize()]), *[row] * LINES])


def refrain(w: Writer) -> str:
    """Two speakers who repeat themselves."""
    first, second = (w.lexicon.surnames.draw(w.rng) for _ in range(2))
    question, answer = f"Did you {w.verb()} {w.noun_phrase()}?", f"I never {w.verb()} {w.noun_phrase()}."
    return "\n".join([f"{first}: {question}", f"{second}: {answer}"] * LINES)


FAMILIES: dict[str, Callable[[Writer], str]] = {
    "counting": counting,
    "numbered keys": numbered_keys,
    "repeated sentence": repeated_sentence,
    "repeated list": repeated_list,
    "constant table": constant_table,
    "refrain": refrain,
}


def predictable(
    model: HookedTransformer, corpus: list[np.ndarray], each: int, *, seed: int = 0, length: int = 100
) -> mm.Paragraphs:
    """Predictable paragraphs of which no run of 25 tokens is in the training text.

    Args:
        model: whose tokenizer writes them.
        corpus: token ids of the distinct training documents.
        each: paragraphs of each family.
        seed: of the words.
        length: tokens of a paragraph, half of them prefix.

    Returns:
        Paragraphs with `id` (from a million on), `source` ("predictable: " and the family), `cluster` (each its own),
        `seen`, `count` and `text`.
    """
    tokenizer: Any = model.tokenizer
    known = np.unique(np.concatenate([window_hashes(tokens, 25) for tokens in corpus]))
    # The words of the bundled corpus, in topics of their own.
    lexicon = Lexicon(0)
    rows, sources = [], []
    for family, write in FAMILIES.items():
        found = 0
        for text in _texts(write, lexicon, f"{family} {seed}"):
            tokens = np.asarray(tokenizer(text)["input_ids"][:length])
            if len(tokens) < length or _stands_in(known, row_hashes(_windows(tokens, 25))):
                continue
            rows.append(tokens)
            sources.append(f"predictable: {family}")
            found += 1
            if found == each:
                break
    numbers = (SEED + np.arange(len(rows))).tolist()
    table = {
        "id": numbers,
        "source": sources,
        "cluster": numbers,
        "seen": ["never seen"] * len(rows),
        "count": [0] * len(rows),
        "text": [tokenizer.decode(tokens.tolist()) for tokens in rows],
    }
    return mm.Paragraphs(torch.tensor(np.stack(rows)), length // 2, datasets.Dataset.from_dict(table))


def _texts(write: Callable[[Writer], str], lexicon: Lexicon, seed: str) -> Iterator[str]:
    rng = random.Random(f"predictable {seed}")
    while True:
        yield fill(write(Writer(lexicon, Topic.draw(lexicon, rng), rng)), lexicon, rng)


def _stands_in(known: np.ndarray, hashes: np.ndarray) -> bool:
    """Whether any of the hashes is among the sorted known ones."""
    return bool((known[np.searchsorted(known, hashes).clip(max=len(known) - 1)] == hashes).any())


def _windows(tokens: np.ndarray, length: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(tokens, length)
