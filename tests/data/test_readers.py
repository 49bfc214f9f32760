"""Every kind of file gives its records in order; what cannot be read is named, counted and left out."""

import gzip
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mechmem.data import readers
from mechmem.data.errors import InputError
from mechmem.data.readers import read_rows, read_text
from mechmem.data.records import EXAMPLES_KEPT, Tally
from tests.data.memory_peak import lowest_peak

RECORDS = [(f"text {number} \u00e4\u2028", ("Books", "ArXiv")[number % 2]) for number in range(9)]


def lines() -> bytes:
    rows = [{"text": text, "meta": {"pile_set_name": source}} for text, source in RECORDS]
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def compressed(content: bytes, path: Path) -> bytes:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(content)
    return path.read_bytes()


def read(path: Path, *, strict: bool = False) -> tuple[list[tuple[str, str]], Tally]:
    tally = Tally(strict)
    records = [(record.text, record.source) for record in read_text(path, tally)]
    assert tally.records == len(records) + sum(tally.skipped.values())
    return records, tally


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_each_kind_gives_all_records_in_order_with_their_sources(tmp_path, suffix):
    path = tmp_path / f"c.{suffix}"
    if suffix == "parquet":
        meta = [{"pile_set_name": source} for _, source in RECORDS]
        pq.write_table(pa.table({"x": range(9), "text": [text for text, _ in RECORDS], "meta": meta}), path)
    elif suffix == "jsonl.zst":
        compressed(lines(), path)
    else:
        path.write_bytes(gzip.compress(lines()) if suffix == "jsonl.gz" else lines())
    records, tally = read(path)
    assert records == RECORDS and not tally.skipped and tally.position == path.stat().st_size


def test_several_frames_a_byte_order_mark_blank_lines_and_a_missing_last_newline(tmp_path):
    first, second = lines()[:-1].split(b"\n", 1)
    frames = [b"\xef\xbb\xbf" + first + b"\r\n", b"\n\n" + second]
    path = tmp_path / "c.jsonl.zst"
    path.write_bytes(b"".join(compressed(frame, tmp_path / "frame") for frame in frames))
    assert read(path)[0] == RECORDS
    assert read(write(tmp_path / "c.jsonl", b"".join(frames)))[0] == RECORDS


def test_the_source_is_the_piles_or_the_column_or_the_files_name(tmp_path):
    rows = [{"text": "a", "source": "S"}, {"text": "b", "meta": {"other": 1}}, {"text": "c", "meta": "m"}]
    path = write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert [source for _, source in read(path)[0]] == ["S", "c.jsonl", "c.jsonl"]
    assert [tuple(record) for record in read_rows(rows, "hub", Tally())][0] == ("a", "S")


