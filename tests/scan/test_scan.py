import copy
import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from jaxtyping import TypeCheckError

from mechmem.data import files
from mechmem.data.assets import bundled_paragraphs
from mechmem.data.counts import cluster, occurrences
from mechmem.data.errors import InputError
from mechmem.data.fingerprint import fingerprint
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.windows import WindowSettings
from mechmem.measure.scores import score
from mechmem.model.load import load_model
from mechmem.scan.scan import scan
from mechmem.scan.scan_model import scan_model
from mechmem.scan.scan_parts import RowsFile
from mechmem.scan.scan_settings import ScanSettings

# `mechmem.scan` is the function as soon as it was asked for, so the module is found by its name alone.
SCAN = importlib.import_module("mechmem.scan.scan")
SMALL: dict[str, Any] = {"shard_tokens": 700}


@pytest.fixture(scope="module")
def bundled():
    return load_model("bundled")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents of one to three shipped paragraphs, some twice, some too short to be cut."""
    known = bundled_paragraphs()
    rows = known.column("text")[np.random.default_rng(4).permutation(len(known))[:26]]
    together = [" ".join(rows[i : i + 3]) for i in range(0, 12, 3)]
    return [*together, *rows[12:], rows[20], "too short", rows[21]]


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "pile.jsonl"
    kinds = ["Books", "GitHub"]
    lines = [
        json.dumps({"text": text, "meta": {"pile_set_name": kinds[number % 2]}}) for number, text in enumerate(texts)
    ]
    path.write_text("\n".join([*lines[:5], '{"text": ', *lines[5:]]) + "\n")
    return path


@pytest.fixture(scope="module")
def scanned(corpus, tmp_path_factory) -> tuple[Path, dict]:
    """One scan that nothing disturbed."""
    out = tmp_path_factory.mktemp("scan") / "paragraphs.parquet"
    return out, scan(ScanSettings(corpus=str(corpus), **SMALL), out)


def same(first: Path, second: Path) -> bool:
    return pq.read_table(first).equals(pq.read_table(second), check_metadata=True)


def test_paragraphs_of_text_know_their_tokenizer(scanned, bundled):
    paragraphs = Paragraphs.load(scanned[0])
    assert paragraphs.tokenizer == fingerprint(bundled.tokenizer) == bundled_paragraphs().tokenizer
    assert len(set(paragraphs.ids)) == len(paragraphs)
    stranger = Paragraphs(paragraphs.tokens, 50, paragraphs.table, "50257-0123456789abcdef")
    with pytest.raises(InputError, match="belong to another tokenizer"):
        score(bundled, stranger)


def test_a_loaded_model_scans_like_a_named_one_and_is_not_taken_for_an_edited_one(scanned, corpus, bundled, tmp_path):
    settings, out = ScanSettings(corpus=str(corpus), **SMALL), tmp_path / "loaded.parquet"
    manifest = scan(settings, out, model=bundled)
    assert same(out, scanned[0]) and manifest["described"]["settings"]["model"] == "bundled"
    assert scan(settings, out, model=bundled) == manifest
    edited = copy.deepcopy(bundled)
    with torch.no_grad():
        edited.blocks[1].mlp.W_in[0, 0] += 0.5
    with pytest.raises(InputError, match="other settings .weights was"):
        scan(settings, out, model=edited)
    scan(settings, tmp_path / "edited.parquet", model=edited)
    found = Paragraphs.load(tmp_path / "edited.parquet")
    np.testing.assert_allclose(found.column("nll"), score(edited, found).nll, atol=1e-5)
    assert not np.allclose(found.column("nll"), Paragraphs.load(scanned[0]).column("nll"), atol=1e-4)


def test_a_loaded_model_that_would_not_be_the_one_that_scores_is_refused(corpus, bundled, tmp_path):
    settings = ScanSettings(corpus=str(corpus), **SMALL)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"device": "cpu"}, "got a loaded model and device 'cpu'"),
        ({"engine": "ray"}, "got a loaded model and engine 'ray'"),
        ({"model": "bundled"}, "got str as model; need a HookedTransformer"),
    ]
    for arguments, sentence in refused:
        with pytest.raises(InputError, match=sentence):
            scan(settings, tmp_path / "o.parquet", **({"model": bundled} | arguments))
    with (
        bundled.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: value)]),  # noqa: ARG005
        pytest.raises(InputError, match="the model has hooks on blocks.0.hook_mlp_out"),
    ):
        scan(settings, tmp_path / "o.parquet", model=bundled)
    assert not list(tmp_path.iterdir())


def test_every_number_is_that_of_the_slow_way(scanned, bundled, texts):
    paras = Paragraphs.load(scanned[0])
    documents = [bundled.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    # Each window of 100 tokens from each document's start, the first of equal ones.
    windows: dict[tuple[int, ...], tuple[int, int]] = {}
    for number, ids in enumerate(documents):
        for offset in range(0, len(ids) - 99, 100):
            windows.setdefault(tuple(ids[offset : offset + 100]), (number, offset))
    assert [tuple(row) for row in paras.tokens.tolist()] == list(windows)
    assert list(zip(paras.column("document"), paras.column("offset"), strict=True)) == list(windows.values())
    assert [kind for kind in paras.column("source")] == [
        ["Books", "GitHub"][number % 2] for number, _ in windows.values()
    ]
    assert paras.column("count").tolist() == occurrences(paras, documents, [1] * len(documents)).tolist()
    assert max(paras.column("count")) == 2
    assert paras.column("cluster").tolist() == cluster(paras, run=25).tolist()
    assert paras.column("text").tolist() == [bundled.tokenizer.decode(row) for row in paras.tokens.tolist()]
    expected = score(bundled, paras)
    assert paras.column("em").tolist() == expected.em.values.tolist()
    np.testing.assert_allclose(paras.column("nll"), expected.nll, atol=1e-5)
    np.testing.assert_allclose(paras.column("match_fraction"), expected.match.mean("pos"), atol=1e-6)
    assert len(set(paras.column("em"))) > 3, "a corpus on which everything is equal shows nothing"


def plain_distance(first: list[int], second: list[int]) -> int:
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def test_edit_distance_is_that_of_greedy_decoding(scanned, bundled):
    paras = Paragraphs.load(scanned[0])
    chosen = paras.select(np.argsort(paras.column("em"), kind="stable")[[0, 3, 6, -1]])
    said = chosen.prefix
    with torch.no_grad():
        for _ in range(50):
            said = torch.cat([said, bundled(said)[:, -1].argmax(-1, keepdim=True)], 1)
    expected = [plain_distance(*pair) for pair in zip(said[:, 50:].tolist(), chosen.continuation.tolist(), strict=True)]
    assert chosen.column("edit_distance").tolist() == expected and expected[0] > 0 == expected[-1]


def test_the_manifest_accounts_for_every_line(scanned, texts):
    manifest = json.loads(scanned[0].with_suffix(".scan.json").read_text())
    assert manifest == scanned[1]
    corpus, windows = manifest["account"]["corpus"], manifest["account"]["windows"]
    assert corpus["records"] == len(texts) + 1 == corpus["documents"] + sum(corpus["skipped"].values())
    assert sum(corpus["skipped"].values()) == 1 and windows["documents_too_short"] >= 1
    spent = sum(windows["dropped"].values()) + windows["duplicates"] + windows["not_sampled"] + windows["kept"]
    assert windows["windows"] == spent and windows["duplicates"] > 0
    assert sum(manifest["em"]) == windows["kept"] == manifest["rows"] == len(Paragraphs.load(scanned[0]))
    assert not scanned[0].with_suffix(".scan").exists()


class Killed(BaseException):
    """Not an error that anything may catch."""


def test_killed_before_any_write_it_goes_on_to_the_same_output(scanned, corpus, tmp_path, monkeypatch):
    out = tmp_path / "paragraphs.parquet"
    flush, calls, kills = files._flush, [0], 0

    def dying(path: Path) -> None:
        calls[0] += 1
        # One more write survives each time, and what a real kill would leave is left.
        if calls[0] > kills:
            (path.parent / f".mechmem-{calls[0]:032x}.partial{path.suffix}").write_bytes(b"half")
            raise Killed
        flush(path)

    monkeypatch.setattr(files, "_flush", dying)
    for _ in range(60):
        calls[0] = 0
        try:
            scan(ScanSettings(corpus=str(corpus), **SMALL), out)
            break
        except Killed:
            kills += 1
            assert not out.exists() or not out.with_suffix(".scan.json").exists()
    assert kills > 5
    assert same(out, scanned[0])
    manifest = json.loads(out.with_suffix(".scan.json").read_text())
    for name in ("account", "em", "rows", "settled", "tolerance"):
        assert manifest[name] == scanned[1][name]
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".mechmem-")) == [
        "paragraphs.parquet",
        "paragraphs.scan.json",
    ]


def test_a_killed_process_goes_on_to_the_same_output(scanned, corpus, tmp_path):
    out = tmp_path / "paragraphs.parquet"
    command = [sys.executable, "-m", "mechmem.cli", "scan", "--corpus", str(corpus), "--out", str(out)]
    command += ["--shard-tokens", "700"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("paragraphs.scan/parts/*.json")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() and tmp_path.joinpath("paragraphs.scan").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert same(out, scanned[0])


def test_a_full_disk_leaves_nothing_half_written(scanned, corpus, tmp_path, monkeypatch):
    out = tmp_path / "paragraphs.parquet"
    write, room = RowsFile.write, [2]

    def until_full(self, table):
        write(self, table)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= 1

    monkeypatch.setattr(RowsFile, "write", until_full)
    with pytest.raises(InputError, match="the disk is full .* run the same command again"):
        scan(ScanSettings(corpus=str(corpus), **SMALL), out)
    assert not out.exists()
    assert sorted(path.suffix for path in (tmp_path / "paragraphs.scan" / "parts").iterdir()) == [
        ".json",
        ".json",
        ".parquet",
        ".parquet",
    ]
    monkeypatch.undo()
    scan(ScanSettings(corpus=str(corpus), **SMALL), out)
    assert same(out, scanned[0])


def test_work_of_other_settings_is_refused_and_not_mixed(scanned, corpus, tmp_path, monkeypatch):
    out = tmp_path / "paragraphs.parquet"
    monkeypatch.setattr(SCAN, "write_output", lambda *_, **__: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        scan(ScanSettings(corpus=str(corpus), **SMALL), out)
    monkeypatch.undo()
    changes: list[tuple[dict[str, Any], str]] = [
        ({"windows": WindowSettings(stride=50)}, r"stride was 100, now 50"),
        ({"method": "cascade"}, "method was 'full', now 'cascade'"),
    ]
    for changed, named in changes:
        with pytest.raises(InputError, match=f"paragraphs.scan: was begun with other settings .*{named}"):
            scan(ScanSettings(corpus=str(corpus), **SMALL, **changed), out)
    monkeypatch.setattr(SCAN, "scan_model", lambda *arguments: (*scan_model(*arguments)[:2], "other"))
    with pytest.raises(InputError, match="weights was .* now 'other'"):
        scan(ScanSettings(corpus=str(corpus), **SMALL), out)
    monkeypatch.undo()
    scan(ScanSettings(corpus=str(corpus), **SMALL), out)
    assert same(out, scanned[0])


def test_a_finished_scan_is_not_done_again_and_no_other_takes_its_place(scanned, corpus, tmp_path, monkeypatch):
    out, manifest = scanned
    with monkeypatch.context() as patched:
        patched.setattr(SCAN, "open_rows", lambda *_: pytest.fail("it was to be left alone"))
        assert scan(ScanSettings(corpus=str(corpus), **SMALL), out) == manifest
    with pytest.raises(InputError, match="min_em was 0, now 5"):
        scan(ScanSettings(corpus=str(corpus), min_em=5, **SMALL), out)
    stranger = tmp_path / "stranger.parquet"
    stranger.write_bytes(b"mine")
    with pytest.raises(InputError, match="was written by something else"):
        scan(ScanSettings(corpus=str(corpus)), stranger)
    assert stranger.read_bytes() == b"mine" and not stranger.with_suffix(".scan").exists()
    (tmp_path / "full.scan").mkdir()
    (tmp_path / "full.scan" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files of something else"):
        scan(ScanSettings(corpus=str(corpus)), tmp_path / "full.parquet")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_cascade_finds_the_same_and_pays_for_less(scanned, corpus, tmp_path, precision):
    full = Paragraphs.load(scanned[0])
    scan(ScanSettings(corpus=str(corpus), method="cascade", precision=precision), tmp_path / "c.parquet")
    found = Paragraphs.load(tmp_path / "c.parquet")
    assert found.column("em").tolist() == full.column("em").tolist()
    scored = ~np.isnan(found.column("nll"))
    assert scored[full.column("em") == 50].all() and not scored.all()
    np.testing.assert_allclose(found.column("nll")[scored], full.column("nll")[scored], atol=1e-5)
    assert np.array_equal(found.column("edit_distance")[scored], full.column("edit_distance")[scored])
    assert np.isnan(found.column("edit_distance")[~scored]).all()


def test_what_a_sample_holds_is_drawn_by_the_seed(scanned, corpus, tmp_path):
    everything = {tuple(row) for row in Paragraphs.load(scanned[0]).tokens.tolist()}
    drawn = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{number}.parquet"
        manifest = scan(
            ScanSettings(corpus=str(corpus), edit_distance=False, windows=WindowSettings(limit=8, seed=seed)), out
        )
        drawn.append([tuple(row) for row in Paragraphs.load(out).tokens.tolist()])
        assert manifest["account"]["windows"]["not_sampled"] == len(everything) - 8
        assert "edit_distance" not in pq.read_schema(out).names
    assert drawn[0] == drawn[1] != drawn[2] and set(drawn[0]) | set(drawn[2]) < everything


def test_min_em_leaves_rows_out_and_the_manifest_counts_them(scanned, corpus, tmp_path):
    full = Paragraphs.load(scanned[0])
    manifest = scan(ScanSettings(corpus=str(corpus), min_em=50, **SMALL), tmp_path / "m.parquet")
    found = Paragraphs.load(tmp_path / "m.parquet")
    assert found.column("id").tolist() == full.column("id")[full.column("em") == 50].tolist()
    assert manifest["em"] == np.bincount(full.column("em"), minlength=51).tolist()
    nothing = full.select(full.column("em") < 20)
    nothing.save(tmp_path / "low.parquet")
    manifest = scan(ScanSettings(corpus=str(tmp_path / "low.parquet"), min_em=50), tmp_path / "none.parquet")
    assert manifest["rows"] == 0 == len(Paragraphs.load(tmp_path / "none.parquet"))
    assert sum(manifest["em"]) == len(nothing)


def test_many_files_hold_the_rows_of_one(scanned, corpus, tmp_path):
    scan(ScanSettings(corpus=str(corpus), **SMALL), tmp_path / "many.parquet", rows_per_file=4)
    sizes = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "many.parquet").iterdir())]
    assert set(sizes[:-1]) == {4} and 1 <= sizes[-1] <= 4
    many, one = Paragraphs.load(tmp_path / "many.parquet"), Paragraphs.load(scanned[0])
    assert torch.equal(many.tokens, one.tokens) and many.prefix_len == one.prefix_len
    for name in one.table.column_names if one.table else []:
        assert np.array_equal(many.column(name), one.column(name)), name


def test_rows_of_a_file_keep_their_columns_and_are_sampled(tmp_path, bundled):
    known = bundled_paragraphs().select(np.arange(40)).with_columns(mine=np.arange(40) * 2)
    known.save(tmp_path / "known.parquet")
    settings = ScanSettings(corpus=str(tmp_path / "known.parquet"), windows=WindowSettings(limit=12), **SMALL)
    manifest = scan(settings, tmp_path / "s.parquet")
    found = Paragraphs.load(tmp_path / "s.parquet")
    assert len(found) == 12 and manifest["account"] == {"rows": 40, "not_sampled": 28, "kept": 12}
    rows = found.column("mine") // 2
    assert rows.max() > 20 and np.all(np.diff(rows) > 0), "a sample, in order, and not the first rows"
    for name in ("count", "cluster", "seen", "source"):
        assert np.array_equal(found.column(name), known.column(name)[rows])
    assert found.column("em").tolist() == score(bundled, known.select(rows)).em.values.tolist()


def test_rows_of_a_file_get_ids_of_their_tokens_and_ids_that_occur_twice_are_refused(tmp_path):
    tokens = bundled_paragraphs().tokens[:4]
    plain = Paragraphs(tokens, 50)
    plain.with_columns(mine=np.arange(4)).save(tmp_path / "plain.parquet")
    scan(ScanSettings(corpus=str(tmp_path / "plain.parquet"), edit_distance=False), tmp_path / "o.parquet")
    assert Paragraphs.load(tmp_path / "o.parquet").ids.tolist() == plain.ids.tolist()
    plain.with_columns(id=[1, 2, 2, 3]).save(tmp_path / "twice.parquet")
    with pytest.raises(InputError, match="the id 2 occurs 2 times; ids must be unique"):
        scan(ScanSettings(corpus=str(tmp_path / "twice.parquet")), tmp_path / "t.parquet")
    assert not (tmp_path / "t.scan").exists()


def save_ids(path: Path, value: object) -> Path:
    np.save(path, np.asarray(value))
    return path


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        (
            np.full((3, 100), 4096, dtype=np.uint16),
            "got the token id 4096 for a model with a vocabulary of 4096",
        ),
        (np.full((3, 100), -1, dtype=np.int32), "got the token id -1 in rows 0 to 2"),
        (np.zeros((3, 100)), "float64 of shape .*need ids"),
        (np.zeros((0, 100), dtype=np.int32), "got 0 records"),
        (np.zeros((3, 60), dtype=np.int32), "none of 100 tokens"),
    ],
)
def test_ids_that_cannot_be_scored_are_refused_and_nothing_is_left(tmp_path, ids, sentence):
    path = save_ids(tmp_path / "ids.npy", ids)
    with pytest.raises(InputError, match=sentence):
        scan(ScanSettings(corpus=str(path)), tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == [path]


def test_a_mended_corpus_is_taken_after_a_broken_one(tmp_path):
    (tmp_path / "c.txt").write_text("too short")
    with pytest.raises(InputError, match="none of 100 tokens"):
        scan(ScanSettings(corpus=str(tmp_path / "c.txt")), tmp_path / "out.parquet")
    (tmp_path / "c.txt").write_text(" ".join(bundled_paragraphs().column("text")[:3]))
    assert scan(ScanSettings(corpus=str(tmp_path / "c.txt")), tmp_path / "out.parquet")["rows"] >= 2


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"windows": WindowSettings(length=300, prefix_len=50)},
            "windows of 300 tokens for a model with a context of 256",
        ),
        ({"corpus": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"column": "body"}, "need at least 1 document"),
        ({"strict": True}, "pile.jsonl:6: bad JSON"),
    ],
)
def test_a_scan_that_cannot_be_done_says_why(corpus, tmp_path, changed, sentence):
    settings: dict[str, Any] = {"corpus": str(corpus)} | changed
    with pytest.raises(InputError, match=sentence):
        scan(ScanSettings(**settings), tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"run": 0}, "got 0 as run"),
        ({"min_em": -1}, "got -1 as min_em"),
        ({"batch_size": 0}, "got 0 as batch_size; need"),
        ({"shard_tokens": 99}, "at least the paragraphs' 100 tokens"),
        ({"model": "other"}, "got no corpus for other"),
        ({"method": "full", "precision": "bfloat16"}, "need the method 'cascade'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        ScanSettings(**settings)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"out": "p.csv"}, "ends in .parquet"),
        ({"engine": "spark"}, "spark"),
        ({"rows_per_file": 0}, "got 0 as rows_per_file"),
        ({"workers": 0}, "got 0 as workers"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path, arguments, sentence):
    arguments = {"out": "p.parquet"} | arguments
    with pytest.raises((InputError, TypeCheckError), match=sentence):
        scan(ScanSettings(), tmp_path / arguments.pop("out"), **arguments)
    assert not list(tmp_path.iterdir())
