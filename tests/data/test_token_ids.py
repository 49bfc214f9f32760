"""Paragraphs from whatever holds integers, and rows of them; the rest is refused in a sentence."""

import string
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs

ROWS: Any = [[1, 2, 3], [4, 5, 6]]
WORKS = {
    "list": ROWS,
    "tuple": tuple(map(tuple, ROWS)),
    "tensor": torch.tensor(ROWS),
    "list of tensors": list(torch.tensor(ROWS)),
    "array": np.array(ROWS),
    "big-endian": np.array(ROWS, dtype=">i4"),
    "transposed": np.array(ROWS).T.copy().T,
    "frame": pd.DataFrame(ROWS),
    "masked, nothing hidden": np.ma.masked_array(ROWS, mask=False),
    "sparse": torch.tensor(ROWS).to_sparse(),
    "uint8": torch.tensor(ROWS, dtype=torch.uint8),
    "uint16": torch.tensor(ROWS, dtype=torch.uint16),
    "uint32": torch.tensor(ROWS, dtype=torch.uint32),
    "uint64": torch.tensor(ROWS, dtype=torch.uint64),
    "array of uint64": np.array(ROWS, dtype=np.uint64),
}
REFUSED = {
    "none": (None, "got NoneType of object as tokens"),
    "meta": (torch.tensor(ROWS, device="meta"), "on the device 'meta' .* which hold no numbers"),
    "float": (torch.ones(2, 3), "torch.float32 .*need integer ids"),
    "floats": (np.ones((2, 3)), "got ndarray of float64 as tokens"),
    "bool": (torch.ones(2, 3, dtype=torch.bool), "torch.bool .*need integer ids"),
    "sparse floats": (torch.ones(2, 3).to_sparse(), "torch.float32 .*need integer ids"),
    "one axis": (torch.arange(3), "need integer ids"),
    "three axes": (np.zeros((1, 2, 3), dtype=int), "need integer ids"),
    "unequal": ([[1, 2, 3], [4]], "rows of unequal length"),
    "unequal tensors": ([torch.arange(3), torch.arange(2)], "need token ids"),
    "masked": (np.ma.masked_array(ROWS, mask=np.eye(2, 3, dtype=bool)), "some are masked"),
    "text": ("a text", "got str of <U6 as tokens"),
    "a model's answer": ({"input_ids": ROWS}, "got dict of object as tokens"),
    "large": ([[1, 2, 2**31]], "got the token id 2147483648; need ids of at most 2147483647"),
    "larger": (np.array([[1, 2, 2**64 - 1]], dtype=np.uint64), "need ids of at most"),
    "larger than any": ([[1, 2, 2**70]], "of object as tokens"),
    "negative": ([[1, 2, -100]], "got the token id -100; ids start at 0"),
}


def as_users_make(**given: Any) -> Paragraphs:
    """Without the checks of annotations that tests switch on, which would answer before the class does."""
    made = object.__new__(Paragraphs)
    for name, value in ({"tokens": ROWS, "prefix_len": 2, "table": None, "tokenizer": None} | given).items():
        object.__setattr__(made, name, value)
    made.__post_init__()
    return made


@pytest.mark.parametrize("name", WORKS)
def test_integers_of_any_kind_become_ids(name):
    made = Paragraphs(WORKS[name], 2)
    assert made.tokens.tolist() == ROWS and made.tokens.dtype == torch.int64


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused(name):
    tokens, sentence = REFUSED[name]
    with pytest.raises(InputError, match=sentence):
        Paragraphs(tokens, 2)


@pytest.mark.parametrize(
    ("prefix_len", "sentence"),
    [
        (True, "got True as prefix_len"),
        (2.0, "got 2.0 as prefix_len"),
        ("2", "got '2' as prefix_len"),
        (3, "length 3|3 tokens"),
    ],
)
def test_a_prefix_is_a_whole_number_below_the_length(prefix_len, sentence):
    with pytest.raises(InputError, match=sentence):
        as_users_make(prefix_len=prefix_len)
    assert type(as_users_make(prefix_len=np.int64(2)).prefix_len) is int


