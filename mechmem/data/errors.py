"""The one exception for bad input."""

from __future__ import annotations

# Characters of a message: a quoted value may have megabytes.
MOST = 2000


class InputError(ValueError):
    """What the user gave cannot be used; the message says what it was, what is needed and what to do.

    The message is one line, whatever it quotes: other libraries answer in several lines, and names and values may hold
    line ends. The command line prints it alone and exits with 2; any other exception is a defect and keeps its
    traceback.
    """

    def __init__(self, message: object = "") -> None:
        """Join the message's words by single spaces; of a long message the middle is left out."""
        line = " ".join(str(message).split())
        super().__init__(line if len(line) <= MOST else f"{line[: MOST - 500]} [...] {line[-400:]}")


class NotFiniteError(InputError, FloatingPointError):
    """Weights, or a learning rate, that lead to NaN or infinite numbers."""
