import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mechmem.data.assets import bundled_paragraphs
from mechmem.data.errors import InputError
from mechmem.data.fingerprint import fingerprint
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.shards import Documents
from mechmem.data.windows import WindowSettings
from mechmem.measure.exact import ExactScorer
from mechmem.measure.margins import margins
from mechmem.measure.scores import score
from mechmem.model.load import load_model
from mechmem.scan import spans as spans_module
from mechmem.scan.scan import scan
from mechmem.scan.scan_settings import ScanSettings
from mechmem.scan.spans import SpanSettings, find_spans, predictions
from mechmem.scan.strides import missed_by_stride

SMALL = SpanSettings(prefix_len=6, continuation_len=5, min_match=4, context=20)


def documents(rows: list[list[int]]) -> Documents:
    lengths = [len(row) for row in rows]
    return Documents(
        np.concatenate([np.array(row, dtype=np.uint16) for row in rows]),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.arange(len(rows)) + 10,
        np.array([f"source {number}" for number in range(len(rows))], dtype=object),
    )


def exhaustive(model, found: Documents, settings: SpanSettings) -> set[tuple[int, int]]:
    """Every memorized window at stride 1: (document, offset)."""
    length, places, rows = settings.prefix_len + settings.continuation_len, [], []
    for number in range(len(found)):
        tokens = found.tokens[found.starts[number] : found.starts[number + 1]].astype(np.int64)
        for offset in range(len(tokens) - length + 1):
            places.append((int(found.numbers[number]), offset))
            rows.append(tokens[offset : offset + length])
    em = score(model, Paragraphs(torch.from_numpy(np.stack(rows)), settings.prefix_len), batch_size=64).em.values
    return {place for place, matched in zip(places, em, strict=True) if matched == settings.continuation_len}


def windows_of(table: pa.Table) -> set[tuple[int, int]]:
    return {(row["document"], window) for row in table.to_pylist() for window in row["windows"]}


@pytest.fixture(scope="module")
def scorer(tiny_model, tiny_paragraphs) -> ExactScorer:
    return ExactScorer(tiny_model, tiny_paragraphs)


@pytest.fixture(scope="module")
def written(tiny_model) -> Documents:
    """Documents with tokens that the tiny model writes after their last six alone; one short, one of noise."""
    generator = torch.Generator().manual_seed(2)

    def noise(count: int) -> list[int]:
        return torch.randint(1, 61, (count,), generator=generator).tolist()

    rows = []
    for number in range(12):
        row = noise(7 + 5 * number)
        for _ in range(3):
            window = torch.tensor([row[-6:]])
            for _ in range(5):
                with torch.no_grad():
                    window = torch.cat([window, tiny_model(window, padding_side="right")[:, -1:].argmax(-1)], 1)
            row = row + window[0, 6:].tolist() + noise(3)
        rows.append(row)
    return documents([*rows, noise(10), noise(70)])


def test_with_every_window_a_candidate_all_memorized_ones_are_found(tiny_model, scorer, written):
    loose = SpanSettings(prefix_len=6, continuation_len=5, min_match=1, context=20)
    table, counts = find_spans(scorer, written, loose)
    expected = exhaustive(tiny_model, written, loose)
    predicted = predictions(scorer, written, loose)
    length = np.convolve(predicted, np.ones(5, dtype=int))[4:]
    reachable = {
        (document, offset) for document, offset in expected if length[written.starts[document - 10] + offset + 6] >= 1
    }
    assert windows_of(table) == reachable and 10 <= len(reachable) <= len(expected)
    assert counts["windows"] == len(reachable) and counts["spans"] == len(table)
    assert counts["tokens"] == len(written.tokens)


def test_no_window_is_reported_that_is_not_memorized(tiny_model, scorer, written):
    table, counts = find_spans(scorer, written, SMALL)
    assert windows_of(table) <= exhaustive(tiny_model, written, SMALL) and len(table)
    assert counts["candidates"] >= counts["windows"] > 0
    for row in table.to_pylist():
        number = row["document"] - 10
        own = written.tokens[written.starts[number] : written.starts[number + 1]].tolist()
        assert row["source"] == f"source {number}"
        assert row["tokens"] == own[row["start"] - 6 : row["stop"]]
        assert row["windows"][0] + 6 == row["start"] and row["windows"][-1] + 11 == row["stop"]


