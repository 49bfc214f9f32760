import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from mechmem.data.errors import InputError
from mechmem.data.filters import PAPER_KEYWORDS, PAPER_MIN_DISTINCT, distinct_enough, without_keywords


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_distinct_shares_agree_with_a_set_for_each_window(dtype):
    tokens = np.random.default_rng(0).integers(0, 25, (300, 22)).astype(dtype)
    keep = distinct_enough(tokens, PAPER_MIN_DISTINCT)
    assert keep.tolist() == [len(set(row)) >= 11 for row in tokens.tolist()]
    tight = distinct_enough(tokens, 14 / 22)
    assert tight.tolist() == [len(set(row)) >= 14 for row in tokens.tolist()] and 0 < tight.sum() < 300


def test_exactly_half_distinct_is_enough():
    assert distinct_enough(np.array([[1, 1, 2, 2], [1, 1, 1, 1]]), 0.5).tolist() == [True, False]


def test_keywords_are_looked_for_in_the_text_and_letter_case_counts():
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["plain words"], 256, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)
    texts = ["the licensed", "a License x", "see a href=", "unlimitedly", "nothing her"]
    rows = np.array([tokenizer(text.ljust(13))["input_ids"] for text in texts])
    assert without_keywords(rows, PAPER_KEYWORDS, tokenizer).tolist() == [False, True, False, False, True]
    assert without_keywords(rows[:0], PAPER_KEYWORDS, tokenizer).shape == (0,)


def test_keywords_without_a_tokenizer_are_refused():
    with pytest.raises(InputError, match=r"got keywords \['href'\] and no tokenizer"):
        without_keywords(np.zeros((1, 3), dtype=np.int64), ["href"], None)