BROKEN = [
    (b'{"text": "cut', "bad JSON"),
    (b'{"text": "\xff\xfe"}', "invalid UTF-8"),
    (b'{"text": "\\ud800"}', "invalid UTF-8"),
    (b'{"body": "x"}', "no text"),
    (b'{"text": 7}', "no text"),
    (b'["text"]', "no text"),
    (b'{"text": ""}', "empty text"),
    (b"[" * 100_000, "bad JSON"),
    (b"9" * 10_000, "bad JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN, ids=[str(number) for number in range(len(BROKEN))])
def test_a_broken_line_is_counted_named_and_skipped_or_refused(tmp_path, line, reason, caplog):
    rows = lines().splitlines(keepends=True)
    path = write(tmp_path / "c.jsonl", b"".join(rows[:4]) + b"\n" + line + b"\n" + b"".join(rows[4:]))
    with caplog.at_level(logging.WARNING):
        records, tally = read(path)
    assert records == RECORDS and tally.skipped == {reason: 1}
    assert f"c.jsonl:6: {reason}" in tally.examples[0] and tally.examples[0] in caplog.text
    with pytest.raises(InputError, match=rf"c\.jsonl:6: {reason}.*; need only records that can be read"):
        read(path, strict=True)


def test_many_broken_lines_are_all_counted_and_the_first_are_kept(tmp_path):
    tally = read(write(tmp_path / "c.jsonl", b"{\n" * 100 + lines()))[1]
    assert tally.skipped == {"bad JSON": 100} and len(tally.examples) == EXAMPLES_KEPT


@pytest.mark.parametrize("suffix", ["zst", "gz"])
def test_a_cut_compressed_file_gives_every_line_before_the_break(tmp_path, suffix):
    # Incompressible lines, so that the break lies where many blocks and reads have been.
    import random

    rng = random.Random(0)
    texts = [f"{rng.getrandbits(1600):0400x}" for _ in range(9000)]
    content = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    whole = compressed(content, tmp_path / "w") if suffix == "zst" else gzip.compress(content)
    path = write(tmp_path / f"c.jsonl.{suffix}", whole[: len(whole) * 3 // 4])
    records, tally = read(path)
    assert [text for text, _ in records] == texts[: len(records)]
    # A block of zstd is 128 KiB: less than that, and the line it cuts, may be missing.
    assert len(texts) * 3 / 4 - len(records) < 2**17 / 400 + 2
    assert tally.skipped == {"broken file": 1} and "Truncated" in tally.examples[0]
    with pytest.raises(InputError, match=rf"c\.jsonl\.{suffix}:{len(records) + 1}: broken file"):
        read(path, strict=True)


def test_the_break_loses_no_line_that_could_be_decompressed(tmp_path):
    """Oracle: a decompressor that is fed byte after byte."""
    import zlib

    content = b"".join(b'{"text": "%0200d"}\n' % number**9 for number in range(20_000))
    whole = gzip.compress(content)[:-200]
    truth = zlib.decompressobj(31).decompress(whole)
    assert len(read(write(tmp_path / "c.jsonl.gz", whole))[0]) == truth.count(b"\n")


def test_files_that_are_not_what_their_name_says(tmp_path):
    for name in ("c.jsonl.zst", "c.parquet", "empty.jsonl.zst", "empty.parquet"):
        path = write(tmp_path / name, b"" if "empty" in name else b"no such thing")
        records, tally = read(path)
        assert not records and tally.skipped == {"broken file": 1}, name
        with pytest.raises(InputError, match=rf"{name}:1: broken file"):
            read(path, strict=True)


def test_parquet_without_the_column_with_nulls_or_cut(tmp_path):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"body": ["a"]}), path)
    assert "its columns are ['body']; need 'text'" in read(path)[1].examples[0]
    invalid = pa.StringArray.from_buffers(1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"text": pa.chunked_array([pa.array(["a", None]), invalid, pa.array(["b"])])}), path)
    records, tally = read(path)
    assert records == [("a", "c.parquet"), ("b", "c.parquet")]
    assert tally.skipped == {"no text": 1, "invalid UTF-8": 1}
    path.write_bytes(path.read_bytes()[:-10])
    assert read(path)[1].skipped == {"broken file": 1}


