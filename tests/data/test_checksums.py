import subprocess

import pytest

from mechmem.data.checksums import SUMS, damaged, recorded, refuse_damaged, writing
from mechmem.data.errors import InputError


def write(folder, **files):
    with writing(folder, *files):
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def test_what_was_written_is_known_and_what_changed_is_named(tmp_path):
    write(tmp_path, **{"a.nc": "a", "edits/b.nc": "b"})
    assert set(recorded(tmp_path)) == {"a.nc", "edits/b.nc"} and damaged(tmp_path) == []
    (tmp_path / "edits" / "b.nc").write_text("B")
    assert damaged(tmp_path) == ["edits/b.nc"]
    refuse_damaged(tmp_path, "a.nc", advice="no")
    refuse_damaged(tmp_path, "unknown.nc", advice="no")
    with pytest.raises(InputError, match=r"b\.nc: was damaged or changed after it was written; do it again"):
        refuse_damaged(tmp_path, "edits/b.nc", advice="do it again")
    (tmp_path / "edits" / "b.nc").unlink()
    assert damaged(tmp_path) == []
    write(tmp_path, **{"c.nc": "c"})
    assert set(recorded(tmp_path)) == {"a.nc", "c.nc"}


def test_sha256sum_reads_the_list(tmp_path):
    write(tmp_path, **{"a b.nc": "a", "edits/é.nc": "b"})
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path, check=True, capture_output=True)


def test_while_a_file_is_written_nothing_is_said_about_it(tmp_path):
    write(tmp_path, **{"a.nc": "old", "b.nc": "b"})
    with writing(tmp_path, "a.nc"):
        (tmp_path / "a.nc").write_text("half")
        assert damaged(tmp_path) == []
    assert damaged(tmp_path) == [] and len(recorded(tmp_path)) == 2


def test_what_an_interrupted_block_did_not_touch_stays_known(tmp_path):
    write(tmp_path, **{"a.nc": "a", "b.nc": "b"})
    with pytest.raises(KeyboardInterrupt), writing(tmp_path, "a.nc", "b.nc"):
        (tmp_path / "b.nc").write_text("half")
        raise KeyboardInterrupt
    assert set(recorded(tmp_path)) == {"a.nc"} and damaged(tmp_path) == []


@pytest.mark.parametrize("content", ["nonsense\n", f"{'0' * 63}  a.nc\n", "\0\n"])
def test_a_damaged_list_is_a_sentence(tmp_path, content):
    (tmp_path / SUMS).write_text(content)
    with pytest.raises(InputError, match="SHA256SUMS: is damaged; remove it"):
        recorded(tmp_path)
