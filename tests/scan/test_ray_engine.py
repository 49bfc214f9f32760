import builtins
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mechmem.data.errors import InputError
from mechmem.data.windows import WindowSettings
from mechmem.scan.scan import scan
from mechmem.scan.scan_settings import ScanSettings

SETTINGS = ScanSettings(windows=WindowSettings(limit=96), shard_tokens=1200)


def ray_workers() -> list[int]:
    """Processes that hold a model for Ray."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"MapWorker" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers by Linux' /proc")
@pytest.mark.filterwarnings("ignore")
def test_two_workers_of_which_one_is_killed_write_what_one_process_writes(tmp_path):
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'mechmem[ray]'")
    scan(SETTINGS, tmp_path / "local.parquet")
    out, killed = tmp_path / "ray.parquet", []

    def kill_one() -> None:
        parts = out.with_suffix(".scan") / "parts"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(parts.glob("*.json")):
            time.sleep(0.02)
        workers = ray_workers()
        os.kill(workers[0], signal.SIGKILL)
        killed.extend(workers)

    murderer = threading.Thread(target=kill_one, daemon=True)
    murderer.start()
    seen: list[tuple[str, int, int]] = []
    scan(SETTINGS, out, engine="ray", workers=2, progress=lambda *state: seen.append(state))
    murderer.join(5)
    assert len(killed) == 2
    assert seen[0] == ("scoring paragraphs", 0, 96) and ("scoring paragraphs", 96, 96) in seen
    local, ray = pq.read_table(tmp_path / "local.parquet"), pq.read_table(out)
    # Another number of threads may sum in another order.
    floats = ["nll"]
    assert ray.drop_columns(floats).equals(local.drop_columns(floats))
    np.testing.assert_allclose(ray["nll"], local["nll"], atol=1e-5)


def test_without_ray_the_error_says_what_to_install(tmp_path, monkeypatch):
    found = builtins.__import__

    def without_ray(name, *arguments, **options):
        if name.split(".")[0] == "ray":
            raise ImportError("No module named 'ray'")
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(InputError, match=r"pip install 'mechmem\[ray\]'"):
        scan(SETTINGS, tmp_path / "ray.parquet", engine="ray")
