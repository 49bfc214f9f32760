"""Which model and which text an experiment is about, where it computes, and how its script begins and ends."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

import mechmem as mm
from mechmem.data.bounds import check_fields
from mechmem.data.counts import unigram_counts
from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer


@dataclass(frozen=True)
class Inputs:
    """The model, the text and the device; every script's settings begin with these.

    A page of docs describes the bundled model: of another model or text it is written into `out` instead, unless `page`
    says where.

    Attributes:
        model: "bundled", a checkpoint folder or a hub name.
        corpus: a file or folder that `read_corpus` reads; None takes the bundled paragraphs, which fit the bundled
            model alone.
        device: cpu, cuda, ...; None: a GPU if there is one.
    """

    model: str = "bundled"
    corpus: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        known: Any = self
        fields = type(self).__dataclass_fields__
        if (self.model, self.corpus) != ("bundled", None) and "page" in fields and known.page == fields["page"].default:
            object.__setattr__(self, "page", known.out / known.page.name)


def start(main: Callable[[Any], Any], settings: type[Any], description: str | None) -> Any:
    """Run a script with the settings of its command line; what cannot be used ends it with a sentence and code 2.

    Args:
        main: of the script.
        settings: its dataclass of settings, which is its command line.
        description: what `--help` says first.
    """
    try:
        return main(tyro.cli(settings, description=description))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def open_inputs(settings: Inputs, model: HookedTransformer | None = None) -> tuple[HookedTransformer, mm.Paragraphs]:
    """The model and the paragraphs that the settings name.

    Args:
        settings: name them.
        model: the model, if it is loaded already.
    """
    refuse_no_text(settings)
    model = mm.load_model(settings.model, device=settings.device) if model is None else model
    if settings.corpus is None:
        return model, mm.bundled_paragraphs()
    return model, mm.read_corpus(settings.corpus, model.tokenizer)


def refuse_no_text(settings: Inputs) -> None:
    """Refuse another model without text of its own.

    Raises:
        InputError: says what to give.
    """
    if settings.corpus is None and settings.model != "bundled":
        raise InputError(
            f"got no corpus for {settings.model}; the bundled paragraphs are token ids of the bundled model alone: "
            "name text or tokens that the model was trained on with --corpus"
        )


def token_counts(settings: Inputs, model: HookedTransformer, paragraphs: mm.Paragraphs) -> np.ndarray:
    """How often each token occurs, [d_vocab]: in the bundled model's training text, or in the corpus's paragraphs."""
    if settings.corpus is None:
        return mm.bundled_unigram_counts()
    return unigram_counts(paragraphs.tokens.numpy().ravel(), model.cfg.d_vocab)


def token_texts(model: HookedTransformer, tokens: Any) -> list[str]:
    """Each token's text, [pos]; its id where the model has no tokenizer."""
    ids = np.asarray(tokens).tolist()
    return [str(token) if model.tokenizer is None else str(model.tokenizer.decode([token])) for token in ids]
