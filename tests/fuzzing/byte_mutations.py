"""Damage that knows nothing of a format: flipped bits, cut, repeated and spliced blocks, boundary numbers."""

import random
import struct

# Numbers at which sizes, offsets and counts go wrong.
BOUNDARIES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
LARGEST = 2**21


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One small piece of damage; never longer than `LARGEST` and the input together."""
    return rng.choice(MUTATIONS)(data, rng)


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """One to eight bits, near the start or the end more often than not: that is where formats keep their heads."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[_place(len(changed), rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(data: bytes, rng: random.Random) -> bytes:
    """A run of one byte, or of random ones."""
    if not data:
        return rng.randbytes(rng.randrange(1, 64))
    start, length = _place(len(data), rng), rng.choice((1, 2, 4, 16, 100))
    new = rng.randbytes(length) if rng.random() < 0.5 else bytes([rng.randrange(256)]) * length
    return data[:start] + new + data[start + length :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """The end is missing, or the start."""
    place = rng.randrange(len(data) + 1)
    return data[:place] if rng.random() < 0.8 else data[place:]


def remove_block(data: bytes, rng: random.Random) -> bytes:
    """A block is missing from the middle."""
    start, end = _span(len(data), rng)
    return data[:start] + data[end:]


def repeat_block(data: bytes, rng: random.Random) -> bytes:
    """A block stands there several times."""
    start, end = _span(len(data), rng)
    times = min(rng.choice((2, 3, 100, 10_000)), LARGEST // max(end - start, 1))
    return data[:start] + data[start:end] * max(times, 1) + data[end:]


def splice(data: bytes, rng: random.Random) -> bytes:
    """Two parts of the file change places, or one is written over another."""
    (a, b), (c, d) = sorted((_span(len(data), rng), _span(len(data), rng)))
    if b <= c and rng.random() < 0.5:
        return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
    return data[:a] + data[c:d] + data[a + (d - c) :]


def boundary_number(data: bytes, rng: random.Random) -> bytes:
    """A number of 1 to 8 bytes at one of the values at which sizes go wrong, either byte order."""
    form = rng.choice("BHIQ")
    packed = struct.pack(rng.choice("<>") + form, rng.choice(BOUNDARIES) % 2 ** (8 * struct.calcsize(form)))
    start = _place(len(data), rng) if data else 0
    return data[:start] + packed + data[start + len(packed) :]


def hostile_text(data: bytes, rng: random.Random) -> bytes:
    """A piece of text that readers trip over."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.choice(TEXTS) + data[start:]


def append_rubbish(data: bytes, rng: random.Random) -> bytes:
    """Something follows the end."""
    return data + (rng.randbytes(rng.choice((1, 16, 5000))) if rng.random() < 0.5 else data)


TEXTS = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xc3",
    b"\r\n",
    b"\r",
    b"\n\n\n",
    b"\xe2\x80\xa8",
    b"\x1a",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"[" * 50_000,
    b"9" * 5000,
    b"NaN",
    b"null",
    b"-1",
    b"1e999",
    b"../../etc/passwd",
    b"%s%n{0}",
)
MUTATIONS = (
    flip_bits,
    flip_bits,
    set_bytes,
    cut,
    remove_block,
    repeat_block,
    splice,
    boundary_number,
    boundary_number,
    hostile_text,
    append_rubbish,
)


def _place(length: int, rng: random.Random) -> int:
    near = min(length, 64)
    kind = rng.random()
    if kind < 0.3:
        return rng.randrange(near)
    return length - 1 - rng.randrange(near) if kind < 0.5 else rng.randrange(length)


def _span(length: int, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(length + 1)
    return start, min(length, start + rng.choice((1, 4, 64, 1000, length)))
