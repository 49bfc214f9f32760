"""Outputs of a scan that cannot be written, rivals at one output, and files that are not the scan's."""

import importlib
import json
import shutil
import subprocess
import sys
import threading
import time

import pytest

from mechmem.data.assets import bundled_paragraphs
from mechmem.data.errors import InputError
from mechmem.data.folder_lock import only_writer
from mechmem.data.paragraphs import Paragraphs
from mechmem.scan.scan import scan
from mechmem.scan.scan_settings import ScanSettings

# `mechmem.scan` is the function as soon as it was asked for, so the module is found by its name alone.
SCAN = importlib.import_module("mechmem.scan.scan")
OURS = ".mechmem-0123456789abcdef0123456789abcdef.partial"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    texts = bundled_paragraphs()[:12].column("text")
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return ScanSettings(corpus=str(corpus), shard_tokens=300)


def test_a_second_scan_of_one_output_is_told_who_works_there(settings, bundled_model, tmp_path):
    found = []

    def rival():
        with pytest.raises(InputError, match=r"p\.scan: process \d+ on .* since 2.* works there"):
            scan(settings, tmp_path / "p.parquet", model=bundled_model)
        found.append("refused")

    with only_writer(tmp_path / "p.scan"):
        thread = threading.Thread(target=rival)
        thread.start()
        thread.join()
    assert found == ["refused"] and not any(tmp_path.iterdir())


def test_rivals_end_with_one_whole_output(settings, tmp_path):
    out = tmp_path / "p.parquet"
    command = [sys.executable, "-m", "mechmem.cli", "scan", "--corpus", settings.corpus, "--out", out]
    command += ["--shard-tokens", "300"]
    rivals = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [rival.communicate(timeout=300) for rival in rivals]
    codes = sorted(rival.returncode for rival in rivals)
    # The second is refused, or finds the finished output if it came late.
    assert codes in ([0, 2], [0, 0]), said
    assert codes == [0, 0] or any("works there" in " ".join(err.split()) for _, err in said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.parquet", "p.scan.json"]
    assert len(Paragraphs.load(out)) > 5


def test_a_folder_of_something_else_is_left_as_it_is(settings, bundled_model, tmp_path):
    work, elsewhere = tmp_path / "p.scan", tmp_path / "elsewhere"
    for made in (work, elsewhere, work / OURS):
        made.mkdir()
    (work / ".video.partial.mp4").write_text("mine")
    (elsewhere / "kept").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="holds files of something else"):
        scan(settings, tmp_path / "p.parquet", model=bundled_model)
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(work)
    work.symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"p\.scan: is a link"):
        scan(settings, tmp_path / "p.parquet", model=bundled_model)
    assert work.is_symlink() and [path.name for path in elsewhere.iterdir()] == ["kept"]


@pytest.mark.parametrize("kind", ["folder", "below a file", "loop", "long", "work is a file"])
def test_an_output_that_cannot_be_written_is_found_before_the_corpus_is_read(settings, tmp_path, kind, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "one.parquet").symlink_to(tmp_path / "one.parquet")
    (tmp_path / "d.parquet").mkdir()
    (tmp_path / "w.scan").write_text("x")
    out, sentence = {
        "folder": (tmp_path / "d.parquet", "is a folder; need the name of a file"),
        "below a file": (tmp_path / "file" / "p.parquet", "is a file; need a folder there"),
        "loop": (tmp_path / "one.parquet", "is a link that leads nowhere"),
        "long": (tmp_path / ("x" * 248 + ".parquet"), "a name of 256 bytes"),
        "work is a file": (tmp_path / "w.parquet", "is a file; need a folder"),
    }[kind]
    monkeypatch.setattr(SCAN, "source_inputs", None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=sentence):
        scan(settings, out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_scan_is_found_and_a_damaged_manifest_is_a_sentence(settings, bundled_model, tmp_path):
    out = tmp_path / "p.parquet"
    manifest = scan(settings, out, model=bundled_model)
    # A process was killed between writing the manifest and removing its work.
    (tmp_path / "p.scan" / "parts").mkdir(parents=True)
    (tmp_path / "p.scan" / "scan.json").write_text("{}")
    began = time.monotonic()
    assert scan(settings, out, model=bundled_model) == manifest and time.monotonic() - began < 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.parquet", "p.scan.json"]
    for broken in ("{", "[]", "[" * 100_000, json.dumps({"described": 3})):
        (tmp_path / "p.scan.json").write_text(broken)
        with pytest.raises(InputError, match=r"choose another output"):
            scan(settings, out, model=bundled_model)
