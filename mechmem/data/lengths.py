"""How long prefixes and continuations are: what is asked for, and what token files say of themselves."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mechmem.data.decompress import BrokenFileError
from mechmem.data.errors import InputError
from mechmem.data.id_arrays import mapped_ids
from mechmem.data.paragraph_files import INTEGERS, PREFIX_LEN, PREFIX_LEN_KEY
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.parquet_text import damage_named

# Of text, where nothing is asked for; the prefix is `PREFIX_LEN`.
CONTINUATION_LEN = 50


def text_lengths(prefix_len: int | None, continuation_len: int | None) -> tuple[int, int]:
    """Tokens of prefix and continuation that text is cut into."""
    return prefix_len or PREFIX_LEN, continuation_len or CONTINUATION_LEN


def file_lengths(path: Path, prefix_len: int | None, continuation_len: int | None) -> tuple[int, int] | None:
    """Tokens of prefix and continuation in a token file, or a folder of such; None if it has no row to tell.

    A parquet of paragraphs says where its prefixes end. In other files they end where it is asked for: `prefix_len`
    tokens from the beginning, `continuation_len` from the end, or by default at 50. Rows are never cut.

    Raises:
        InputError: other lengths than those of the file are asked for.
    """
    stored, width = _stored(path)
    if width is None:
        return None
    given = stored or prefix_len or (PREFIX_LEN if continuation_len is None else max(1, width - continuation_len))
    own = given, width - given
    _refuse_others(str(path), own, (prefix_len or own[0], continuation_len or own[1]))
    return own


def load_paragraphs(path: Path, *, prefix_len: int | None = None, continuation_len: int | None = None) -> Paragraphs:
    """The paragraphs of a token file or a folder of such, split as `file_lengths` says.

    Raises:
        InputError: whatever `Paragraphs.load` refuses, or other lengths than those of the file.
    """
    own = file_lengths(path, prefix_len, continuation_len)
    stored, _ = _stored(path)
    return Paragraphs.load(path, prefix_len=None if own is None or stored else own[0])


def check_lengths(name: str, paragraphs: Paragraphs, *, prefix_len: int | None, continuation_len: int | None) -> None:
    """Refuse paragraphs whose prefixes or continuations have other lengths than is asked for; None asks for nothing.

    Raises:
        InputError: the sentence names both.
    """
    own = paragraphs.prefix_len, paragraphs.continuation_len
    _refuse_others(name, own, (prefix_len or own[0], continuation_len or own[1]))


def _refuse_others(name: str, own: tuple[int, int], asked: tuple[int, int]) -> None:
    if own != asked:
        raise InputError(
            f"{name}: got paragraphs of prefix_len {own[0]} and continuation_len {own[1]}; need {asked[0]} and "
            f"{asked[1]}, as asked for: leave these out, or save paragraphs of these lengths (Paragraphs.save)"
        )


def _stored(path: Path) -> tuple[int | None, int | None]:
    """The prefix length that a file states, and the tokens of its first row; whoever reads it says what is wrong."""
    files = sorted(file for file in path.glob("*.parquet") if file.name[0] != ".") if path.is_dir() else [path]
    prefix_len = None
    try:
        if path.suffix == ".npy":
            return None, mapped_ids(path, INTEGERS, "need ids").shape[1]
        with damage_named():
            for file in files:
                opened = pq.ParquetFile(file)
                said = (opened.schema_arrow.metadata or {}).get(PREFIX_LEN_KEY.encode(), b"")
                prefix_len = int(said) if said.isdigit() and len(said) < 10 else prefix_len
                for batch in opened.iter_batches(1, columns=["tokens"]):
                    return prefix_len, len(batch["tokens"][0])
    except (BrokenFileError, InputError, OSError, KeyError, TypeError, pa.ArrowException):
        pass
    return prefix_len, None
