"""Which model and which text an experiment is about: the two settings that the scripts share."""

from dataclasses import dataclass
from typing import Any

import numpy as np

import mechmem as mm
from mechmem.data.bounds import check_fields
from mechmem.data.counts import unigram_counts
from mechmem.model.load import HookedTransformer


@dataclass(frozen=True)
class Inputs:
    """The model and the text; every script's settings begin with these.

    Attributes:
        model: "bundled", a checkpoint folder or a hub name.
        corpus: a file or folder that `read_corpus` reads; None takes the bundled paragraphs, which fit the bundled
            model alone.
    """

    model: str = "bundled"
    corpus: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def open_inputs(settings: Inputs, model: HookedTransformer | None = None) -> tuple[HookedTransformer, mm.Paragraphs]:
    """The model and the paragraphs that the settings name.

    Args:
        settings: name them.
        model: the model, if it is loaded already.
    """
    model = mm.load_model(settings.model) if model is None else model
    if settings.corpus is None:
        return model, mm.bundled_paragraphs()
    return model, mm.read_corpus(settings.corpus, model.tokenizer)


def token_counts(settings: Inputs, model: HookedTransformer, paragraphs: mm.Paragraphs) -> np.ndarray:
    """How often each token occurs, [d_vocab]: in the bundled model's training text, or in the corpus's paragraphs."""
    if settings.corpus is None:
        return mm.bundled_unigram_counts()
    return unigram_counts(paragraphs.tokens.numpy().ravel(), model.cfg.d_vocab)


def token_texts(model: HookedTransformer, tokens: Any) -> list[str]:
    """Each token's text, [pos]; its id where the model has no tokenizer."""
    ids = np.asarray(tokens).tolist()
    return [str(token) if model.tokenizer is None else str(model.tokenizer.decode([token])) for token in ids]
