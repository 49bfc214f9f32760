"""What `mechmem watch` writes: coloured text as it comes, or lines of JSON for other programs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mechmem.cli.commands import console
from mechmem.cli.live_text import LiveText

if TYPE_CHECKING:
    from mechmem.detect.monitor.stream import SpokenToken

# Token ids as text.
Decode = Callable[[Sequence[int]], str]
# Bytes of a character, each of which may be a token.
LONGEST_CHARACTER = 4


class Account:
    """What is told of a generation at its end."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.alarm: int | None = None
        self.highest, self.p_value = 0.0, 1.0

    def add(self, token: SpokenToken) -> None:
        """One token, or the mark at which the text was stopped, which has no id."""
        if token.flagged and self.alarm is None:
            self.alarm = token.k
        if token.id is not None:
            self.ids.append(token.id)
        self.highest = max(self.highest, token.score)
        self.p_value = min(self.p_value, token.p_value)

    def sentence(self, action: str, most: int) -> str:
        """In words; `most` tokens were asked for."""
        found = f"highest score {self.highest:.3f}, p-value {self.p_value:.2g}."
        if self.alarm is None:
            return f"No alarm in {len(self.ids)} tokens: {found}"
        left = most - self.alarm
        done = {"stop": ", and stopped there", "steer": ", and turned down from there on"}.get(action, "")
        own = "1 own token" if self.alarm == 1 else f"{self.alarm} own tokens"
        return f"Alarm after {own}, with {left} of {most} to come{done}: {found}"


class Joined:
    """Texts of tokens that follow one another; a character that is cut between tokens comes with its last one.

    Args:
        decode: token ids as text.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode, self._held = decode, []

    def add(self, token: int) -> str:
        """What a token completes; empty while a character is cut."""
        self._held.append(token)
        text = self._decode(self._held)
        if text.endswith("\ufffd") and len(self._held) < LONGEST_CHARACTER:
            return ""
        self._held = []
        return text

    def rest(self) -> str:
        """What is left at the end."""
        return self._decode(self._held) if self._held else ""


def draw(tokens: Iterable[SpokenToken], prompt: str, decode: Decode, action: str, most: int) -> None:
    """Write a prompt and what follows it as it comes, and a sentence at the end.

    Args:
        tokens: as they are said.
        prompt: before them.
        decode: token ids as text.
        action: of the monitor.
        most: tokens that were asked for.
    """
    text, account, joined = LiveText(console), Account(), Joined(decode)
    text.begin(prompt)
    for token in tokens:
        account.add(token)
        text.add("" if token.id is None else joined.add(token.id), token.score, flagged=token.flagged)
    text.end(joined.rest())
    console.print(account.sentence(action, most), highlight=False, soft_wrap=True)


def write_lines(tokens: Iterable[SpokenToken], decode: Decode, facts: dict[str, Any]) -> None:
    """Write a JSON object a token as it comes, and a last one that has `summary`; end where nobody reads any more.

    Args:
        tokens: as they are said.
        decode: token ids as text.
        facts: what the summary says besides: the action, the share of false alarms, the threshold.
    """
    account = Account()
    try:
        for token in tokens:
            account.add(token)
            _line({name: getattr(token, name) for name in ("id", "text", "score", "p_value", "flagged", "k")})
        found = {
            "summary": True,
            "tokens": len(account.ids),
            "text": decode(account.ids) if account.ids else "",
            "flagged": account.alarm is not None,
            "flagged_at": account.alarm,
            "highest_score": account.highest,
            "p_value": account.p_value,
        }
        _line(found | facts)
    except BrokenPipeError:
        # The reader has what it wanted. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _line(values: dict[str, Any]) -> None:
    # JSON has no infinity. Letters beyond ASCII and controls are escaped, so no terminal acts on them.
    unbounded = {name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
    sys.stdout.write(json.dumps(values | dict.fromkeys(unbounded)) + "\n")
    sys.stdout.flush()
