from typing import Literal

import pytest

from mechmem.data.choices import check_choice, check_used
from mechmem.data.errors import InputError

Fruit = Literal["apple", "pear"]


def test_a_choice_is_one_of_a_literal_or_of_some_values():
    check_choice("fruit", "pear", Fruit)
    check_choice("number", 2, [1, 2])
    with pytest.raises(InputError, match="got fruit 'plum'; need one of apple, pear"):
        check_choice("fruit", "plum", Fruit)
    with pytest.raises(InputError, match="got number 3; need one of 1, 2"):
        check_choice("number", 3, [1, 2])


def test_options_that_a_method_does_not_use_are_refused():
    check_used("slow", ["steps"], {"steps": 3, "rate": None})
    with pytest.raises(InputError, match="method 'slow' does not use rate; leave it out"):
        check_used("slow", ["steps"], {"steps": 3, "rate": 0.0})
    with pytest.raises(InputError, match="does not use rate, size; leave them out"):
        check_used("slow", [], {"steps": None, "rate": 0.1, "size": 2})
