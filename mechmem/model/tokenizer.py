"""The tokenizer of a checkpoint folder, fitted to the model without adding a BOS token."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mechmem.data.errors import InputError
from mechmem.model.json_files import is_file
from mechmem.model.tokenizer_files import beyond, checked_copy

END_OF_TEXT = "<|endoftext|>"
MERGES = "merges.txt"
# Classes that transformers may build; a tokenizer.json of any other class is read as it stands.
CLASSES = {"GPT2Tokenizer", "GPTNeoXTokenizer", "PreTrainedTokenizer", "TokenizersBackend"}
# Published GPT-NeoX models round the vocabulary up to a multiple of 128 for each of up to 8 parts; fine-tuners of any
# family add padding tokens and round up to a multiple of 8 or more. A larger difference is another model's tokenizer.
MOST_PADDING = 1024


def load_tokenizer(folder: Path, config: PreTrainedConfig, *, vocabulary: int) -> PreTrainedTokenizerBase | None:
    """Read `tokenizer.json`, or `vocab.json` with `merges.txt`; None and one warning where there is neither.

    Args:
        folder: the checkpoint's folder; nothing outside it is asked.
        config: the checkpoint's configuration, as `read_config` checked it.
        vocabulary: how many ids the model has; up to 1,023 more than the tokenizer has.

    Raises:
        InputError: unreadable files, values of another kind, a tokenizer that is code, ids that the model does not
            have, or too many ids of the model without a token.
    """
    if not is_file(folder / "tokenizer.json") and not all(is_file(folder / name) for name in ("vocab.json", MERGES)):
        warnings.warn(
            f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt): the model works on token ids, "
            "not on text",
            UserWarning,
            stacklevel=3,
        )
        return None
    with checked_copy(folder, vocabulary) as (copies, kind):
        try:
            tokenizer = _read(copies, kind, config)
            _name_special_tokens(tokenizer)
            tokenizer.encode("")
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the tokenizers library raises bare Exceptions, and panics that are none
            reason = f"{type(error).__name__}: {error}".replace(str(copies), str(folder))
            raise InputError(
                f"{folder}: its tokenizer files cannot be read ({reason[:300]}); fetch or write them again"
            ) from None
    tokenizer.name_or_path = str(folder)
    _check_vocabulary(folder, tokenizer, vocabulary)
    return tokenizer


def _read(folder: Path, kind: str | None, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    if kind is not None and kind.removesuffix("Fast") in CLASSES:
        return AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True, trust_remote_code=False)
    if kind is not None and (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    # Without a class named, AutoTokenizer forces the model family's usual tokenizer on the files and may add an id.
    inner: Any = None
    if not (folder / "tokenizer.json").is_file():
        inner = ByteLevelBPETokenizer.from_file(str(folder / "vocab.json"), str(folder / MERGES))
    source = {"tokenizer_file": str(folder / "tokenizer.json")} if inner is None else {}
    source |= {} if inner is None else {"tokenizer_object": inner._tokenizer}
    known = PreTrainedTokenizerFast(**source).get_vocab()
    special = {"eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT} if END_OF_TEXT in known else {}
    return PreTrainedTokenizerFast(**source, **special)


def _check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    known = known_ids(tokenizer)
    if known > vocabulary:
        raise InputError(beyond(folder, known - 1, vocabulary))
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
