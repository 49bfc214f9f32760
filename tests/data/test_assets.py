"""What ships is what the generator and the tokenizer give: nobody retouched it."""

import json

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mechmem.data import assets
from mechmem.synthetic.generator import generate
from mechmem.synthetic.paragraph_sample import choose_paragraphs

SETTINGS = json.loads(assets.TRAINING_FILE.read_text())["settings"]


@pytest.fixture(scope="module")
def corpus():
    return generate(SETTINGS["seed"], SETTINGS["characters"])


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(assets.MODEL_FOLDER)


@pytest.fixture(scope="module")
def encoded(corpus, tokenizer):
    texts = [d.text for part in (corpus.trained, corpus.unseen, corpus.unseen_variants) for d in part]
    return dict(zip(texts, tokenizer(texts)["input_ids"], strict=True))


def test_the_training_text_can_be_written_again(corpus):
    assert corpus.digest() == json.loads(assets.TRAINING_FILE.read_text())["corpus_sha256"]


def test_the_shipped_paragraphs_follow_from_the_seed(corpus, encoded):
    again, shipped = choose_paragraphs(corpus, encoded, SETTINGS["seed"]), assets.bundled_paragraphs()
    assert torch.equal(again.tokens, shipped.tokens) and shipped.prefix_len == 50
    for column in ("id", "source", "count", "cluster", "cluster_count", "seen"):
        assert again.column(column).tolist() == shipped.column(column).tolist()
    assert 2_000 <= len(shipped) <= 5_000 and len(set(map(tuple, shipped.tokens.tolist()))) == len(shipped)


def test_counts_agree_with_searching_the_stream(corpus, encoded):
    """Slow oracle: look for the tokens in the whole training text, document after document."""
    shipped = assets.bundled_paragraphs()
    rng = np.random.default_rng(0)
    texts = ["," + ",".join(map(str, encoded[d.text])) + "," for d in corpus.trained]
    for index in rng.choice(len(shipped), 12, replace=False):
        need = "," + ",".join(map(str, shipped.tokens[index].tolist())) + ","
        truth = sum(d.count for d, text in zip(corpus.trained, texts, strict=True) if need in text)
        assert shipped.column("count")[index] == truth


def test_labels_say_what_was_seen():
    shipped = assets.bundled_paragraphs()
    seen, count, total = (shipped.column(name) for name in ("seen", "count", "cluster_count"))
    assert set(seen) == {"trained", "unseen variant", "never seen"}
    assert (count[seen == "trained"] >= 1).all()
    assert (count[seen == "never seen"] == 0).all() and (total[seen == "never seen"] == 0).all()
    assert (total[seen == "unseen variant"] > 0).all() and (total >= count)[seen == "trained"].mean() > 0.99


def test_unigram_counts_are_of_the_training_text(corpus, encoded):
    counts = assets.bundled_unigram_counts()
    truth = np.zeros(len(counts), dtype=np.int64)
    for document in corpus.trained:
        np.add.at(truth, [*encoded[document.text], 0], document.count)
    assert (counts == truth).all()


def test_what_ships_is_small():
    weights = list(assets.MODEL_FOLDER.glob("*.safetensors"))
    assert len(weights) == 1 and weights[0].stat().st_size < 20e6
    assert not [path for path in assets.ASSETS.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]
