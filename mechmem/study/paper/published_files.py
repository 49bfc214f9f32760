"""The study's public files as they are: token ids of its groups, its pairs, and the table of memorized paragraphs."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mechmem.data.corpora import RUN
from mechmem.data.counts import cluster
from mechmem.data.errors import InputError
from mechmem.data.paragraph_files import read_array
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.worst_pairs import compare_pairs

LENGTH, PREFIX_LEN, VOCABULARY = 100, 50, 50_257
MEMORIZED = "em50.npy"
# Continuations in these files are what GPT-Neo 125M itself wrote after the true prefix.
OWN_TEXT = {"30-49": "em30_49.npy", "11-29": "em11_29.npy", "0-10": "em0_10.npy"}
PAIRS = ("pairs_memorized.npy", "pairs_perturbed.npy")
TABLE = "memorized.csv"
COLUMNS = ("paragraph", "id", "count", "em", "nll")
ADVICE = "download the study's file again"


@dataclass(frozen=True)
class PublishedFiles:
    """What the folder holds.

    Attributes:
        memorized: true text that GPT-Neo 125M reproduces exactly; with the columns of the table, where it is there.
        own_text: group of EM -> true prefixes, each followed by the model's own greedy continuation.
        pairs: memorized paragraphs, and the same with one prefix token replaced, followed by the greedy continuation.
    """

    memorized: Paragraphs
    own_text: Mapping[str, Paragraphs] = field(default_factory=dict)
    pairs: tuple[Paragraphs, Paragraphs] | None = None


def holds_published_files(folder: str | Path | None) -> bool:
    """Whether this is a folder of the study's public files."""
    return folder is not None and (Path(folder) / MEMORIZED).is_file()


def read_published_files(folder: str | Path) -> PublishedFiles:
    """Read the study's public files; all but `em50.npy` may be missing.

    Raises:
        InputError: a file of another kind or shape, ids outside GPT-Neo's vocabulary, a table of other rows, half of
            the pairs, or pairs that do not differ in exactly one prefix token.
    """
    folder = Path(folder)
    memorized = _rows(folder / MEMORIZED)
    if (folder / TABLE).is_file():
        memorized = memorized.with_columns(**_table(folder / TABLE, len(memorized)))
    own = {name: _rows(folder / file) for name, file in OWN_TEXT.items() if (folder / file).is_file()}
    return PublishedFiles(memorized, own, _pairs(folder))


def _rows(path: Path) -> Paragraphs:
    tokens = read_array(path)
    if tokens.shape[1] != LENGTH or not len(tokens):
        raise InputError(f"{path}: got shape {list(tokens.shape)}; need ids [paragraph, {LENGTH}]: {ADVICE}")
    if tokens.min() < 0 or tokens.max() >= VOCABULARY:
        raise InputError(
            f"{path}: got ids from {tokens.min()} to {tokens.max()}; need ids from 0 to {VOCABULARY - 1}: {ADVICE}"
        )
    return Paragraphs(torch.from_numpy(tokens), PREFIX_LEN)


def _table(path: Path, count: int) -> dict[str, list[str] | np.ndarray]:
    """Columns `text`, `count`, `published_em` and `published_nll` of the table; row i is row i of `em50.npy`."""
    try:
        # Eleven paragraphs hold CRLF, which universal newlines would change.
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            rows = [] if missing else list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not readable as CSV ({error}); {ADVICE}") from error
    if missing:
        raise InputError(f"{path}: has no column '{missing[0]}'; need {', '.join(COLUMNS)}: {ADVICE}")
    if len(rows) != count:
        raise InputError(f"{path}: got {len(rows)} rows; need {count}, one for each row of {MEMORIZED}: {ADVICE}")
    try:
        numbers = {name: np.array([float(row[name]) for row in rows]) for name in ("count", "em", "nll")}
        if not all(np.isfinite(values).all() for values in numbers.values()):
            raise ValueError("a number that is not finite")
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: count, em or nll is not a number ({error}); {ADVICE}") from error
    return {
        "text": [str(row["paragraph"]) for row in rows],
        "count": numbers["count"],
        "published_em": numbers["em"],
        "published_nll": numbers["nll"],
    }


def _pairs(folder: Path) -> tuple[Paragraphs, Paragraphs] | None:
    there = [name for name in PAIRS if (folder / name).is_file()]
    if not there:
        return None
    if len(there) == 1:
        missing = next(name for name in PAIRS if name not in there)
        raise InputError(f"{folder}: holds {there[0]} without {missing}; {ADVICE}")
    clean, corrupt = (_rows(folder / name) for name in PAIRS)
    try:
        place, impact = compare_pairs(clean, corrupt)
    except InputError as error:
        raise InputError(f"{folder / PAIRS[1]}: {error}; {ADVICE}") from error
    columns = {"perturbed_pos": place, "impact_pos": impact, "cluster": cluster(clean, run=RUN)}
    return clean.with_columns(**columns), corrupt.with_columns(**columns)
