"""A scan goes on in the ways in which people go on, one process at a time, and touches nothing that is not its own."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mechmem.cli import app
from mechmem.data.assets import bundled_paragraphs
from mechmem.data.errors import InputError
from mechmem.data.windows import WindowSettings
from mechmem.scan.scan import scan
from mechmem.scan.scan_parts import PartScorer
from mechmem.scan.scan_settings import ScanSettings

SCAN = importlib.import_module("mechmem.scan.scan")
PARTS: dict[str, Any] = {"shard_tokens": 700}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    texts = bundled_paragraphs().column("text")[:40]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "{broken\n")
    return path


class Killed(BaseException):
    """Not an error that anything may catch."""


def begin(settings: ScanSettings, out: Path, monkeypatch, parts: int = 2) -> None:
    """A scan that is killed after some parts."""
    score = PartScorer.score

    def dying(self, number, *rest):
        if number == parts:
            raise Killed
        return score(self, number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(PartScorer, "score", dying)
        with pytest.raises(Killed):
            scan(settings, out)
    assert len(list(out.with_suffix(".scan").glob("parts/*.json"))) == parts


def test_killed_with_large_batches_it_goes_on_with_small_ones_to_the_same_bytes(corpus, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.parquet", tmp_path / "o.parquet"
    scan(ScanSettings(corpus=str(corpus), batch_size=64, **PARTS), whole)
    begin(ScanSettings(corpus=str(corpus), batch_size=64, **PARTS), out, monkeypatch)
    scan(ScanSettings(corpus=str(corpus), batch_size=8, **PARTS), out)
    assert out.read_bytes() == whole.read_bytes()


def test_parts_and_files_may_be_chosen_otherwise_but_the_rows_may_not(corpus, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.parquet", tmp_path / "o.parquet"
    settings = ScanSettings(corpus=str(corpus), **PARTS)
    scan(settings, whole)
    begin(settings, out, monkeypatch)
    with pytest.raises(InputError, match="was begun with other settings .min_em was 0, now 3"):
        scan(ScanSettings(corpus=str(corpus), min_em=3, **PARTS), out)
    with pytest.warns(UserWarning, match="goes on in parts of 700 tokens, as it was begun"):
        scan(ScanSettings(corpus=str(corpus), shard_tokens=5000), out, rows_per_file=10)
    assert pq.read_table(out).equals(pq.read_table(whole))
    # What is done is done for all that ask for the same rows, in the same files.
    assert scan(ScanSettings(corpus=str(corpus), shard_tokens=900, batch_size=3), out, rows_per_file=10)["rows"] == 40
    with pytest.raises(InputError, match="rows_per_file was 10, now None"):
        scan(settings, out)


def test_strict_may_be_dropped_on_the_way_and_is_not_met_by_what_is_there(corpus, tmp_path, monkeypatch):
    out = tmp_path / "o.parquet"
    begin(ScanSettings(corpus=str(corpus), **PARTS), out, monkeypatch)
    with pytest.raises(InputError, match=r"c\.jsonl:41: bad JSON"):
        scan(ScanSettings(corpus=str(corpus), strict=True, **PARTS), out)
    assert out.with_suffix(".scan").is_dir()
    scan(ScanSettings(corpus=str(corpus), **PARTS), out)
    with pytest.raises(InputError, match=r"written without 1 records that cannot be read \(bad JSON\)"):
        scan(ScanSettings(corpus=str(corpus), strict=True, **PARTS), out)


def test_a_folder_in_which_another_works_is_left_alone(corpus, tmp_path):
    out, settings = tmp_path / "o.parquet", ScanSettings(corpus=str(corpus), **PARTS)
    program = f"""
import time
from pathlib import Path
from mechmem.data.folder_lock import only_writer
with only_writer({str(out.with_suffix(".scan"))!r}):
    Path({str(tmp_path / "held")!r}).touch()
    time.sleep(600)