@pytest.fixture(scope="module")
def slow(tiny_model, written) -> np.ndarray:
    """Which tokens of the pieces are the argmax, piece by piece, each from the piece that gives it most before."""
    found = np.zeros(len(written.tokens), dtype=bool)
    for begin, stop in zip(written.starts[:-1], written.starts[1:], strict=True):
        for start in range(begin, stop, 14):
            piece = torch.from_numpy(written.tokens[start : min(start + 20, stop)].astype(np.int64))
            if len(piece) > 6:
                with torch.no_grad():
                    argmax = tiny_model(piece[None], padding_side="right")[0].argmax(-1)
                found[start + 6 : start + len(piece)] = (argmax[5:-1] == piece[6:]).numpy()
    return found


def test_every_token_is_predicted_from_the_piece_that_gives_it_most(scorer, written, slow, monkeypatch):
    # A continuation that needs one predicted token of five is a candidate until all five are known: none is skipped.
    loose = SpanSettings(prefix_len=6, continuation_len=5, min_match=1, context=20)
    assert np.array_equal(predictions(scorer, written, loose), slow) and 0 < slow.mean() < 1
    monkeypatch.setitem(spans_module.TOKENS_AT_ONCE, "cpu", 1)
    assert np.array_equal(predictions(scorer, written, loose), slow)


@pytest.mark.parametrize("min_match", [2, 4, 5])
def test_logits_are_skipped_only_where_no_candidate_is_lost(scorer, written, slow, min_match, monkeypatch):
    asked = []

    def counting(lean, hidden, true, **options):
        asked.append(true.numel())
        return margins(lean, hidden, true, **options)

    monkeypatch.setattr(spans_module, "margins", counting)
    settings = SpanSettings(prefix_len=6, continuation_len=5, min_match=min_match, context=20)
    found = predictions(scorer, written, settings)
    candidates = spans_module._candidates(slow, written.starts, settings)
    assert spans_module._candidates(found, written.starts, settings).tolist() == candidates.tolist()
    assert len(candidates) and not (found & ~slow).any()
    columns = sum(stop - start - 6 for start, stop in pairwise(written.starts) if stop - start >= 11)
    assert sum(asked) < columns if min_match > 2 else sum(asked) <= columns


def test_candidates_never_cross_a_document(scorer, monkeypatch):
    monkeypatch.setattr(spans_module, "predictions", lambda _, d, *__: np.ones(len(d.tokens), dtype=bool))
    seen = []
    monkeypatch.setattr(
        spans_module,
        "_memorized",
        lambda _, __, candidates, ___: seen.extend(candidates) or np.ones(len(candidates), bool),
    )
    table, _ = find_spans(scorer, documents([[1] * 11, [2] * 10, [3] * 13]), SMALL)
    # Continuations may begin at 6 of the first document and at 6, 7 and 8 of the third, which begins at 21.
    assert seen == [6, 27, 28, 29]
    assert [(r["document"], r["start"], r["stop"]) for r in table.to_pylist()] == [(10, 6, 11), (12, 6, 13)]


def test_spans_are_joined_only_if_their_continuations_touch():
    found = documents([[1] * 60])
    table = pa.Table.from_pylist(spans_module._spans(found.tokens, found, np.array([10, 15, 21, 30]), SMALL))
    assert [(row["start"], row["stop"]) for row in table.to_pylist()] == [(10, 20), (21, 26), (30, 35)]


def test_what_a_stride_misses_is_counted():
    table = pa.table({"windows": [[100, 101, 102], [7], [49, 51]]})
    missed = missed_by_stride(table, 50)
    assert missed == {
        "spans": 3,
        "spans_missed": 2,
        "tokens": 52 + 50 + 52,
        "tokens_missed": 2 + 50 + 52,
        "windows": 6,
        "windows_missed": 5,
    }
    assert missed_by_stride(table, 1)["tokens_missed"] == 0
    with pytest.raises(InputError, match="got stride 0"):
        missed_by_stride(table, 0)


