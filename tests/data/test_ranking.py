import numpy as np
import pytest

from mechmem.data.errors import InputError
from mechmem.data.ranking import largest, share_of


def test_the_largest_come_first_equal_ones_in_order_and_nan_last():
    values = np.array([[2.0, np.nan, 7.0], [7.0, -1.0, 3.0]])
    assert largest(values, 3).tolist() == [2, 3, 5]
    assert largest(values, 10).tolist() == [2, 3, 5, 0, 4, 1]
    # Unsigned and boolean values have no negative.
    assert largest(np.array([3, 0, 9], dtype=np.uint8), 2).tolist() == [2, 0]
    assert largest(np.array([False, True, True]), 2).tolist() == [1, 2]


def test_a_share_is_at_least_one_and_refused_out_of_range():
    assert share_of(200, 0.05, 0.01) == 10 and share_of(3, 0.01, 0.01) == 1 and share_of(7, 1.0, 0.01) == 7
    for fraction in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="got fraction .*; need 0 < fraction <= 1, for example 0.01"):
            share_of(10, fraction, 0.01)
