"""The tokenizer of a checkpoint folder, fitted to the model without adding a BOS token."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mechmem.data.errors import InputError

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Published GPT-NeoX models round the vocabulary up to a multiple of 128 for each of up to 8 parts; fine-tuners of any
# family add padding tokens and round up to a multiple of 8 or more. A larger difference is another model's tokenizer.
MOST_PADDING = 1024


def load_tokenizer(folder: Path, *, vocabulary: int) -> PreTrainedTokenizerBase | None:
    """Read `tokenizer.json`, or `vocab.json` with `merges.txt`; None and one warning where there is neither.

    Args:
        folder: the checkpoint's folder; nothing outside it is asked.
        vocabulary: how many ids the model has; up to 1,023 more than the tokenizer has.

    Raises:
        InputError: unreadable files, ids that the model does not have, or too many ids of the model without a token.
    """
    whole, parts = folder / "tokenizer.json", (folder / "vocab.json", folder / "merges.txt")
    if not whole.is_file() and not all(part.is_file() for part in parts):
        warnings.warn(
            f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt): the model works on token ids, "
            "not on text",
            UserWarning,
            stacklevel=3,
        )
        return None
    try:
        tokenizer = _read(folder, whole, parts)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise InputError(
            f"{folder}: its tokenizer files cannot be read ({error}); fetch or write them again"
        ) from error
    _check_vocabulary(folder, tokenizer, vocabulary)
    _name_special_tokens(tokenizer)
    return tokenizer


def _read(folder: Path, whole: Path, parts: tuple[Path, Path]) -> PreTrainedTokenizerBase:
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and "tokenizer_class" in json.loads(settings.read_text(encoding="utf-8")):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Without a class named, AutoTokenizer forces the model family's usual tokenizer on the files and may add an id.
    inner: Any = ByteLevelBPETokenizer.from_file(str(parts[0]), str(parts[1])) if not whole.is_file() else None
    source = {"tokenizer_file": str(whole)} if inner is None else {"tokenizer_object": inner._tokenizer}
    known = PreTrainedTokenizerFast(**source).get_vocab()
    special = {"eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT} if END_OF_TEXT in known else {}
    return PreTrainedTokenizerFast(**source, **special)


def _check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    known = known_ids(tokenizer)
    if known > vocabulary:
        raise InputError(
            f"{folder}: its tokenizer gives ids up to {known - 1} and the model's vocabulary has {vocabulary}; need "
            f"ids below {vocabulary}: put the tokenizer beside the model it was trained with"
        )
    if vocabulary - known >= MOST_PADDING:
        raise InputError(
            f"{folder}: the model's vocabulary has {vocabulary} ids and its tokenizer only {known}; need fewer than "
            f"{MOST_PADDING} ids without a token: put the tokenizer beside the model it was trained with"
        )


def known_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many ids a tokenizer gives, tokens added later included: one more than the largest."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _name_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the roles that TransformerLens asks for to tokens there are; none is added to the vocabulary."""
    if tokenizer.eos_token is None and END_OF_TEXT in tokenizer.get_vocab():
        tokenizer.eos_token = END_OF_TEXT
    for role in ("pad_token", "bos_token"):
        if getattr(tokenizer, role) is None and tokenizer.eos_token is not None:
            setattr(tokenizer, role, tokenizer.eos_token)
    # With padding on the left TransformerLens masks leading padding tokens, which here are text.
    tokenizer.padding_side = "right"
