"""Whatever the bytes of an input are, the outcome is records or an InputError of one line."""

import gzip
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechmem.data import byte_lines as lines_module
from mechmem.data.corpora import open_corpus, read_corpus
from mechmem.data.errors import InputError
from mechmem.data.inputs import list_inputs, open_ids
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.readers import READERS, read_text
from mechmem.data.records import LONGEST_SOURCE, Tally
from mechmem.data.token_tables import holds_table

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(work: Any) -> Any:
    """What some work gives, or the one line in which it says what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except InputError as error:
        assert str(error) and len(str(error).splitlines()) == 1
        return str(error)


def records(path: Path, *, strict: bool = False) -> list[Any]:
    tally = Tally(strict)
    found = list(read_text(path, tally))
    assert tally.records == len(found) + sum(tally.skipped.values())
    for record in found:
        assert record.text and record.text.encode() and record.source.encode()
    assert all(len(example.splitlines()) == 1 for example in tally.examples)
    return found


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


LINES = b"".join(
    json.dumps({"text": f"text {number}", "meta": {"pile_set_name": "Books"}}).encode() + b"\n" for number in range(9)
)
SOUND = {
    ".jsonl": LINES,
    ".jsonl.gz": gzip.compress(LINES),
    ".jsonl.zst": zstandard.compress(LINES),
    ".txt": LINES,
    ".txt.gz": gzip.compress(LINES),
    ".txt.zst": zstandard.compress(LINES),
    ".parquet": parquet(text=["a", "b", None] * 3, meta=[{"pile_set_name": "x"}] * 9, source=list("abcdefghi")),
}


def test_every_suffix_has_a_sound_example():
    assert set(SOUND) == set(READERS)


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """A sound file with some bytes changed, cut out, put in or cut off."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "cut out", "put in", "cut off"]))
        if kind == "change" and place < len(data):
            data[place] = draw(st.integers(0, 255))
        elif kind == "cut out":
            del data[place : place + draw(st.integers(1, 9))]
        elif kind == "put in":
            data[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "cut off":
            del data[place:]
    return bytes(data)


@pytest.mark.parametrize("suffix", SOUND)
@FEW
@given(data=st.data())
def test_text_of_any_bytes_is_records_or_one_line(tmp_path, suffix, data):
    path = tmp_path / f"c{suffix}"
    path.write_bytes(data.draw(st.one_of(damaged(SOUND[suffix]), st.binary(max_size=200))))
    found = outcome(lambda: records(path))
    strict = outcome(lambda: records(path, strict=True))
    assert isinstance(strict, str) or strict == found


@FEW
@given(data=st.data())
def test_arrays_of_any_bytes_are_ids_or_one_line(tmp_path, data):
    sound = npy(np.arange(60, dtype=data.draw(st.sampled_from(["<u2", ">i4", "<i8", "<f8"]))).reshape(6, 10))
    path = tmp_path / "c.npy"
    path.write_bytes(data.draw(st.one_of(damaged(sound), damaged(sound[:128]).map(lambda head: head + sound[128:]))))
    outcome(lambda: open_ids(path)[:3].sum())
    outcome(lambda: Paragraphs.load(path, prefix_len=3))


@FEW
@given(data=st.data())
def test_tables_of_any_bytes_are_paragraphs_or_one_line(tmp_path, data):
    Paragraphs(torch.arange(60).view(6, 10), 3).with_columns(id=range(6), em=range(6)).save(tmp_path / "sound.parquet")
    path = tmp_path / "c.parquet"
    path.write_bytes(data.draw(damaged((tmp_path / "sound.parquet").read_bytes())))
    outcome(lambda: holds_table(path))
    outcome(lambda: Paragraphs.load(path))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@FEW
@given(rows=st.lists(st.dictionaries(st.sampled_from(["text", "meta", "source", "other"]), VALUES), max_size=5))
def test_every_json_object_is_a_record_or_is_skipped(tmp_path, rows):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    assert isinstance(records(path), list)


DEEP = '{"a":' * 900 + "1" + "}" * 900


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"text": "a\\u0000b", "source": "s\\u0000"}', ("a\0b", "s\0")),
        (b'{"text": "x", "source": "\\ud800 half"}', ("x", "\\ud800 half")),
        (b'{"text": "x", "meta": {"pile_set_name": "\\udfff"}}', ("x", "\\udfff")),
        (f'{{"text": "x", "source": {DEEP}}}'.encode(), ("x", "c.jsonl")),
        (b'{"text": "x", "source": NaN}', ("x", "nan")),
        (b'{"text": NaN}', None),
        (b'{"text": Infinity}', None),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", None),
        (b'{"text": "x", "n": 1e999999}', ("x", "c.jsonl")),
        (b"[" * 10**6, None),
        (b'{"text": "\\ud83d\\ude00"}', ("\U0001f600", "c.jsonl")),
        (b'{"text": "\\ude00\\ud83d"}', None),
        (b'\xef\xbb\xbf{"text": "after a mark"}', ("after a mark", "c.jsonl")),
        (b'{"text": "a", "text": "b"}', ("b", "c.jsonl")),
        (b"\0" * 100, None),
    ],
)
def test_odd_lines(tmp_path, line, found):
    path = tmp_path / "c.jsonl"
    path.write_bytes(LINES + line + b"\n" + LINES)
    assert [tuple(record) for record in records(path)[9:-9]] == ([] if found is None else [found])


