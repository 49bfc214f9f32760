"""What a model says, token by token as it comes, coloured by a detector's score; plain where there are no colours."""

from __future__ import annotations

import unicodedata

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

# From paper to ink: a score of 0, and of 1. The letters on it are dark on pale and light on red.
PALE, RED = (255, 246, 240), (176, 24, 24)
DARK, LIGHT = "#000000", "#ffffff"
# Beyond this share of ink, light letters are read more easily.
LIGHT_FROM = 0.75
# Where a terminal has sixteen colours: from which score on, and how.
FEW = ((0.75, "bright_white on red"), (0.5, "black on yellow"), (0.25, "black on bright_yellow"), (0.0, ""))
LEGEND = (0.0, 0.25, 0.5, 0.75, 1.0)
MARK = "[alarm]"


class LiveText:
    """Draws one generation on a console.

    Args:
        console: where. Colours only if it is a terminal that has them; without, the text alone and the mark of the
            alarm.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._flagged = False
        self.coloured = console.is_terminal and not console.no_color and console.color_system is not None

    def begin(self, prompt: str) -> None:
        """The prompt, pale, and a line of what the colours mean."""
        if self.coloured:
            legend = Text.assemble(("score ", "dim"))
            for score in LEGEND:
                legend.append(f" {score:g} ", style=self._style(score))
            self._print(legend, end="\n")
        self._print(Text(harmless(prompt), style="dim" if self.coloured else ""))

    def add(self, text: str, score: float, *, flagged: bool) -> None:
        """The text of one token; before the first that is flagged there is a mark."""
        if flagged and not self._flagged:
            self._flagged = True
            self._print(Text(MARK, style="bold reverse" if self.coloured else ""))
        self._print(Text(harmless(text), style=self._style(score) if self.coloured else ""))

    def end(self, rest: str = "") -> None:
        """What is left of a character that was cut, and the end of the line."""
        self._print(Text(harmless(rest)), end="\n")

    def _style(self, score: float) -> Style:
        if self._console.color_system in ("standard", "windows"):
            return Style.parse(next((words for least, words in FEW if score >= least), ""))
        return score_style(score)

    def _print(self, text: Text, end: str = "") -> None:
        # Written letter by letter: rich would wrap each token by itself.
        self._console.print(text, end=end, soft_wrap=True, highlight=False)
        self._console.file.flush()


def score_style(score: float) -> Style:
    """Letters on paper that grows from pale to red with the score, 0 to 1."""
    share = min(1.0, max(0.0, score)) if score == score else 0.0
    red, green, blue = (round(pale + (full - pale) * share) for pale, full in zip(PALE, RED, strict=True))
    return Style(color=LIGHT if share > LIGHT_FROM else DARK, bgcolor=Color.from_rgb(red, green, blue))


def harmless(text: str) -> str:
    """Text that a terminal shows and does not act on: line ends stay, behind a mark; other controls become signs.

    Letters that change the direction of what follows would make a line read as another one: they are named instead.
    """
    return "".join(_shown(letter) for letter in text)


def _shown(letter: str) -> str:
    code = ord(letter)
    if letter == "\n":
        return "↵\n"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    kind = unicodedata.category(letter)
    if kind in ("Cc", "Cf", "Zl", "Zp", "Cn", "Co"):
        return f"‹U+{code:04X}›" if kind != "Cf" or letter not in "\u200c\u200d" else letter
    return "\ufffd" if kind == "Cs" else letter
