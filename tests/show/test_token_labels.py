"""Labels of tokens: white space visible, bytes of a character as bytes, long tokens cut."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from mechmem.show.token_labels import text_labels, token_labels


@pytest.fixture(scope="module")
def bytes_alone():
    """A byte-level tokenizer without merges: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_parts_of_characters_read_as_their_bytes(bytes_alone):
    for text in ("😀", "中", "é"):
        ids = bytes_alone.encode(text)
        assert token_labels(bytes_alone, ids) == [f"‹{value:02X}›" for value in text.encode()]


def test_every_byte_has_its_own_label(bytes_alone):
    labels = token_labels(bytes_alone, range(256))
    assert len(set(labels)) == 256
    # All that is not ASCII is no character by itself.
    assert sum(label.startswith("‹") for label in labels) == 128


def test_white_space_is_visible_and_long_tokens_are_cut():
    class Says:
        def decode(self, ids):
            return {0: "a\n\tb", 1: "x" * 2000, 2: "", 3: "   ", 4: " a", 5: "\u200b", 6: "\x07"}[ids[0]]

    assert token_labels(Says(), [0, 1, 2]) == ["a↵⇥b", "x" * 39 + "…", "∅"]
    assert token_labels(Says(), [3, 4, 5, 6]) == ["···", " a", "‹U+200B›", "␇"]
    assert token_labels(None, [7, 8]) == [" 7", " 8"]


def test_a_character_of_several_tokens_stands_at_its_first(bytes_alone):
    text = "a中😀é b"
    labels = text_labels(bytes_alone, bytes_alone.encode(text))
    assert labels == ["a", "中", "₂", "₃", "😀", "₂", "₃", "₄", "é", "₂", "·", "b"]
    # What is left without its subscripts is the text.
    assert "".join(label for label in labels if label not in "₂₃₄").replace("·", " ") == text


def test_bytes_that_are_no_character_stay_bytes(bytes_alone):
    whole = bytes_alone.encode("中")
    assert text_labels(bytes_alone, whole[:2]) == ["‹E4›", "‹B8›"]
    assert text_labels(bytes_alone, [*whole[1:], *whole]) == ["‹B8›", "‹AD›", "中", "₂", "₃"]
    assert text_labels(bytes_alone, whole[:1]) == ["‹E4›"]


def test_a_token_with_the_end_of_one_character_and_the_beginning_of_the_next():
    parts = ["中国".encode()[:2], "中国".encode()[2:5], "中国".encode()[5:]]
    letters = {value: letter for letter, value in byte_letters().items()}

    class Says:
        def decode(self, ids):
            return parts[ids[0]].decode("utf-8", "replace")

        def convert_ids_to_tokens(self, token):
            return "".join(letters[value] for value in parts[token])

    assert text_labels(Says(), [0, 1, 2]) == ["中", "₂国", "₂"]


def byte_letters():
    """The letter of each byte, from transformers' own table."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: value for value, letter in bytes_to_unicode().items()}