def test_a_long_source_is_cut_since_every_row_repeats_it(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"text": "x", "source": "s" * 10**6}))
    source = records(path)[0].source
    assert len(source) == LONGEST_SOURCE and source.endswith("...")


def test_a_line_that_is_too_long_is_counted_with_its_place_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "LONGEST_LINE", 3 * 2**20)
    path = tmp_path / "c.jsonl"
    path.write_bytes(LINES + b'{"text": "' + b"x" * 5 * 2**20 + b'"}\n' + LINES)
    tally = Tally()
    assert len(list(read_text(path, tally))) == 18 and tally.skipped == {"too long": 1}
    assert "c.jsonl:10: too long (5,242,892 bytes" in tally.examples[0]
    with pytest.raises(InputError, match=r"c\.jsonl:10: too long"):
        records(path, strict=True)


MEMORY = """
import resource, sys
from pathlib import Path
import mechmem.data.corpora as corpora
from transformers import PreTrainedTokenizerFast
from mechmem.data.assets import PARAGRAPHS_FILE
tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(PARAGRAPHS_FILE.parent / "bundled" / "tokenizer.json"))
folder = Path(sys.argv[1])
corpora.open_corpus(folder / "small.jsonl", tokenizer, folder / "a")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
corpus = corpora.open_corpus(folder / "large.jsonl", tokenizer, folder / "b")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, corpus.manifest["total"]["documents"])
"""


@pytest.mark.parametrize("unit", ["so many words, ", "words \u2014 \U0001f600, ", "\\u00e9 and more, "])
def test_a_record_takes_at_most_eight_times_its_bytes(tmp_path, unit):
    """Until its tokens are on the disk, beyond what a short one takes; in a process of its own."""
    line = b'{"text": "' + unit.encode() * (3 * 10**6 // len(unit.encode())) + b'"}\n'
    (tmp_path / "small.jsonl").write_bytes(line[: 10 + len(unit.encode()) * 20_000] + b'"}\n')
    (tmp_path / "large.jsonl").write_bytes(line)
    answer = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    grown, documents = map(int, answer.stdout.split())
    assert documents == 1 and grown < 8 * len(line)


def lying_head(shape: str, kind: str = "<i4") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head


def archive() -> bytes:
    sink = io.BytesIO()
    np.savez(sink, a=np.zeros((2, 3), dtype=np.int32))
    return sink.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (archive(), "an .npz archive"),
        (lying_head("(100000000000, 100)"), "mmap length is greater than file ?size"),
        (lying_head("(100000000000, 0)"), "100000000000 rows of 0 tokens"),
        (lying_head("(10**30, 100)"), "not an array|head is damaged"),
        (lying_head("(-1, 100)"), "not an array|head is damaged|got int32"),
        (lying_head("(2, 3"), "not an array"),
        (lying_head("(2, 3)")[:30], "not an array"),
        (lying_head("(" * 500 + ")" * 500), "not an array|head is damaged"),
        (npy(np.zeros((2, 3), dtype=np.longdouble)), "got (float128|longdouble|float64) of shape"),
        (npy(np.zeros((2, 3), dtype=object)), "not an array"),
        (b"", "it begins with b''"),
    ],
)
def test_arrays_that_are_none(tmp_path, content, sentence):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    for work in (lambda: open_ids(path), lambda: Paragraphs.load(path, prefix_len=1)):
        with pytest.raises(InputError, match=sentence):
            work()


def test_arrays_of_another_byte_order_are_read(tmp_path):
    ids = np.random.default_rng(0).integers(0, 200, (30, 100))
    for kind in (">i4", "<i4", ">u2"):
        np.save(tmp_path / "a.npy", ids.astype(kind))
        assert Paragraphs.load(tmp_path / "a.npy").tokens.tolist() == ids.tolist()
        (tmp_path / kind).mkdir()
        np.save(tmp_path / kind / "a.npy", ids.astype(kind))
        assert read_corpus(tmp_path / kind, None).tokens.tolist() == ids.tolist()


TOKENS = pa.array([list(range(60))] * 2, pa.list_(pa.int32()))


