import pickle

import pytest

from mechmem.data.errors import InputError


@pytest.mark.parametrize(
    "message", ["two\nlines", " a\r\n  list:\n\t- of\x0bthings \x85and\u2028more\x1e ", "", OSError("first\nsecond")]
)
def test_a_message_is_one_line(message):
    error = InputError(message)
    assert str(error) == " ".join(str(message).split()) and len(str(error).splitlines()) <= 1
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_words_stay_as_they_are():
    sentence = "got 'x'; need 1 or 2: choose one"
    assert str(InputError(sentence)) == sentence


def test_the_middle_of_a_long_message_is_left_out():
    error = InputError("got '" + "x" * 10**6 + "'; need 1")
    assert len(str(error)) < 2000 and str(error).startswith("got 'xxx") and str(error).endswith("xxx'; need 1")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
