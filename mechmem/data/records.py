"""One record of a source, and the account of every record that was read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mechmem.data.errors import InputError

LOG = logging.getLogger(__name__)
EXAMPLES_KEPT = 20
# Every row of a scan repeats its source.
LONGEST_SOURCE = 200
# The reason under which the rest of a file is skipped.
BROKEN_FILE = "broken file"


class Record(NamedTuple):
    """One document as a source holds it.

    Attributes:
        text: its text; never empty, always expressible in UTF-8.
        source: where it comes from: the Pile's `meta.pile_set_name`, a column `source`, or the file's name.
    """

    text: str
    source: str


@dataclass
class Tally:
    """What became of the records of one input.

    Attributes:
        strict: raise at the first record that cannot be used, where otherwise it is counted, logged and skipped.
        records: how many were met; the point at which a file breaks off counts as one.
        skipped: reason -> how many.
        examples: the first skipped ones, "file:place: reason".
        position: bytes of the input read so far, for progress.
    """

    strict: bool = False
    records: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    position: int = 0

    def skip(self, place: str, reason: str, detail: str = "", *, count: int = 1) -> None:
        """Account for records, already among `records`, that cannot be used.

        Args:
            place: "file:line" or the like.
            reason: a few fixed words; records are counted by them.
            detail: what differs from case to case.
            count: how many records, from `place` on.

        Raises:
            InputError: the tally is strict.
        """
        sentence = " ".join((f"{place}: {reason}" + (f" ({detail})" if detail else "")).split())
        if self.strict:
            raise InputError(f"{sentence}; need only records that can be read: mend it, or read without strict")
        self.skipped[reason] = self.skipped.get(reason, 0) + count
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append(sentence)
        LOG.warning("skipped %s", sentence)


def checked_text(value: object, place: str, tally: Tally, *, column: str) -> str | None:
    """Count a record; return its text if it is one, else account for it and return None."""
    tally.records += 1
    if not isinstance(value, str):
        tally.skip(place, "no text", f"'{column}' is {type(value).__name__}; need a string")
    elif not value:
        tally.skip(place, "empty text")
    elif not _expressible(value):
        tally.skip(place, "invalid UTF-8", "the text holds half of a surrogate pair")
    else:
        return value
    return None


def _expressible(text: str) -> bool:
    # JSON may escape half of a surrogate pair: Python reads it, and no tokenizer takes it.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def source_of(row: Mapping[str, Any], name: str) -> str:
    """Where a record comes from: `meta.pile_set_name`, or else `source`, or else the name of its file."""
    meta = row.get("meta")
    named = [meta.get("pile_set_name") if isinstance(meta, Mapping) else None, row.get("source")]
    # What is not a name, such as a nested object, names nothing.
    source = next((str(value) for value in named if value and isinstance(value, str | int | float)), name)
    source = source.encode("utf-8", "backslashreplace").decode()
    return source if len(source) <= LONGEST_SOURCE else source[: LONGEST_SOURCE - 3] + "..."