def doubled(name: str, first: Any, second: Any) -> pa.Table:
    return pa.Table.from_arrays([first, second], names=[name, name])


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (doubled("tokens", TOKENS, TOKENS), "got the column 'tokens' 2 times"),
        (pa.table({"tokens": TOKENS, "em": ["a", "b"]}), "got 'em' as string; need numbers"),
        (pa.table({"tokens": TOKENS, "count": [[1], [2]]}), "got 'count' as list.*; need numbers"),
        (pa.table({"tokens": TOKENS, "id": [1, None]}), "got 'id' as int64 with 1 nulls"),
        (pa.table({"tokens": TOKENS, "id": [[1], [2]]}), "got 'id' as list"),
        (pa.table({"tokens": pa.array([[[1]], [[2]]])}), "need a list of integer ids"),
        (pa.table({"tokens": ["a", "b"]}), "got 'tokens' as string"),
        (pa.table({"tokens": TOKENS}).replace_schema_metadata({"mechmem.prefix_len": "x"}), "its prefix_len is b'x'"),
        (pa.table({"tokens": TOKENS}).replace_schema_metadata({"mechmem.prefix_len": "9" * 50}), "its prefix_len is"),
        (pa.table({"tokens": TOKENS}).replace_schema_metadata({"mechmem.prefix_len": "99"}), "got prefix_len 99"),
    ],
)
def test_tables_that_are_no_paragraphs(tmp_path, table, sentence):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=sentence):
        Paragraphs.load(tmp_path / "a.parquet")


def test_a_table_whose_tokenizer_has_no_name_in_utf8_is_read(tmp_path):
    table = pa.table({"tokens": TOKENS}).replace_schema_metadata({b"mechmem.tokenizer": b"\xff"})
    pq.write_table(table, tmp_path / "a.parquet")
    assert Paragraphs.load(tmp_path / "a.parquet").tokenizer == "\\xff"


@pytest.mark.parametrize(
    ("table", "skipped"),
    [
        (doubled("text", pa.array(["a"]), pa.array(["b"])), {"broken file": 1}),
        (pa.table({"text": pa.array([], pa.string())}), {}),
        (pa.table({"text": [{"a": 1}]}), {"no text": 1}),
        (pa.table({"text": [b"bytes"]}), {"no text": 1}),
        (pa.table({"text": [1, 2]}), {"no text": 2}),
    ],
)
def test_parquet_of_other_shapes(tmp_path, table, skipped):
    pq.write_table(table, tmp_path / "c.parquet")
    tally = Tally()
    assert not list(read_text(tmp_path / "c.parquet", tally)) and tally.skipped == skipped


def test_one_text_that_all_rows_share_is_not_held_for_each(tmp_path):
    """A dictionary writes it once: 40 MB of rows in a file of a few hundred kilobytes, of which a few are decoded."""
    text = "some words, " * 350_000
    pq.write_table(pa.table({"text": [text] * 10}), tmp_path / "c.parquet")
    used: list[int] = []
    for record in read_text(tmp_path / "c.parquet", Tally()):
        assert record.text == text
        used.append(pa.total_allocated_bytes())
    assert len(used) == 10


@pytest.mark.parametrize("other", ["text.jsonl", "text.parquet", "more/tokens.parquet", "ids.npy", "cut.parquet"])
def test_a_folder_of_paragraphs_and_something_else_is_refused(tmp_path, other):
    (tmp_path / "more").mkdir()
    Paragraphs(torch.arange(200).view(2, 100), 50).save(tmp_path / "p.parquet")
    assert holds_table(tmp_path) and len(read_corpus(tmp_path, None)) == 2
    (tmp_path / "README.md").write_text("no input, and no reason to refuse")
    (tmp_path / ".hidden.jsonl").write_bytes(LINES)
    assert holds_table(tmp_path)
    path = tmp_path / other
    if other == "text.jsonl":
        path.write_bytes(LINES)
    elif other == "ids.npy":
        np.save(path, np.zeros((2, 100), dtype=np.int32))
    else:
        path.write_bytes(SOUND[".parquet"] if "text" in other else (tmp_path / "p.parquet").read_bytes())
    if other == "cut.parquet":
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=rf"holds paragraphs \(.*\) and other files \({other}\)"):
        read_corpus(tmp_path, None)


@pytest.mark.parametrize("damage", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2", b"\0" * 300, None])
def test_damaged_saved_datasets_are_one_line(tmp_path, bundled_model, damage, content):
    datasets.Dataset.from_dict({"text": ["some words"] * 50}).save_to_disk(tmp_path / "d")
    path = tmp_path / "d" / damage
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) if content is None else path.write_bytes(content)
    outcome(lambda: list_inputs(tmp_path / "d"))
    outcome(lambda: open_corpus(tmp_path / "d", bundled_model.tokenizer, tmp_path / "c"))


def test_a_file_that_may_not_be_read_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "c.jsonl").write_bytes(LINES)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError, match=r"c\.jsonl: cannot be read \(Permission denied\)"):
        records(tmp_path / "c.jsonl")


def test_files_of_which_nothing_is_read_are_named(tmp_path, bundled_model):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("some words, " * 200)
    (tmp_path / "in" / "b.jsonl.zst").write_bytes(b"no such thing")
    corpus = open_corpus(tmp_path / "in", bundled_model.tokenizer, tmp_path / "c")
    assert [Path(path).name for path in corpus.manifest["total"]["left_out"]] == ["b.jsonl.zst"]
    with pytest.warns(UserWarning, match="nothing was read from 1 of the files: .*b.jsonl.zst:1: broken file"):
        read_corpus(tmp_path / "in", bundled_model.tokenizer)
