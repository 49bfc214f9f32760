"""Numbers with bounds: what is taken, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechmem.data.bounds import (
    Amount,
    Count,
    Index,
    Level,
    Rate,
    Seed,
    Share,
    Size,
    check_bounds,
    check_fields,
    checked,
)
from mechmem.data.errors import InputError

INTEGERS = {Count: 1, Size: 0, Seed: 0, Index: 0}
NUMBERS = (Share, Level, Rate, Amount)


@pytest.mark.parametrize("kind", INTEGERS)
@given(value=st.integers(-3, 2**64) | st.sampled_from([2**63 - 1, 2**63, 2**70, -(2**70), 10**6000]))
def test_integers_are_taken_within_their_bounds_alone(kind, value):
    if INTEGERS[kind] <= value < 2**63:
        assert check_bounds("x", value, kind) == value
    else:
        with pytest.raises(InputError, match="as x; need a whole number of at least"):
            check_bounds("x", value, kind)


@pytest.mark.parametrize("kind", NUMBERS)
@given(value=st.floats() | st.integers(-2, 2) | st.just(10**400))
def test_numbers_are_taken_within_their_bounds_alone(kind, value):
    good = {
        Share: 0 < value <= 1,
        Level: 0 < value < 1,
        Rate: 0 < value < float("inf"),
        Amount: 0 <= value < float("inf"),
    }[kind]
    if good and value != 10**400:
        assert check_bounds("x", value, kind) == value
    else:
        with pytest.raises(InputError, match="as x; need a finite number"):
            check_bounds("x", value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "sentence"),
    [
        (-1, Count, "got -1 as steps; need a whole number of at least 1"),
        (50.0, Count, "got 50.0 as steps; need a whole number of at least 1"),
        (True, Count, "got True as steps; need a whole number of at least 1"),
        (np.bool_(True), Count, "got bool as steps; need a whole number of at least 1"),
        (np.int64(-3), Count, "got -3 as steps; need a whole number of at least 1"),
        ("5", Count, "got '5' as steps; need a whole number of at least 1"),
        (torch.tensor(5), Count, "got Tensor as steps; need a whole number of at least 1"),
        (None, Count, "got None as steps; need a whole number of at least 1"),
        (
            2**70,
            Seed,
            "got 1180591620717411303424 as steps; need a whole number of at least 0 and at most 9223372036854",
        ),
        (float("nan"), Amount, "got nan as steps; need a finite number of at least 0"),
        (np.float32("inf"), Rate, "got inf as steps; need a finite number above 0"),
        (0, Share, "got 0 as steps; need a finite number above 0 and at most 1"),
        (1j, Rate, "got complex as steps; need a finite number above 0"),
        (1, bool, "got 1 as steps; need True or False"),
        (1, str, "got 1 as steps; need text"),
        ("x", Literal["a", "b"], "got steps 'x'; need one of a, b"),
        ([1, -1], Sequence[Count], "got -1 as steps[1]; need a whole number of at least 1"),
        ("12", Sequence[Count], "got '12' as steps; need several values"),
        (3, tuple[Count, ...], "got 3 as steps; need several values"),
        ((1, 2, 3), tuple[Index, Index], "got 3 values as steps; need 2"),
        (0, Count | None, "got 0 as steps; need a whole number of at least 1"),
        ("most", Count | Literal["all"] | None, "got 'most' as steps; need a whole number"),
    ],
)
def test_what_is_refused_is_said(value, kind, sentence):
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}"):
        check_bounds("steps", value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "plain"),
    [
        (np.int8(3), Count, 3),
        (np.float32(0.5), Share, 0.5),
        (1, Rate, 1.0),
        (Path("a") / "b", str, os.fspath(Path("a/b"))),
        (np.bool_(False), bool, False),
        (None, Count | None, None),
        ("all", Count | Literal["all"] | None, "all"),
        (np.array([2, 1]), Iterable[Index] | None, [2, 1]),
        (torch.tensor([2, 1]), Sequence[Index], [2, 1]),
        ((i for i in (2, 1)), Iterable[Index], [2, 1]),
        (["a"], tuple[str, ...], ("a",)),
        ([[1, 2]], Sequence[tuple[Index, Index]], [(1, 2)]),
        (5, Annotated[Count | None, "more"], 5),
        ("anything", torch.Tensor, "anything"),
    ],
)
def test_what_is_taken_comes_as_plain_values(value, kind, plain):
    got = check_bounds("x", value, kind)
    assert got == plain and type(got) is type(plain)


@dataclass(frozen=True)
class Sizes:
    draws: Count = 5
    share: Share | None = None
    inner: Sizes | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def test_fields_are_checked_by_their_annotations():
    assert Sizes(np.int64(3)) == Sizes(3) and type(Sizes(np.int64(3)).draws) is int  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="got 1.5 as share"):
        Sizes(share=1.5)
    assert Sizes(inner=Sizes(3)).inner == Sizes(3)
    wrong = dataclasses.replace(Sizes())
    object.__setattr__(wrong, "inner", 5)
    with pytest.raises(InputError, match="got 5 as inner; need a mechmem.Sizes"):
        check_fields(wrong)


@checked
def doubled(value: Count, *, times: Size = 2, other: Any = None) -> int:
    return value * times + (other is not None)


def test_arguments_are_checked_by_their_annotations():
    assert doubled(2) == doubled(value=2) == 4
    with pytest.raises(InputError, match="got 0 as value"):
        doubled(0)
    with pytest.raises(InputError, match="got nan as times"):
        doubled(1, times=float("nan"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="missing"):
        doubled()  # pyright: ignore[reportCallIssue]
