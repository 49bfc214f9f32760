"""Which tokenizer token ids belong to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

_KNOWN: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def fingerprint(tokenizer: Any) -> str:
    """A tokenizer's vocabulary, without tokens added later, as "SIZE-DIGEST".

    Added tokens (padding, as fine-tuners add it) do not change what the other ids mean, so they do not count.

    Args:
        tokenizer: a tokenizer of transformers or of tokenizers.
    """
    if tokenizer not in _KNOWN:
        inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if hasattr(inner, "get_vocab_size"):
            vocabulary = inner.get_vocab(with_added_tokens=False)
        else:
            vocabulary = tokenizer.get_vocab()
        content = json.dumps(sorted(vocabulary.items())).encode()
        _KNOWN[tokenizer] = f"{len(vocabulary)}-{hashlib.sha256(content).hexdigest()[:16]}"
    return _KNOWN[tokenizer]


def fingerprint_of_file(path: Path) -> str:
    """The same of a `tokenizer.json`."""
    from tokenizers import Tokenizer

    return fingerprint(Tokenizer.from_file(str(path)))


def vocabulary_size(mark: str) -> int:
    """How many ids a tokenizer of this fingerprint gives."""
    return int(mark.split("-")[0])


def tokenizer_of(mark: str) -> Any | None:
    """A tokenizer of this fingerprint that this process has met, as models with it are loaded; None: there is none.

    All tokenizers of one fingerprint give the same text for the same ids.
    """
    known = [tokenizer for tokenizer, found in list(_KNOWN.items()) if found == mark]
    return next((tokenizer for tokenizer in known if hasattr(tokenizer, "convert_ids_to_tokens")), None)
