"""The ladder's training text: a background, and documents inserted into it as often as a random draw said.

Documents of 150 tokens are written from templates that occur nowhere else. Within each kind of document, chance decides
how often each is inserted and under which condition, so that documents of different counts differ by their counts and
nothing else. Every copy stands whole in a row of the training text, between two end-of-text tokens; a row holds at most
one copy. The rest is the background, in order.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import datasets
import numpy as np
import torch

import mechmem as mm
from mechmem.data.bounds import Count, Seed, check_fields
from mechmem.data.errors import InputError
from mechmem.synthetic.generator import TOPICS, generate
from mechmem.synthetic.grammar import Writer, fill
from mechmem.synthetic.kinds import KINDS
from mechmem.synthetic.lexicon import Lexicon, Topic

# The bundled model's lexicon: its tokenizer knows these words.
LEXICON_SEED = 0
LENGTH = 150
# Of the paragraphs that measures are about: the continuation is always the document's last 50 tokens.
PREFIX_LEN, CONTINUATION_LEN = 50, 50
END_OF_TEXT = 0
# Copies -> documents of each kind, spread over the whole training.
SPREAD = {0: 4, 1: 4, 2: 4, 4: 4, 8: 4, 16: 3, 32: 2, 64: 2, 128: 1, 256: 1}
# Copies of the documents under each other condition, one of each kind.
OTHER_COPIES = (4, 16, 64)
# Condition -> the part of training in which its copies stand.
CONDITIONS = {"spread": (0.0, 1.0), "early": (0.0, 0.25), "late": (0.75, 1.0), "changed slots": (0.0, 1.0)}
# One token in so many of the prefix is a slot; the continuation has none.
SLOT_EVERY = 10
# A document that is measured, and one with other tokens in its slots that is never trained on.
BASE, NEAR_DUPLICATE = "base", "near-duplicate"


Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class CorpusSettings:
    """What decides the text.

    Attributes:
        assignment: seed of the inserted documents and of which is inserted how often; the same for all rungs.
        tokens: length of the training text.
        characters: length of the background that tokens are taken from.
        most_copies: documents with more copies are left out, so that a text may be small.
        n_ctx: tokens of a row.
    """

    assignment: Seed = 0
    tokens: Count = 4_000_000
    characters: Count = 48_000_000
    most_copies: Count = 256
    n_ctx: Count = 256

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Inserted:
    """One template.

    Attributes:
        kind: a key of `KINDS`.
        copies: how often a document of it is inserted.
        condition: a key of `CONDITIONS`.
        base: token ids of the document that is measured, [pos].
        near_duplicate: token ids of a document with other values in its slots that is never inserted, [pos].
        changed: token ids of the copies with changed slots, [copy, pos]; empty under other conditions.
    """

    kind: str
    copies: int
    condition: str
    base: np.ndarray
    near_duplicate: np.ndarray
    changed: np.ndarray

    def texts(self) -> np.ndarray:
        """Token ids of what is inserted, [copy, pos]."""
        return self.changed if self.condition == "changed slots" else np.tile(self.base, (self.copies, 1))


def cells(most_copies: int) -> list[tuple[int, str]]:
    """Copies and condition of each document of a kind."""
    spread = [(copies, "spread") for copies, documents in SPREAD.items() for _ in range(documents)]
    other = [(copies, condition) for condition in list(CONDITIONS)[1:] for copies in OTHER_COPIES]
    return [cell for cell in spread + other if cell[0] <= most_copies]


def inserted_documents(settings: CorpusSettings, encode: Encode) -> list[Inserted]:
    """Write the documents of each kind, all by the same rule, then draw which cell each of them gets.

    Args:
        settings: of the text.
        encode: texts -> token ids of each.
    """
    lexicon, rng = Lexicon(LEXICON_SEED), random.Random(f"ladder {settings.assignment}")
    topics = [Topic.draw(lexicon, rng) for _ in range(TOPICS)]
    found = []
    for kind, write in KINDS.items():
        deck, bases = cells(settings.most_copies), []
        while len(bases) < len(deck):
            template = write(Writer(lexicon, rng.choice(topics), rng))
            tokens = encode([fill(template, lexicon, rng)])[0][:LENGTH]
            bases += [tokens] if len(tokens) == LENGTH else []
        rng.shuffle(deck)
        values = np.concatenate(bases).tolist()
        for (copies, condition), base in zip(deck, bases, strict=True):
            slots = [place + rng.randrange(SLOT_EVERY) for place in range(0, LENGTH - CONTINUATION_LEN, SLOT_EVERY)]
            changed = np.tile(np.asarray(base, np.uint16), (1 + copies * (condition == "changed slots"), 1))
            changed[:, slots] = [[rng.choice(values) for _ in slots] for _ in changed]
            found.append(Inserted(kind, copies, condition, np.asarray(base, np.uint16), changed[0], changed[1:]))
    return found


def background(settings: CorpusSettings, encode: Encode, seed: int) -> np.ndarray:
    """Token ids of the background in the order of a seed, each document closed by an end of text, [pos]."""
    corpus = generate(LEXICON_SEED, settings.characters, unseen=0, unseen_variants=0)
    encoded = [[*ids, END_OF_TEXT] for ids in encode([document.text for document in corpus.trained])]
    parts, length = [], 0
    for index in corpus.stream(seed):
        parts.append(np.asarray(encoded[index], np.uint16))
        length += len(parts[-1])
        if length >= settings.tokens:
            return np.concatenate(parts)
    raise InputError(f"got a background of {length:,} tokens; need at least {settings.tokens:,}: give more characters")


def training_text(
    settings: CorpusSettings, documents: list[Inserted], text: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Insert the copies at places that a seed draws.

    Args:
        settings: of the text.
        documents: of `inserted_documents`.
        text: the background, [pos].
        seed: of the places.

    Returns:
        Token ids, [pos], and the row of each copy, [copy], in the order of the documents.

    Raises:
        InputError: more copies than rows.
    """
    rng, rows = np.random.default_rng(seed), settings.tokens // settings.n_ctx
    free, places = np.ones(rows, bool), {}
    # Conditions that are bound to a part of training choose first.
    for condition in sorted(CONDITIONS, key=lambda name: CONDITIONS[name] == (0.0, 1.0)):
        first, last = (int(rows * share) for share in CONDITIONS[condition])
        owners = [index for index, document in enumerate(documents) if document.condition == condition]
        count = sum(documents[index].copies for index in owners)
        open_rows = first + np.flatnonzero(free[first:last])
        if count > len(open_rows):
            raise InputError(
                f"got {count:,} copies for {len(open_rows):,} rows of {settings.n_ctx} tokens; need a row for each: "
                "give more tokens or fewer copies"
            )
        chosen = rng.choice(open_rows, count, replace=False)
        free[chosen] = False
        stops = np.cumsum([documents[index].copies for index in owners])
        places |= {
            index: chosen[stop - documents[index].copies : stop] for index, stop in zip(owners, stops, strict=True)
        }
    where = np.concatenate([places[index] for index in range(len(documents))])
    closed = np.pad(np.concatenate([document.texts() for document in documents]), ((0, 0), (1, 1)))
    starts = where * settings.n_ctx + rng.integers(0, settings.n_ctx - LENGTH - 1, len(where))
    stream, inserted = np.empty(rows * settings.n_ctx, np.uint16), np.zeros(rows * settings.n_ctx, bool)
    positions = starts[:, None] + np.arange(LENGTH + 2)
    stream[positions], inserted[positions] = closed, True
    stream[~inserted] = text[: (~inserted).sum()]
    return stream, where