"""
    other = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "held").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(InputError, match=rf"process {other.pid} on .* works there"):
            scan(settings, out)
        assert not list(out.with_suffix(".scan").glob("[!.]*"))
    finally:
        other.kill()
        other.wait()
    assert scan(settings, out)["rows"] == 40  # a dead process holds no lock
    assert not out.with_suffix(".scan").exists()


def test_a_rival_does_not_disturb_the_one_who_works(corpus, tmp_path, monkeypatch):
    out, settings = tmp_path / "o.parquet", ScanSettings(corpus=str(corpus), **PARTS)
    command = [sys.executable, "-m", "mechmem.cli", "scan", "--corpus", str(corpus), "--out", str(out)]
    command += ["--shard-tokens", "700"]
    score, rivals = PartScorer.score, []

    def watched(self, number, *rest):
        if number == 1:
            rivals.append(subprocess.run(command, capture_output=True, text=True))
        return score(self, number, *rest)

    monkeypatch.setattr(PartScorer, "score", watched)
    assert scan(settings, out)["rows"] == 40
    assert rivals[0].returncode == 2 and f"process {os.getpid()} on" in rivals[0].stderr


@pytest.mark.parametrize("name", [".o.partial.mp4", "notes.txt", ".mechmem-mine.partial"])
def test_what_others_put_into_the_folder_stays(corpus, tmp_path, monkeypatch, name):
    out, settings = tmp_path / "o.parquet", ScanSettings(corpus=str(corpus), **PARTS)
    folder = out.with_suffix(".scan")
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(InputError, match="holds files of something else"):
        scan(settings, out)
    assert [path.name for path in folder.iterdir()] == [name]
    (folder / name).unlink()
    begin(settings, out, monkeypatch)
    (folder / name).write_text("mine")
    (folder / "link").symlink_to(tmp_path)
    scan(settings, out)
    assert sorted(path.name for path in folder.iterdir()) == sorted([name, "link"]) and corpus.exists()
    assert (folder / name).read_text() == "mine"


def test_a_folder_beside_a_finished_scan_is_not_removed(corpus, tmp_path):
    out, settings = tmp_path / "o.parquet", ScanSettings(corpus=str(corpus), **PARTS)
    manifest = scan(settings, out)
    out.with_suffix(".scan").mkdir()
    (out.with_suffix(".scan") / "mine").touch()
    assert scan(settings, out) == manifest
    assert (out.with_suffix(".scan") / "mine").exists()


@pytest.mark.parametrize(
    "damage",
    ["scan.json", "corpus/plan.json", "corpus/accounts/000000.json", "windows/index.json", "parts/000000.json"],
)
@pytest.mark.parametrize("content", ["", "[]"])
def test_damaged_work_is_a_sentence(corpus, tmp_path, monkeypatch, damage, content):
    out, settings = tmp_path / "o.parquet", ScanSettings(corpus=str(corpus), **PARTS)
    begin(settings, out, monkeypatch)
    (out.with_suffix(".scan") / damage).write_text(content)
    with pytest.raises(InputError, match="(remove .* run the same command again|choose another output)"):
        scan(settings, out)


@pytest.mark.parametrize("content", ["", "[]", '{"described": 3}'])
def test_a_damaged_manifest_is_a_sentence(corpus, tmp_path, content):
    out, settings = tmp_path / "o.parquet", ScanSettings(corpus=str(corpus), **PARTS)
    scan(settings, out)
    out.with_suffix(".scan.json").write_text(content)
    with pytest.raises(InputError, match="scan.json: (not readable|holds a|'described' is a).*choose another output"):
        scan(settings, out)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(SCAN, "scan_model", lambda *_: pytest.fail("the work was begun"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.parquet").mkdir()
    settings = ScanSettings(corpus=str(corpus))
    for name, sentence in [
        ("file/o.parquet", "is a file; need a folder there"),
        ("folder.parquet", "is a folder; need the name of a file"),
        ("x" * 300 + ".parquet", "need at most 255"),
        ("x" * 246 + ".parquet", "need at most 255"),  # the manifest's name is longer
    ]:
        with pytest.raises(InputError, match=sentence):
            scan(settings, tmp_path / name)


def test_a_file_that_cannot_be_read_at_all_is_named_at_the_end_and_stops_a_strict_scan(tmp_path):
    (tmp_path / "in").mkdir()
    texts = bundled_paragraphs().column("text")[:3]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "in" / "b.jsonl.zst").write_bytes(b"no such thing")
    command = ["scan", "--corpus", str(tmp_path / "in"), "--out", str(tmp_path / "o.parquet")]
    for _ in range(2):  # done, and asked for again
        answer = CliRunner().invoke(app, command)
        assert answer.exit_code == 0, answer.output
        assert "nothing read from" in answer.stdout
        assert "nothing was read from 1 of the files" in answer.stderr and "b.jsonl.zst:1: broken file" in answer.stderr
    answer = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "s.parquet"), "--strict"])
    assert answer.exit_code == 2 and "b.jsonl.zst:1: broken file" in answer.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, where one can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts file systems")
@pytest.mark.parametrize("room", [0, 20_000, 100_000])
def test_a_scan_on_a_full_disk_goes_on_when_there_is_room(corpus, tmp_path, small_disk, room):
    whole, out = tmp_path / "whole.parquet", small_disk / "o.parquet"
    settings = ScanSettings(corpus=str(corpus), windows=WindowSettings(stride=20), edit_distance=False, **PARTS)
    scan(settings, whole)
    free = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - room)))
    with pytest.raises(InputError, match="the disk is full|cannot be written"):
        scan(settings, out)
    assert not out.exists()
    (small_disk / "ballast").unlink()
    scan(settings, out)
    assert out.read_bytes() == whole.read_bytes()
