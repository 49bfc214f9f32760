"""A checkpoint's tokenizer files, which a stranger may have written: only what decides the tokens, each of its kind.

transformers' own reading of a folder follows what lies in it: other files, code, paths and formats that
`tokenizer_config.json` names. So it is given a folder of copies with a `tokenizer_config.json` of what was checked.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mechmem.data.choices import shown
from mechmem.data.errors import InputError
from mechmem.model.json_files import is_file, read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
# The largest of a published model has 20 MB; reading takes about ten times the size.
MOST_BYTES = 32 * 2**20
MOST_SETTINGS = 4 * 2**20
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
SWITCHES = ("add_prefix_space", "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "trim_offsets")
LISTS = ("additional_special_tokens", "extra_special_tokens")
TOKEN_SWITCHES = {"lstrip", "rstrip", "normalized", "single_word", "special"}
LARGEST_ID = 2**31 - 1


@contextmanager
def checked_copy(folder: Path, vocabulary: int) -> Iterator[tuple[Path, str | None]]:
    """A temporary folder with copies of the tokenizer's files, and the name of its class if one is given.

    Args:
        folder: the checkpoint's folder.
        vocabulary: how many ids the model has. The tokenizers library counts up to the largest id, which may be 2**32,
            and ends the process when memory is used up.

    Raises:
        InputError: a file that is too large or no JSON, values of another kind, ids that the model does not have, or a
            tokenizer that is code.
    """
    with TemporaryDirectory(prefix="mechmem-tokenizer-") as temporary:
        target = Path(temporary)
        for name in TOKENIZER_FILES:
            path = folder / name
            if is_file(path):
                if path.stat().st_size > MOST_BYTES:
                    raise InputError(f"{path}: has {path.stat().st_size:,} bytes; need at most {MOST_BYTES:,}")
                shutil.copyfile(path, target / name)
        _check_ids(folder, vocabulary)
        settings = _settings(folder, vocabulary)
        kind = settings.pop("tokenizer_class", None)
        (target / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        for name in ("special_tokens_map.json", "added_tokens.json"):
            if (target / name).is_file():
                content = read_json(folder / name, MOST_SETTINGS)
                _check_map(folder / name, content)
        yield target, kind


def _settings(folder: Path, vocabulary: int) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not is_file(path):
        return {}
    raw = read_json(path, MOST_SETTINGS)
    if raw.get("auto_map"):
        raise InputError(
            f"{path}: auto_map is set; the tokenizer is code beside the weights, which is not run: need tokenizer.json"
        )
    kept = {name: raw[name] for name in ("tokenizer_class", *TOKENS, *SWITCHES, *LISTS) if raw.get(name) is not None}
    for name, value in kept.items():
        right = (
            isinstance(value, str)
            if name == "tokenizer_class"
            else isinstance(value, bool)
            if name in SWITCHES
            else _is_token(value)
            if name in TOKENS
            else _are_tokens(value)
        )
        if not right:
            raise InputError(f"{path}: {name} is {str(value)[:80]!r}, which is of another kind; correct it")
    decoder = raw.get("added_tokens_decoder")
    if decoder is not None:
        if not isinstance(decoder, dict) or not all(_is_id(key) and _is_token(value) for key, value in decoder.items()):
            raise InputError(f"{path}: added_tokens_decoder does not give a token for each id; correct it")
        if decoder and (largest := max(map(int, decoder))) >= vocabulary:
            raise InputError(beyond(folder, largest, vocabulary))
        kept["added_tokens_decoder"] = decoder
    return kept


def _check_ids(folder: Path, vocabulary: int) -> None:
    ids: list[Any] = []
    if is_file(folder / "tokenizer.json"):
        content = read_json(folder / "tokenizer.json", MOST_BYTES)
        model, added = content.get("model"), content.get("added_tokens")
        words = model.get("vocab") if isinstance(model, dict) else None
        ids += words.values() if isinstance(words, dict) else range(len(words)) if isinstance(words, list) else []
        ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    elif is_file(folder / "vocab.json"):
        ids += read_json(folder / "vocab.json", MOST_BYTES).values()
    if is_file(folder / "added_tokens.json"):
        ids += read_json(folder / "added_tokens.json", MOST_SETTINGS).values()
    for each in ids:
        if not isinstance(each, int) or isinstance(each, bool) or each < 0:
            raise InputError(f"{folder}: its tokenizer has {shown(each)} as an id; need whole numbers from 0")
    if ids and max(ids) >= vocabulary:
        raise InputError(beyond(folder, max(ids), vocabulary))


def beyond(folder: Path, largest: int, vocabulary: int) -> str:
    """The sentence about a tokenizer of a larger model."""
    return (
        f"{folder}: its tokenizer gives ids up to {largest} and the model's vocabulary has {vocabulary}; need ids "
        f"below {vocabulary}: put the tokenizer beside the model it was trained with"
    )


def _check_map(path: Path, content: dict[str, Any]) -> None:
    for name, value in content.items():
        number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_ID
        if not (number if path.name == "added_tokens.json" else _is_token(value) or _are_tokens(value)):
            raise InputError(f"{path}: {name[:80]!r} is {str(value)[:80]!r}, which is of another kind; correct it")


def _is_token(value: Any) -> bool:
    """Text, or text with switches, such as {"content": "<pad>", "lstrip": false}."""
    if not isinstance(value, dict):
        return isinstance(value, str)
    switches = {name: each for name, each in value.items() if name not in ("content", "__type")}
    right = set(switches) <= TOKEN_SWITCHES and all(isinstance(each, bool) for each in switches.values())
    return isinstance(value.get("content"), str) and right


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list | dict) and all(
        _is_token(each) for each in (value.values() if isinstance(value, dict) else value)
    )


def _is_id(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) < 11 and int(value) <= LARGEST_ID