@pytest.fixture(scope="module")
def real() -> tuple[Documents, Documents]:
    """Memorized paragraphs of the bundled model at odd offsets, and the same tokens shuffled."""
    known = bundled_paragraphs()
    often = known.select(np.argsort(-known.column("count"), kind="stable")[:60:12]).tokens.tolist()
    rare = known.select(np.argsort(known.column("count"), kind="stable")[:5]).tokens.tolist()
    rng = np.random.default_rng(0)
    rows = [
        quiet[: 13 + 7 * number] + loud + quiet[50:]
        for number, (quiet, loud) in enumerate(zip(rare, often, strict=True))
    ]
    return documents(rows), documents([rng.permutation(row).tolist() for row in rows])


def test_on_the_bundled_model_nearly_all_that_stride_one_finds_is_found_and_nothing_in_noise(real):
    model = load_model("bundled")
    settings = SpanSettings()
    calibration = bundled_paragraphs().select(np.arange(16))
    expected = exhaustive(model, real[0], settings)
    scorers = ExactScorer(model, calibration), ExactScorer(model, calibration, method="cascade", precision="bfloat16")
    for scorer in scorers:
        table, _ = find_spans(scorer, real[0], settings)
        found = windows_of(table)
        assert found <= expected and len(found) >= 0.8 * len(expected) > 10
        assert missed_by_stride(table, 50)["spans_missed"] >= 1
        assert len(find_spans(scorer, real[1], settings)[0]) == 0


def test_a_scan_in_document_mode_goes_on_and_reports_what_windows_miss(tmp_path):
    known = bundled_paragraphs()
    order = np.argsort(-known.column("count"), kind="stable")[:48:8]
    lines = [json.dumps({"text": " a b c" * (1 + n) + str(text)}) for n, text in enumerate(known.column("text")[order])]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    settings = ScanSettings(corpus=str(tmp_path / "c.jsonl"), spans=SpanSettings(), shard_tokens=200)
    seen: list[str] = []
    manifest = scan(settings, tmp_path / "spans.parquet", progress=lambda what, *_: seen.append(what))
    table = pq.read_table(tmp_path / "spans.parquet")
    assert manifest["rows"] == len(table) == manifest["found"]["spans"] >= 2 and "reading tokens" in seen
    assert manifest["missed"]["stride 50"] == missed_by_stride(table, 50)
    model = load_model("bundled")
    assert model.tokenizer is not None
    for row in table.to_pylist():
        assert row["text"] == model.tokenizer.decode(row["tokens"][50:])
        assert row["id"] == f"{row['document']}:{row['start']}"
    assert len(set(table["id"].to_pylist())) == len(table)
    marks = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    assert marks == {"mechmem.prefix_len": "50", "mechmem.tokenizer": fingerprint(model.tokenizer)}
    again = scan(
        ScanSettings(corpus=settings.corpus, spans=SpanSettings(), shard_tokens=10**6), tmp_path / "one.parquet"
    )
    assert pq.read_table(tmp_path / "one.parquet").equals(table) and again["found"] == manifest["found"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SpanSettings(prefix_len=0), "got 0 as prefix_len; need a whole number of at least 1"),
        (lambda: SpanSettings(min_match=51), "got min_match 51; need 1 to 50"),
        (lambda: SpanSettings(context=99).context_of(256), "context of 99; need 100 .* to 256"),
        (lambda: SpanSettings(context=300).context_of(256), "context of 300"),
        (lambda: ScanSettings(spans=SpanSettings(), windows=WindowSettings(stride=50)), "leave out stride"),
    ],
)
def test_settings_out_of_range_are_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_documents_that_cannot_be_read_are_refused(scorer, tmp_path):
    with pytest.raises(InputError, match="got the token id 61 for a model with a vocabulary of 61"):
        find_spans(scorer, documents([[61] * 30]), SMALL)
    with pytest.raises(InputError, match="document mode reads whole documents"):
        scan(ScanSettings(spans=SpanSettings()), tmp_path / "o.parquet")
    (tmp_path / "c.txt").write_text("too short")
    with pytest.raises(InputError, match="no document has 100 tokens"):
        scan(ScanSettings(corpus=str(tmp_path / "c.txt"), spans=SpanSettings()), tmp_path / "o.parquet")
