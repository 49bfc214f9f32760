import os
import shutil

import datasets
import numpy as np
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

import mechmem.data.source_digest as module
from mechmem.data.errors import InputError
from mechmem.data.source_digest import source_digest


def folder_of_text(path):
    (path / "part").mkdir(parents=True)
    (path / "a.txt").write_text("one")
    (path / "part" / "b.jsonl").write_text('{"text": "two"}\n')
    np.save(path / "c.npy", np.arange(200).reshape(2, 100))
    return path


def append(path):
    path.write_bytes(path.read_bytes() + b" ")


CHANGES = {
    "content": lambda path: append(path / "part" / "b.jsonl"),
    "content of the same size and time": lambda path: _same_size(path / "a.txt"),
    "a file more": lambda path: (path / "d.txt.gz").write_bytes(b"x"),
    "a file less": lambda path: (path / "a.txt").unlink(),
    "a name": lambda path: (path / "a.txt").rename(path / "z.txt"),
    "ids": lambda path: np.save(path / "c.npy", np.arange(200).reshape(2, 100) + 1),
}


def _same_size(path):
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text("eno")
    os.utime(path, ns=times)


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_folder_is_noticed(tmp_path, change):
    folder = folder_of_text(tmp_path / "corpus")
    before = source_digest(folder)
    assert source_digest(str(folder)) == before
    CHANGES[change](folder)
    assert source_digest(folder) != before


def test_a_copy_is_the_same_source_and_what_is_not_read_does_not_count(tmp_path):
    folder = folder_of_text(tmp_path / "corpus")
    before = source_digest(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert source_digest(tmp_path / "copy") == before
    (folder / ".hidden.txt").write_text("x")
    (folder / "notes.md").write_text("x")
    assert source_digest(folder) == before


def test_a_file_counts_with_its_bytes_alone(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = source_digest(file)
    file.rename(tmp_path / "b.txt")
    assert source_digest(tmp_path / "b.txt") == before
    append(tmp_path / "b.txt")
    assert source_digest(tmp_path / "b.txt") != before


def test_a_saved_dataset_counts_with_its_rows(tmp_path):
    for name, rows in (("one", ["a", "b"]), ("two", ["a", "c"])):
        datasets.Dataset.from_dict({"text": rows}).save_to_disk(str(tmp_path / name))
    assert source_digest(tmp_path / "one") != source_digest(tmp_path / "two")


def test_a_dataset_on_the_hub_counts_with_its_commit_where_it_can_be_reached(monkeypatch):
    class Hub:
        commit: str | None = "abc"

        def dataset_info(self, name, **_):
            assert name.startswith("owner/")
            if Hub.commit is None:
                raise OfflineModeIsEnabled("no network")
            return type("Info", (), {"sha": Hub.commit})

    monkeypatch.setattr(module, "HfApi", Hub)
    before = source_digest("owner/name")
    assert before == source_digest("owner/name") and before != source_digest("owner/other")
    Hub.commit = "abd"
    assert source_digest("owner/name") != before
    Hub.commit = None
    assert source_digest("owner/name") is None


def test_no_source_has_no_digest_and_a_missing_one_is_refused(tmp_path):
    assert source_digest(None) is None
    with pytest.raises(InputError, match="no such file or folder"):
        source_digest(tmp_path / "gone.txt")