def test_a_table_is_a_dataset():
    with pytest.raises(InputError, match="got dict as table; need a datasets.Dataset"):
        as_users_make(table={"a": [1, 2]})
    assert Paragraphs(ROWS, 2, datasets.Dataset.from_dict({"a": [1, 2]})).column("a").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ([2], "got rows 2 to 2 of 2 paragraphs"),
        ([-3], "got rows -3 to -3"),
        ([2**63], "got rows 9223372036854775808|rows of"),
        ([2**70], "got rows of object"),
        (np.array([2**64 - 1], dtype=np.uint64), "got rows 18446744073709551615"),
        ([0.0], "got rows of float64"),
        (["0"], "got rows of <U1"),
        ([[0]], "with shape .1, 1."),
        ([[True, False], [False, True]], "got a mask of shape .2, 2."),
        (True, "got a mask of shape .. for 2"),
        (None, "got rows of object"),
        (0, "with shape .."),
        ([0, 0], "got a row twice"),
        ([0, -2], "got a row twice"),
        ([[0], [0, 1]], "got list as rows"),
        (torch.ones(2), "got rows of float32"),
        (torch.tensor([0], device="meta"), "got Tensor as rows"),
    ],
)
def test_rows_that_are_none_are_refused(chosen, sentence):
    with pytest.raises(InputError, match=sentence):
        Paragraphs(ROWS, 2).select(chosen)
    with pytest.raises((InputError, IndexError)):
        Paragraphs(ROWS, 2)[2 if isinstance(chosen, int) else chosen]


# Text as it is found: control characters, line ends, characters beyond 16 bits; lone surrogates become their escapes.
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\0\n\r\t\u2028\ufeff"), max_size=12)


@st.composite
def made_paragraphs(draw: Any) -> tuple[np.ndarray, int, dict[str, list]]:
    rows, length = draw(st.integers(0, 5)), draw(st.integers(2, 6))
    tokens = draw(arrays(np.int64, (rows, length), elements=st.integers(0, 2**31 - 1)))
    columns: dict[str, list] = {
        "text": draw(st.lists(TEXT, min_size=rows, max_size=rows)),
        "nll": draw(st.lists(st.floats(), min_size=rows, max_size=rows)),
        draw(st.text(string.ascii_letters + "é ", min_size=1, max_size=5)): list(range(rows)),
    }
    return tokens, draw(st.integers(1, length - 1)), columns


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_gives_back_what_was_saved_and_rows_are_those_of_numpy(data, tmp_path_factory):
    tokens, prefix_len, columns = data.draw(made_paragraphs())
    paragraphs = Paragraphs(tokens, prefix_len).with_columns(**columns)
    path = tmp_path_factory.getbasetemp() / "p.parquet"
    paragraphs.save(path)
    read = Paragraphs.load(path)
    assert read.prefix_len == prefix_len and np.array_equal(read.tokens.numpy(), tokens)
    for name, values in columns.items():
        np.testing.assert_array_equal(read.column(name), np.array(values, dtype=read.column(name).dtype))
    assert read.ids.tolist() == paragraphs.ids.tolist()
    count = len(tokens)
    mask = data.draw(arrays(np.bool_, (count,)))
    order = data.draw(st.permutations(range(count)))[: data.draw(st.integers(0, count))]
    part = data.draw(st.slices(count))
    for chosen, rows in (
        (mask, np.flatnonzero(mask)),
        (order, np.array(order, dtype=int)),
        (part, np.arange(count)[part]),
    ):
        selected = read[chosen]
        assert np.array_equal(selected.tokens.numpy(), tokens[rows])
        assert selected.column("text").tolist() == [columns["text"][row] for row in rows]
        assert selected.ids.tolist() == read.ids[rows].tolist()


@pytest.mark.parametrize("ids", [[0.5, 1.5], [None, "a"], [[1], [2]], [True, False]])
def test_ids_are_integers_or_text(ids):
    with pytest.raises(InputError, match="need an integer or a text for each paragraph"):
        _ = Paragraphs(ROWS, 2).with_columns(id=ids).ids
    assert Paragraphs(ROWS, 2).with_columns(id=["a", "b"]).ids.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"x": [1, "a"]}, None),
        ({"x": [{"a": 1}, 2]}, "column 'x' cannot be kept"),
        ({"x": [[1], [1, 2]]}, "column 'x'"),
        ({"x": [1j, 2j]}, "column 'x' cannot be kept"),
        ({"x": [2**70, 1]}, "column 'x' cannot be kept"),
        ({"tokens": [1, 2]}, "got a column 'tokens', which is the ids themselves"),
        ({"x": [1]}, "has shape .1. for 2 paragraphs"),
        ({"x": 1}, "has shape .. for 2 paragraphs"),
    ],
)
def test_columns_that_a_table_cannot_hold_are_refused(columns, sentence):
    paragraphs = Paragraphs(ROWS, 2)
    if sentence is None:
        assert paragraphs.with_columns(**columns).column("x").tolist() == ["1", "a"]
        return
    with pytest.raises(InputError, match=sentence):
        paragraphs.with_columns(**columns)