def document_table(documents: list[Inserted], tokenizer: str | None = None) -> mm.Paragraphs:
    """The documents that are measured, first those that were inserted, then a near-duplicate of each.

    Columns: `cluster` (the template), `source` (its kind), `copies` and `condition` (of the cluster), `text_of` (base
    or near-duplicate), `count` (of this very document in the training text) and `tokens` of it.

    Args:
        documents: of `inserted_documents`.
        tokenizer: fingerprint.
    """
    numbers = np.arange(len(documents)).tolist()
    table = {
        "id": [*numbers, *(number + len(numbers) for number in numbers)],
        "cluster": numbers * 2,
        "source": [document.kind for document in documents] * 2,
        "copies": [document.copies for document in documents] * 2,
        "condition": [document.condition for document in documents] * 2,
        "text_of": [BASE] * len(numbers) + [NEAR_DUPLICATE] * len(numbers),
        "count": [d.copies if d.condition != "changed slots" else 0 for d in documents] + [0] * len(numbers),
        "tokens": [LENGTH] * (2 * len(numbers)),
    }
    rows = np.stack([d.base for d in documents] + [d.near_duplicate for d in documents])
    tokens = torch.from_numpy(rows.astype(np.int64))
    return mm.Paragraphs(tokens, LENGTH - CONTINUATION_LEN, datasets.Dataset.from_dict(table), tokenizer)


def with_prefix(documents: mm.Paragraphs, prefix_len: int) -> mm.Paragraphs:
    """Paragraphs with a prefix of this many tokens before the same continuation."""
    start = documents.prefix_len - prefix_len
    return mm.Paragraphs(documents.tokens[:, start:], prefix_len, documents.table, documents.tokenizer)
