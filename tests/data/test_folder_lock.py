import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from mechmem.data.errors import InputError
from mechmem.data.files import LOCK_NAME, foreign_entries
from mechmem.data.folder_lock import only_writer

HOLD = """
import sys
from mechmem.data.folder_lock import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""
COUNT = """
import pathlib, sys, time
from mechmem.data.errors import InputError
from mechmem.data.folder_lock import only_writer
folder, path, done = sys.argv[1], pathlib.Path(sys.argv[1], "count"), 0
while done < 30:
    try:
        with only_writer(folder):
            number = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(number + 1))
            done += 1
    except InputError:
        time.sleep(0.0005)
"""


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_works_there_since_when(tmp_path):
    process = holder(tmp_path)
    since = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
    with (
        pytest.raises(InputError, match=rf"process {process.pid} on .+ \(-c .+\) since {since} works there; wait"),
        only_writer(tmp_path),
    ):
        pass
    process.communicate("\n")
    with only_writer(tmp_path):
        pass


def test_a_killed_process_leaves_the_folder_free(tmp_path):
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / LOCK_NAME).is_file()
    assert foreign_entries(tmp_path) == []
    with only_writer(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert not any(tmp_path.iterdir())


def test_threads_of_one_process_exclude_each_other(tmp_path):
    found = []

    def enter():
        try:
            with only_writer(tmp_path):
                found.append("entered")
        except InputError as error:
            found.append(str(error))

    with only_writer(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in found[0]
    enter()
    assert found[1] == "entered"


def test_the_same_thread_may_enter_again(tmp_path):
    with only_writer(tmp_path):
        with only_writer(tmp_path / "." / ".." / tmp_path.name):
            pass
        assert (tmp_path / LOCK_NAME).is_file()
    assert not any(tmp_path.iterdir())


def test_a_folder_is_made_and_goes_again_where_nothing_was_written(tmp_path):
    with pytest.raises(KeyError), only_writer(tmp_path / "a" / "b"):
        raise KeyError
    assert not any(tmp_path.iterdir())
    with only_writer(tmp_path / "c"):
        (tmp_path / "c" / "x").write_text("x")
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["x"]


def test_rivals_never_work_at_the_same_time(tmp_path):
    """Each adds 30 to a number by reading and writing it; the lock file comes and goes all the while."""
    (tmp_path / "count").write_text("0")
    rivals = [subprocess.Popen([sys.executable, "-c", COUNT, tmp_path]) for _ in range(3)]
    assert [rival.wait(120) for rival in rivals] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "90" and not (tmp_path / LOCK_NAME).exists()


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_lock_that_is_no_file_is_refused_and_kept(tmp_path, kind):
    lock, target = tmp_path / "s" / LOCK_NAME, tmp_path / "target"
    target.write_text("kept")
    lock.parent.mkdir()
    lock.mkdir() if kind == "folder" else lock.symlink_to(target)
    with pytest.raises(InputError, match="s: cannot be written"), only_writer(lock.parent):
        pass
    assert os.path.lexists(lock) and target.read_text() == "kept"


def test_a_file_where_the_folder_belongs_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="need"), only_writer(path):
            pass
