"""A long text gives the ids that the tokenizer gives for the whole, in memory that the text sets by a small factor."""

import random

import numpy as np
import pytest

from mechmem.data import long_texts
from mechmem.data.assets import bundled_paragraphs
from mechmem.data.long_texts import encoded, is_long


@pytest.fixture(scope="module")
def tokenizer(bundled_model):
    return bundled_model.tokenizer


def prose() -> str:
    return "\n\n".join(bundled_paragraphs().column("text")[:40])


CASES = {
    "prose": prose,
    "characters of several tokens": lambda: prose().replace("e ", "\u00e9 \U0001f600"),
    "runs of spaces": lambda: prose().replace(" ", "   \n "),
    "numbers": lambda: "".join(str(number**3) for number in range(5000)),
    "no spaces": lambda: "".join(prose().split()),
    "null characters": lambda: prose().replace("a", "\0"),
    "odd characters": lambda: "".join(map(chr, random.Random(0).choices(range(32, 0x2FF), k=9000))),
    "one letter": lambda: "a" * 20_001,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("piece", [1000, 1024, 3001])
def test_pieces_give_the_ids_of_the_whole(tokenizer, monkeypatch, name, piece):
    monkeypatch.setattr(long_texts, "PIECE", piece)
    monkeypatch.setattr(long_texts, "SHARED", 200)
    text = CASES[name]()
    assert is_long(text)
    found = encoded(tokenizer, text, np.uint16)
    assert found.tolist() == tokenizer([text], add_special_tokens=False)["input_ids"][0]
    assert found.dtype == np.uint16


class Pairs:
    """Letters, two at a time from the start of what it is given: no place in a text is the same in a later piece."""

    is_fast = True

    def __call__(self, text, return_offsets_mapping=False, **_):
        texts = [text] if isinstance(text, str) else text
        places = [[(i, min(i + 2, len(t))) for i in range(0, len(t), 2)] for t in texts]
        ids = [[int(t[a:b]) for a, b in row] for t, row in zip(texts, places, strict=True)]
        if isinstance(text, str):
            return {"input_ids": ids[0]} | ({"offset_mapping": places[0]} if return_offsets_mapping else {})
        return {"input_ids": ids}


def test_pieces_that_agree_nowhere_lose_and_repeat_nothing(monkeypatch):
    monkeypatch.setattr(long_texts, "PIECE", 101)  # odd: each piece's pairs lie between those of its neighbour
    monkeypatch.setattr(long_texts, "SHARED", 30)
    text = "".join(str(random.Random(3).randrange(1, 10)) for _ in range(2000))
    assert "".join(map(str, encoded(Pairs(), text, np.uint16).tolist())) == text


def test_a_slow_tokenizer_encodes_the_whole():
    class Whole:
        def __call__(self, texts, **_):
            return {"input_ids": [[len(text)] for text in texts]}

    assert encoded(Whole(), "x" * 10**6, np.uint32).tolist() == [10**6]
