"""Colours of numbers: from paper to ink by the square root of the share of the largest, one ink for each sign.

Probabilities take the share itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

PAPER, BLUE, ORANGE = (255, 255, 255), (11, 90, 148), (179, 88, 6)
# Around what is chosen or stands out.
FRAME = "#b0307f"
DARK_INK, LIGHT_INK = (0, 0, 0), (255, 255, 255)
# The largest value of a scale, so that its quarters have few digits: 16 nats has marks at 1, 4 and 9.
ROUND = (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 4.8, 6.4, 8, 10)
# How strong the two colours of yes and no are.
YES, NO = 0.22, 0.75


@dataclass(frozen=True)
class Scale:
    """How values become colours, in Python as in the page.

    Attributes:
        most: the value of full ink.
        signed: values have two signs, and the colours two ends.
        blue_is_high: blue belongs to values above zero, orange to those below; False: the other way round.
        is_match: 1 is yes, 0 is no.
        linear: ink by the share itself and not by its square root, as of probabilities.
    """

    most: float
    signed: bool
    blue_is_high: bool
    is_match: bool = False
    linear: bool = False

    def colour(self, value: float) -> tuple[int, int, int]:
        """Of one finite value, on white paper."""
        if self.is_match and not self.signed:
            share, blue = (YES, True) if value > 0.5 else (NO, False)
        else:
            share = min(1.0, abs(value) / self.most) ** (1.0 if self.linear else 0.5)
            blue = (value >= 0) == self.blue_is_high
        ink = BLUE if blue else ORANGE
        red, green, both = (round(paper + (full - paper) * share) for paper, full in zip(PAPER, ink, strict=True))
        return red, green, both

    def value(self, share: float) -> float:
        """The value that has this share of the full ink; below zero, of the other one."""
        return self.most * (share if self.linear else share * abs(share))

    def data(self) -> dict[str, Any]:
        """For the page."""
        return asdict(self)


def scale_of(values: np.ndarray, *, blue_is_high: bool, signed: bool = False, is_match: bool = False) -> Scale:
    """A scale that all of these values fit.

    Args:
        values: any; NaN does not count.
        blue_is_high: whether the high end is the better one.
        signed: zero is the middle, even where all values have one sign.
        is_match: they are yes and no.
    """
    finite = values[np.isfinite(values)]
    most = float(np.abs(finite).max(initial=0.0))
    return Scale(_rounded_up(most), signed or bool((finite < 0).any()), blue_is_high, is_match)


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Dark or light letters, whichever can be read better."""
    light = _luminance(background)
    return LIGHT_INK if 1.05 / (light + 0.05) > (light + 0.05) / (_luminance(DARK_INK) + 0.05) else DARK_INK


def css(colour: tuple[int, int, int] | UInt8[np.ndarray, " 3"]) -> str:
    """Red, green and blue as CSS and SVG write them."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def number_text(value: float) -> str:
    """Three digits, as the page writes them: 12.3, 1.23, 0.123, 4.5e-5."""
    size = abs(value)
    sign = "−" if value < 0 else ""
    if size == 0:
        return "0"
    if size < 0.001:
        digits, power = f"{size:.1e}".split("e")
        return f"{sign}{digits}e{int(power)}"
    return f"{sign}{size:.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"


def short_text(value: float) -> str:
    """The same as short as it can be: 4 and not 4.00."""
    text = number_text(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _rounded_up(value: float) -> float:
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (*ROUND, 100) if value <= step * power * (1 + 1e-9)))


def _luminance(colour: tuple[int, int, int]) -> float:
    parts = [value / 255 for value in colour]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
