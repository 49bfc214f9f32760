"""A part may hold nothing: a short document, a duplicate, windows that the sample leaves, text without any span."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mechmem.data.assets import bundled_paragraphs
from mechmem.data.decoding import decoded
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.windows import WindowSettings
from mechmem.measure.decode import edit_distances, greedy_continuations
from mechmem.measure.exact import ExactScorer
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.worst_pairs import worst_perturbations
from mechmem.scan import scan_parts
from mechmem.scan.scan import scan
from mechmem.scan.scan_settings import ScanSettings
from mechmem.scan.spans import SpanSettings

# Every document is a part of its own; a document of EMPTY gives no window, and none of NOISE is memorized.
PARTS: dict[str, Any] = {"shard_tokens": 100}
EMPTY, NOISE = "too short", " ".join(str(number**5) for number in range(80))


def texts() -> list[str]:
    known = bundled_paragraphs()
    often = np.argsort(-known.column("count"), kind="stable")[:60:30]
    return [f"{text} and so on" for text in known.column("text")[often]]


def jsonl(path: Path, rows: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return str(path)


PLACES: dict[str, Callable[..., list[str]]] = {
    "first": lambda a, b, empty: [empty, a, b],
    "middle": lambda a, b, empty: [a, empty, b],
    "last": lambda a, b, empty: [a, b, empty],
    "everywhere": lambda a, b, empty: [empty, a, empty, empty, b, empty],
    "beside one row": lambda a, b, empty: [empty, a, empty],  # noqa: ARG005
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("rows_per_file", [None, 1])
def test_a_scan_with_empty_parts_writes_what_the_others_hold(tmp_path, bundled_model, place, rows_per_file):
    corpus = jsonl(tmp_path / "c.jsonl", PLACES[place](*texts(), EMPTY))
    scan(ScanSettings(corpus=corpus, **PARTS), tmp_path / "parts.parquet", rows_per_file=rows_per_file)
    scan(ScanSettings(corpus=corpus), tmp_path / "one.parquet")
    found, expected = Paragraphs.load(tmp_path / "parts.parquet"), Paragraphs.load(tmp_path / "one.parquet")
    assert found.tokens.tolist() == expected.tokens.tolist() and len(found) == (1 if "one" in place else 2)
    assert found.table is not None and expected.table is not None
    assert found.table.features == expected.table.features
    for name in found.table.column_names:
        assert found.column(name).tolist() == expected.column(name).tolist(), name
    assert bundled_model.tokenizer is not None
    assert found.column("text").tolist() == decoded(bundled_model.tokenizer, found.tokens)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("empty", [EMPTY, NOISE], ids=["no window", "no span"])
def test_spans_with_empty_parts(tmp_path, place, empty):
    corpus = jsonl(tmp_path / "c.jsonl", PLACES[place](*texts(), empty))
    found = scan(ScanSettings(corpus=corpus, spans=SpanSettings(), **PARTS), tmp_path / "parts.parquet")
    one = scan(ScanSettings(corpus=corpus, spans=SpanSettings()), tmp_path / "one.parquet")
    table = pq.read_table(tmp_path / "parts.parquet")
    assert table.equals(pq.read_table(tmp_path / "one.parquet")) and found["found"] == one["found"]
    assert len(table) == (1 if "one" in place else 2) and table.schema.field("text").type == pa.string()


def test_no_span_at_all_is_a_result(tmp_path):
    corpus = jsonl(tmp_path / "c.jsonl", [NOISE, EMPTY])
    manifest = scan(ScanSettings(corpus=corpus, spans=SpanSettings(), **PARTS), tmp_path / "o.parquet")
    assert manifest["rows"] == 0 == manifest["missed"]["stride 50"]["tokens"]
    assert pq.read_schema(tmp_path / "o.parquet").field("text").type == pa.string()


@pytest.mark.parametrize("seed", range(4))
def test_a_sample_of_one_leaves_all_other_parts_empty(tmp_path, seed):
    first, second = texts()
    corpus = jsonl(tmp_path / "c.jsonl", [first, second, second])
    settings = ScanSettings(corpus=corpus, windows=WindowSettings(limit=1, seed=seed), **PARTS)
    manifest = scan(settings, tmp_path / "o.parquet")
    assert manifest["rows"] == 1 and manifest["account"]["windows"]["duplicates"] == 1
    assert Paragraphs.load(tmp_path / "o.parquet").column("text").tolist()[0] in first + second


def test_no_row_that_reaches_the_least_em_is_a_result(tmp_path):
    corpus = jsonl(tmp_path / "c.jsonl", [NOISE, EMPTY, NOISE[10:]])
    manifest = scan(ScanSettings(corpus=corpus, min_em=50, **PARTS), tmp_path / "o.parquet")
    assert manifest["rows"] == 0 < sum(manifest["em"])
    assert len(Paragraphs.load(tmp_path / "o.parquet")) == 0


def test_a_folder_that_a_failure_left_is_taken_up(tmp_path, monkeypatch):
    corpus, out = jsonl(tmp_path / "c.jsonl", [EMPTY, *texts()]), tmp_path / "o.parquet"
    scan(ScanSettings(corpus=corpus, **PARTS), tmp_path / "whole.parquet")

    def fail(*_: object) -> None:
        raise ValueError("columns of two lengths")

    with monkeypatch.context() as patched:
        patched.setattr(scan_parts, "edit_distances", fail)
        with pytest.raises(ValueError, match="two lengths"):
            scan(ScanSettings(corpus=corpus, **PARTS), out)
    assert out.with_suffix(".scan").is_dir()
    scan(ScanSettings(corpus=corpus, **PARTS), out)
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole.parquet"), check_metadata=True)


def test_a_part_whose_columns_have_no_type_does_not_decide_those_of_the_output(tmp_path, monkeypatch):
    corpus, out = jsonl(tmp_path / "c.jsonl", [EMPTY, *texts()]), tmp_path / "o.parquet"
    scan(ScanSettings(corpus=corpus, **PARTS), tmp_path / "whole.parquet")
    write = scan_parts.RowsFile.write

    def untyped(self, table: pa.Table) -> None:
        if not len(table):
            table = table.set_column(table.column_names.index("text"), "text", pa.nulls(0))
        write(self, table)

    monkeypatch.setattr(scan_parts.RowsFile, "write", untyped)
    scan(ScanSettings(corpus=corpus, **PARTS), out)
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole.parquet"), check_metadata=True)


def test_no_rows_are_decoded_to_no_texts(bundled_model):
    tokenizer = bundled_model.tokenizer
    assert tokenizer.batch_decode([]) == [""], "the reason for `decoded` is gone: it can go, too"
    for rows in ([], np.zeros((0, 5), dtype=np.int64), bundled_paragraphs().tokens[:0]):
        assert decoded(tokenizer, rows) == []
    assert decoded(tokenizer, [[]]) == [""] and len(decoded(tokenizer, np.ones((3, 2), dtype=np.int64))) == 3


@pytest.mark.parametrize("method", ["full", "cascade"])
def test_no_paragraphs_are_scored_and_decoded_to_nothing(bundled_model, bundled, method):
    scorer, none = ExactScorer(bundled_model, bundled[:4], method=method), bundled[:0]
    scores = scorer.score(none)
    assert [len(values) for values in (scores.em, scores.nll, scores.match_fraction, scores.rival)] == [0] * 4
    said = greedy_continuations(scorer.lean, none.tokens, none.prefix_len, scores.em, scores.rival)
    assert said.shape == (0, 50) and edit_distances(said, none.continuation.numpy()).shape == (0,)


def test_one_paragraph_is_perturbed_and_none_is_refused_in_a_sentence(tiny_model, tiny_paragraphs):
    one = perturb_prefix(tiny_model, tiny_paragraphs[:1], edit_distance=True)
    assert one.sizes["paragraph"] == 1
    clean, corrupt = worst_perturbations(tiny_model, tiny_paragraphs[:1], one, before="all")
    assert len(clean) == len(corrupt) == 1
    with pytest.raises(InputError, match="got 0 paragraphs; need at least 1"):
        perturb_prefix(tiny_model, tiny_paragraphs[:0])
