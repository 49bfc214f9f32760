"""Labels of tokens: white space visible, bytes of a character as bytes, long tokens cut."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from mechmem.show.token_labels import token_labels


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
            return {0: "a\n\tb", 1: "x" * 2000, 2: ""}[ids[0]]

    assert token_labels(Says(), [0, 1, 2]) == ["a↵⇥b", "x" * 39 + "…", "∅"]
    assert token_labels(None, [7, 8]) == [" 7", " 8"]
