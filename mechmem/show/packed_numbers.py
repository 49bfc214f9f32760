"""Numbers as few bytes: four digits of each, compressed, as text; and as people read them."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from jaxtyping import Float32

from mechmem.show.embed import packed_bytes

# Of a float32's 23: what is kept is off by at most a part in 8,192.
MANTISSA = 12
_LOST = 23 - MANTISSA


def four_digits(values: Any) -> Float32[np.ndarray, "*shape"]:
    """Values rounded to what a page keeps; what is not finite becomes NaN."""
    plain = np.asarray(values, dtype=np.float32)
    plain = np.where(np.isfinite(plain), plain, np.float32("nan"))
    bits = np.ascontiguousarray(plain).view(np.uint32)
    rounded = (bits + np.uint32(1 << (_LOST - 1))) & np.uint32(0xFFFFFFFF << _LOST & 0xFFFFFFFF)
    found = rounded.view(np.float32).reshape(plain.shape)
    return np.where(np.isnan(plain), np.float32("nan"), found)


def packed_numbers(values: Any) -> str:
    """Values, row by row, as text for a page: the three bytes of each that matter, byte by byte, compressed."""
    bits = four_digits(values).reshape(-1).view(np.uint32)
    # The first bytes of all, then the second, the third: neighbours are alike, which is what compresses.
    planes = np.stack([bits >> 24, bits >> 16, bits >> 8]).astype(np.uint8)
    return packed_bytes(planes.tobytes())


def unpacked_numbers(text: str) -> Float32[np.ndarray, " value"]:
    """What `packed_numbers` made, as the page reads it."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(3, -1).astype(np.uint32)
    return (planes[0] << 24 | planes[1] << 16 | planes[2] << 8).view(np.float32)


def three_digits(value: float, *, signed: bool = False) -> str:
    """Three digits: 0.0123, −4.56, 1,234, 7.89e-5; "none" for NaN. `signed` writes + before what is above zero."""
    if value != value:
        return "none"
    size = float(f"{abs(float(value)):.2e}")
    if size == 0:
        return "0"
    if size >= 1e6 or size < 1e-3:
        digits, power = f"{size:.2e}".split("e")
        text = f"{digits}e{int(power)}"
    else:
        text = f"{round(abs(float(value))):,}" if size >= 1000 else f"{size:.3g}"
    return ("−" if value < 0 else "+" if signed else "") + text
