import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.token_counts import as_counts

NUMBERS = [3, 0, 5, 1]
KINDS = {
    "list": NUMBERS,
    "tuple": tuple(NUMBERS),
    "uint8": np.array(NUMBERS, np.uint8),
    "int32": np.array(NUMBERS, np.int32),
    "float32": np.array(NUMBERS, np.float32),
    "tensor": torch.tensor(NUMBERS),
    "half tensor": torch.tensor(NUMBERS).half().requires_grad_(),
    "bfloat16": torch.tensor(NUMBERS).bfloat16(),
    "sparse": torch.tensor(NUMBERS).to_sparse(),
    "DataArray": xr.DataArray(NUMBERS, dims="token"),
    "Series": pd.Series(NUMBERS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_like_gives_the_same_counts(kind):
    counts = as_counts(KINDS[kind], 4)
    assert counts.dtype == np.float64 and counts.tolist() == [3.0, 0.0, 5.0, 1.0]


def test_counts_may_end_where_the_tokenizer_does():
    for length in (4, 5, 6):
        assert as_counts([3, 0, 5, 1, 0, 0][:length], 6, known=4).tolist() == [3.0, 0.0, 5.0, 1.0, 0.0, 0.0]
    for length in (3, 7):
        with pytest.raises(InputError, match=rf"shape \[{length}\] for a vocabulary of 6"):
            as_counts([1] * length, 6, known=4)


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ([1, 2, 3], r"shape \[3\] for a vocabulary of 4; need one for each token id"),
        (np.ones((4, 1)), r"shape \[4, 1\] for a vocabulary of 4"),
        ([1, 2, 3, -1], "negative or not finite"),
        ([1.0, 2.0, 3.0, float("nan")], "negative or not finite"),
        ([True, False, True, True], "got counts as list .the values are bool"),
        ({"a": 1}, "got counts as dict"),
        ([[1, 2], [3]], "got counts as list"),
        (None, "got counts as NoneType"),
    ],
)
def test_what_are_no_counts_is_refused(counts, sentence):
    with pytest.raises(InputError, match=sentence):
        as_counts(counts, 4)
