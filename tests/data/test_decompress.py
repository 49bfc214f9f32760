"""What gzip and zstd allow is read; what is damaged is read up to the damage."""

import gzip
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import zstandard

from mechmem.data.decompress import CHUNK, FRAME, BrokenFileError, byte_chunks
from mechmem.data.records import Tally

MARK = b"\xef\xbb\xbf"


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def content(path: Path) -> tuple[bytes, str]:
    """What is read, and why it ended."""
    found, why = [], ""
    try:
        for chunk in byte_chunks(path, Tally()):
            assert 0 < len(chunk) <= CHUNK
            found.append(chunk)
    except BrokenFileError as error:
        why = str(error)
    return b"".join(found), why


def zst(data: bytes, window: int = 20, **options: bool) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window, **options)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # of unknown size, as from a pipe
    return stream.compress(data) + stream.flush()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


KINDS = {"zst": zst, "gz": gzip.compress}


@pytest.mark.parametrize("window", [10, 20, 27, 28, 30, 31])
def test_every_window_that_the_format_allows_is_read(tmp_path, window):
    # As much as the window as memory and time allow, so that a decoder of small windows cannot pass.
    whole = zst(b"some words, again and again. " * 40_000, window)
    assert zstandard.get_frame_parameters(whole[:32]).window_size == 2**window
    data, why = content(write(tmp_path / "c.zst", whole))
    assert data == b"some words, again and again. " * 40_000 and not why


def test_what_the_tool_writes_with_long_28(tmp_path):
    try:
        answer = subprocess.run(
            ["zstd", "-q", "-c", "--long=28"], input=b"line\n" * 10**6, capture_output=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("the zstd tool is not installed")
    assert content(write(tmp_path / "c.zst", answer.stdout)) == (b"line\n" * 10**6, "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(5, 7), (0, 1, 2, 3, 0, 5), (CHUNK, 3 * CHUNK + 1), (1,) * 40])
def test_frames_one_after_the_other_are_one_text_each_without_its_mark(tmp_path, kind, sizes):
    texts = [noise(size, seed).replace(b"\xef", b"x") for seed, size in enumerate(sizes)]
    packed = [KINDS[kind]((MARK if number % 2 else b"") + text) for number, text in enumerate(texts)]
    assert content(write(tmp_path / f"c.{kind}", b"".join(packed))) == (b"".join(texts), "")


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_mark_at_the_start_of_a_text_is_removed(tmp_path, kind):
    for text, left in [(MARK, b""), (MARK[:2], MARK[:2]), (MARK + MARK, MARK), (b"a" + MARK, b"a" + MARK)]:
        assert content(write(tmp_path / f"c.{kind}", KINDS[kind](text))) == (left, "")
        assert content(write(tmp_path / "plain.txt", text)) == (left, "")


def test_frames_to_skip_checksums_and_zeros_at_the_end(tmp_path):
    skip = b"\x5a\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"any"
    frames = skip + zst(b"one, ", write_checksum=True) + skip + zst(b"two", write_content_size=False) + skip
    assert content(write(tmp_path / "c.zst", frames)) == (b"one, two", "")
    zeros = gzip.compress(b"one, ") + gzip.compress(b"two") + bytes(3 * CHUNK)
    assert content(write(tmp_path / "c.gz", zeros)) == (b"one, two", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_gives_all_that_is_there(tmp_path, kind):
    data = noise(10**6)
    whole = KINDS[kind](data)
    for stop in [*range(1, 12), len(whole) // 3, len(whole) - 300, len(whole) - 1]:
        found, why = content(write(tmp_path / f"c.{kind}", whole[:stop]))
        # A block of zstd is decompressed whole or not at all.
        lost = stop - len(found) if kind == "zst" else 64 + stop // 1000
        assert data.startswith(found) and len(found) >= stop - max(lost, 2**17 + 64) and why, stop
        if kind == "gz":
            assert found == zlib.decompressobj(31).decompress(whole[:stop])


@pytest.mark.parametrize("kind", KINDS)
def test_damage_costs_nothing_before_it(tmp_path, kind):
    data = noise(10**6).hex().encode()
    whole = bytearray(gzip.compress(data) if kind == "gz" else zst(data, write_checksum=True))
    place = len(whole) * 2 // 3
    whole[place : place + 50] = bytes(50)
    found, why = content(write(tmp_path / f"c.{kind}", bytes(whole)))
    common = next((i for i, (a, b) in enumerate(zip(found, data, strict=False)) if a != b), len(found))
    assert common > len(data) * 2 / 3 - 2 * 2**17 and why


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("c.zst", b"", "is empty"),
        ("c.gz", b"", "is empty"),
        ("c.zst", b"no such thing", "Unknown frame descriptor at byte 0"),
        ("c.gz", b"no such thing", "incorrect header check"),
        ("c.zst", zst(b"") + b"more", "Unknown frame descriptor"),
        ("c.zst", FRAME, "Truncated"),
        ("c.zst", FRAME + b"\x20\x05\xff\xff\xff", "Data corruption"),
        ("c.zst", b"\x50\x2a\x4d\x18\xff\xff\xff\xff", "Truncated"),
    ],
)
def test_what_is_no_such_file_says_so(tmp_path, name, data, why):
    assert why in content(write(tmp_path / name, data))[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_grows_a_thousandfold_takes_no_memory(tmp_path, kind):
    """200 MB of zeros from a few kilobytes, in a process that may hold no more than it had and 60 MB."""
    stream = zlib.compressobj(9, zlib.DEFLATED, 31) if kind == "gz" else zstandard.ZstdCompressor(19).compressobj()
    packed = b"".join(stream.compress(bytes(10**6)) for _ in range(200)) + stream.flush()
    path = write(tmp_path / f"c.{kind}", packed)
    program = f"""
import resource
from pathlib import Path
from mechmem.data.decompress import byte_chunks
from mechmem.data.records import Tally
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(map(len, byte_chunks(Path({str(path)!r}), Tally()))) == 2 * 10**8
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert len(packed) < 10**6 and int(grown) < 60 * 1024