def test_a_parquet_file_damaged_inside_gives_all_other_rows(tmp_path):
    path = tmp_path / "c.parquet"
    texts = [f"{number} " * 50 for number in range(2000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=500, compression="zstd", use_dictionary=False)
    metadata = pq.ParquetFile(path).metadata.row_group(2).column(0)
    content = bytearray(path.read_bytes())
    content[metadata.data_page_offset + 40 : metadata.data_page_offset + 400] = bytes(360)
    path.write_bytes(content)
    records, tally = read(path)
    assert [text for text, _ in records] == texts[:1000] + texts[1500:]
    assert tally.skipped == {"broken file": 500} and "c.parquet:1001: broken file (500 rows" in tally.examples[0]


def test_a_text_file_is_one_document_and_a_large_one_is_cut_at_line_ends(tmp_path, monkeypatch):
    text = "".join(f"line {number} \u20ac\n" for number in range(300))
    path = write(tmp_path / "c.txt", b"\xef\xbb\xbf" + text.encode())
    assert read(path)[0] == [(text, "c.txt")]
    monkeypatch.setattr(readers, "PIECE_BYTES", 100)
    pieces = [piece for piece, _ in read(path)[0]]
    assert "".join(pieces) == text and len(pieces) > 40
    assert all(piece.endswith("\n") and 60 < len(piece.encode()) <= 100 for piece in pieces[:-1])


def test_a_line_longer_than_a_piece_is_cut_between_characters(tmp_path, monkeypatch):
    text = "\u20ac" * 500 + "\nshort"
    for size in (99, 100, 101):  # the cut falls on every byte of a character of three
        monkeypatch.setattr(readers, "PIECE_BYTES", size)
        pieces = [piece for piece, _ in read(write(tmp_path / "c.txt", text.encode()))[0]]
        assert "".join(pieces) == text and max(len(piece.encode()) for piece in pieces) <= size


@pytest.mark.parametrize("suffix", ["txt.gz", "txt.zst", "TXT.GZ"])
def test_a_compressed_text_file_gives_the_same_pieces_as_a_plain_one(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(readers, "PIECE_BYTES", 100)
    content = b"\xef\xbb\xbf" + "".join(f"line {number} \u20ac\n" for number in range(300)).encode()
    path = tmp_path / f"c.{suffix}"
    if suffix.endswith("zst"):
        compressed(content, path)
    else:
        path.write_bytes(gzip.compress(content))
    plain = [piece for piece, _ in read(write(tmp_path / "c.txt", content))[0]]
    assert len(plain) > 40 and read(path)[0] == [(piece, path.name) for piece in plain]
    assert read(path)[1].position == path.stat().st_size


def test_a_cut_compressed_text_gives_every_line_before_the_break(tmp_path):
    import random
    import zlib

    rng = random.Random(0)
    whole = gzip.compress("".join(f"{rng.getrandbits(1600):0400x}\n" for _ in range(9000)).encode())
    path = write(tmp_path / "c.txt.gz", whole[: len(whole) * 3 // 4])
    truth = zlib.decompressobj(31).decompress(path.read_bytes())
    records, tally = read(path)
    assert "".join(text for text, _ in records).encode() == truth[: truth.rfind(b"\n") + 1]
    assert tally.skipped == {"broken file": 1}
    assert read(write(tmp_path / "e.txt.gz", gzip.compress(b"")))[1].skipped == {"empty text": 1}
    assert read(write(tmp_path / "z.txt.zst", b""))[1].skipped == {"broken file": 1}


def test_a_line_of_many_chunks_is_joined_once(tmp_path):
    """Joined anew with each of its 64 chunks, the line takes about thirty times as long as reading the file whole."""
    import time

    from mechmem.data.byte_lines import byte_lines

    path = write(tmp_path / "c.jsonl", b"x" * 2**26 + b"\nshort")

    def fastest(read) -> float:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            assert [len(line) for line in read()] == [2**26, 5]
            times.append(time.perf_counter() - began)
        return min(times)

    assert fastest(lambda: byte_lines(path, Tally())) < 6 * fastest(lambda: path.read_bytes().split(b"\n"))


def test_text_files_that_are_empty_or_not_utf8(tmp_path):
    assert read(write(tmp_path / "e.txt", b""))[1].skipped == {"empty text": 1}
    assert read(write(tmp_path / "l.txt", "Stra\u00dfe".encode("latin-1")))[1].skipped == {"invalid UTF-8": 1}


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for count in (3_000, 20_000):
        path = tmp_path / f"{count}.jsonl.zst"
        compressed(b'{"text": "some words of a document %0400d"}\n' % 7 * count, path)

        def whole(path=path, count=count):
            assert sum(1 for _ in read_text(path, Tally())) == count

        peaks.append(lowest_peak(whole))
    assert peaks[1] < 1.1 * peaks[0] + 2**20 * 3
