"""The synthetic corpus: training text whose every repetition is known.

A corpus is a list of distinct documents, each with a kind, a cluster and the number of times it occurs. A cluster is
one template; its documents are near-duplicates, alike but for the names, dates and numbers in their slots. Both the
number of documents of a cluster and the occurrences of a document follow power laws, as duplicates of web text do
(Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better"). All text is invented here.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from mechmem.synthetic.grammar import Writer, fill
from mechmem.synthetic.kinds import KINDS
from mechmem.synthetic.lexicon import Lexicon, Topic

TOPICS = 150
MOST_OCCURRENCES = 4000
MOST_VARIANTS = 40
OCCURRENCE_EXPONENT = {"news": 2.1, "dialogue": 2.1}
DEFAULT_OCCURRENCE_EXPONENT = 1.8
VARIANT_EXPONENT = 2.2


@dataclass(frozen=True)
class Document:
    """One distinct text.

    Attributes:
        text: the document.
        kind: a key of `KINDS`.
        cluster: number of its template; documents with the same number differ in their slots only.
        count: occurrences in the training text; 0 for text that no model was trained on.
    """

    text: str
    kind: str
    cluster: int
    count: int


@dataclass(frozen=True)
class SyntheticCorpus:
    """Training documents, documents of fresh templates, and fresh variants of templates that were trained on."""

    trained: list[Document]
    unseen: list[Document]
    unseen_variants: list[Document]

    def stream(self, seed: int) -> Iterator[int]:
        """The training text: indices into `trained`, each `count` times, in an order drawn from the seed."""
        order = [index for index, document in enumerate(self.trained) for _ in range(document.count)]
        random.Random(f"order {seed}").shuffle(order)
        return iter(order)

    def digest(self) -> str:
        """SHA-256 over the training documents and their counts: equal on every machine for equal settings."""
        value = hashlib.sha256()
        for document in self.trained:
            value.update(f"{document.count}\0{document.text}\0".encode())
        return value.hexdigest()


def power_law(rng: random.Random, exponent: float, most: int) -> int:
    """An integer k in 1..most with P(K >= k) proportional to k ** (1 - exponent), by inversion of a Pareto law."""
    floor = (most + 1) ** (1 - exponent)
    uniform = floor + rng.random() * (1 - floor)
    return min(most, int(uniform ** (1 / (1 - exponent))))


def generate(seed: int, characters: int, *, unseen: int = 800, unseen_variants: int = 250) -> SyntheticCorpus:
    """Write a corpus of about `characters` characters of training text, repetitions included.

    The same arguments give the same corpus on every machine. Clusters are numbered on from the trained ones to the
    unseen ones, so a number never names two templates.

    Args:
        seed: chooses everything.
        characters: length of the training text; the last cluster may pass it.
        unseen: documents of templates that occur nowhere in the training text.
        unseen_variants: documents of trained templates whose own slot values were never trained on.
    """
    lexicon = Lexicon(seed)
    rng = random.Random(f"corpus {seed}")
    topics = [Topic.draw(lexicon, rng) for _ in range(TOPICS)]
    trained: list[Document] = []
    templates: list[tuple[str, str]] = []
    written = 0
    while written < characters:
        kind, template = _template(lexicon, topics, rng)
        exponent = OCCURRENCE_EXPONENT.get(kind, DEFAULT_OCCURRENCE_EXPONENT)
        for _ in range(power_law(rng, VARIANT_EXPONENT, MOST_VARIANTS)):
            count = power_law(rng, exponent, MOST_OCCURRENCES)
            text = fill(template, lexicon, rng)
            trained.append(Document(text, kind, len(templates), count))
            written += len(text) * count
        templates.append((kind, template))
    fresh = [_template(lexicon, topics, rng) for _ in range(unseen)]
    chosen = [rng.randrange(len(templates)) for _ in range(unseen_variants)]
    return SyntheticCorpus(
        trained=trained,
        unseen=[
            Document(fill(template, lexicon, rng), kind, len(templates) + number, 0)
            for number, (kind, template) in enumerate(fresh)
        ],
        unseen_variants=[
            Document(fill(templates[cluster][1], lexicon, rng), templates[cluster][0], cluster, 0) for cluster in chosen
        ],
    )


def _template(lexicon: Lexicon, topics: list[Topic], rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(list(KINDS))
    return kind, KINDS[kind](Writer(lexicon, rng.choice(topics), rng))
