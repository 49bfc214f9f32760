"""For tests of checkpoints that a stranger made: what they may hold, and what they must lead to."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mechmem.data.errors import InputError
from mechmem.model.load import load_model

FAMILIES = ("gpt_neo", "gpt_neox", "gpt2")
# What a JSON file may hold anywhere.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def refused(folder: Path, sentence: str | None = None) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def loads_or_says_why(folder: Path) -> None:
    """The model is loaded, or one sentence says what is wrong."""
    try:
        load_model(folder)
    except InputError as error:
        assert "\n" not in str(error)
