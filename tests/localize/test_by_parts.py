import builtins
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.data.netcdf import load_netcdf, load_netcdf_array, save_netcdf
from mechmem.localize import by_parts as module
from mechmem.localize.part_workers import Call, _PartWorker

# Parts of two batches each, and a last one of three paragraphs.
PART = 4
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "capture": (mm.capture, {"sites": ("z", "pattern"), "layers": [2, 1], "batch_size": 2}),
    "gradients": (mm.capture, {"sites": "z", "gradient_of": "nll", "batch_size": 2}),
    "perturb": (mm.perturb_prefix, {"samples": 2, "seed": 3, "batch_size": 2}),
    "runner-up": (mm.perturb_prefix, {"replacement": "runner-up", "scope": "prefix", "batch_size": 2}),
    "patch": (mm.patch, {"site": "z", "scored": "impact", "average": False}),
    "mean": (mm.ablate_heads, {"average": False}),
    "resample": (mm.ablate_heads, {"method": "resample", "seed": 2, "heads": ["L2H1", (0, 0)], "average": False}),
    "any": (mm.paragraph_gradients, {"batch_size": 2}),
}


@pytest.fixture(scope="module")
def sets(tiny_paragraphs):
    """Nineteen paragraphs with ids and clusters, and others."""
    tokens = torch.cat([tiny_paragraphs.tokens, tiny_paragraphs.tokens[:8].flip(1)])
    columns = {"id": [f"p{row}" for row in range(19)], "cluster": np.arange(19) // 2}
    paragraphs = mm.Paragraphs(tokens, prefix_len=13).with_columns(**columns)
    return paragraphs, paragraphs.replace_tokens(paragraphs.tokens.roll(1, 1))


def stored(result: Any, path: Path) -> Any:
    """A result as a file gives it back."""
    save_netcdf(result, path)
    return (load_netcdf_array if isinstance(result, xr.DataArray) else load_netcdf)(path)


def arguments(name: str, sets: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any], int]:
    """Function, sets, options and part: `patch` takes eight pairs at once and `ablate_heads` eight paragraphs."""
    function, options = CALLS[name]
    return function, sets if function is mm.patch else sets[:1], options, PART if "batch_size" in options else 8


@pytest.mark.parametrize("name", CALLS)
def test_parts_give_what_one_call_gives(name, tiny_model, sets, tmp_path):
    function, given, options, part = arguments(name, sets)
    seen = []
    found = mm.by_parts(
        function,
        tiny_model,
        *given,
        out=tmp_path / "out.nc",
        part=part,
        progress=lambda *at: seen.append(at),
        **options,
    )
    xr.testing.assert_identical(found.load(), stored(function(tiny_model, *given, **options), tmp_path / "one.nc"))
    found.close()
    assert seen[-1] == (19, 19) and len(seen) == -(-19 // part)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.nc", "out.nc"]
    # As other programs find it.
    assert load_netcdf(tmp_path / "out.nc", sealed=True).sizes["paragraph"] == 19
    if isinstance(found, xr.DataArray):
        assert load_netcdf_array(tmp_path / "out.nc").attrs == found.attrs


def test_parts_that_cut_a_batch_are_equal_but_for_rounding(tiny_model, sets, tmp_path):
    found = mm.by_parts(mm.capture, tiny_model, sets[0], out=tmp_path / "out.nc", part=3, sites="z").load()
    xr.testing.assert_allclose(found, mm.capture(tiny_model, sets[0], "z"), rtol=1e-4, atol=1e-5)


def test_what_was_stopped_goes_on_and_what_is_done_is_opened(tiny_model, sets, tmp_path):
    def stop(done, total):  # noqa: ARG001
        if done > PART:
            raise KeyboardInterrupt

    out, seen = tmp_path / "out.nc", []
    call: dict[str, Any] = {"out": out, "part": PART, "sites": "z", "batch_size": 2}
    other: dict[str, Any] = call | {"sites": "q"}
    with pytest.raises(KeyboardInterrupt):
        mm.by_parts(mm.capture, tiny_model, sets[0], progress=stop, **call)
    parts = tmp_path / "out.parts"
    assert sorted(path.name for path in parts.iterdir()) == ["000000.nc", "000001.nc", "plan.json"]
    (parts / f".mechmem-{'0' * 32}.partial.nc").write_bytes(b"half a part")
    with pytest.raises(InputError, match=r"out\.parts: was begun with other settings \(sites was 'z', now 'q'\)"):
        mm.by_parts(mm.capture, tiny_model, sets[0], **other)
    found = mm.by_parts(mm.capture, tiny_model, sets[0], progress=lambda *at: seen.append(at), **call).load()
    assert seen == [(12, 19), (16, 19), (19, 19)] and not parts.exists()
    xr.testing.assert_identical(found, stored(mm.capture(tiny_model, sets[0], "z", batch_size=2), tmp_path / "one.nc"))
    found.close()
    # Nothing is computed for what is there, and other settings replace it.
    again = mm.by_parts(mm.capture, tiny_model, sets[0], progress=lambda *at: seen.append(at), **call)
    assert again.identical(found) and len(seen) == 3
    again.close()
    assert "q" in mm.by_parts(mm.capture, tiny_model, sets[0], **other)


def test_a_damaged_part_is_named_and_made_again(tiny_model, sets, tmp_path, monkeypatch):
    call: dict[str, Any] = {"out": tmp_path / "out.nc", "part": PART, "sites": "z"}
    monkeypatch.setattr(module.PartFolder, "join", lambda *_: None)
    mm.by_parts(mm.capture, tiny_model, sets[0], **call)
    monkeypatch.undo()
    part = tmp_path / "out.parts" / "000002.nc"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(InputError, match=r"000002\.nc: was damaged or changed.*remove it and run the same call again"):
        mm.by_parts(mm.capture, tiny_model, sets[0], **call)
    part.unlink()
    assert mm.by_parts(mm.capture, tiny_model, sets[0], **call).sizes["paragraph"] == 19


KILLED = """
import os, signal, sys
import mechmem as mm
model, paragraphs = mm.load_model("bundled", device="cpu"), mm.bundled_paragraphs()[:12]
stop = lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done > 4 and sys.argv[2] == "killed" else None
mm.by_parts(mm.capture, model, paragraphs, out=sys.argv[1], part=4, sites="v", batch_size=4, progress=stop)
"""


def test_a_process_that_is_killed_changes_nothing(bundled_model, bundled, tmp_path):
    out = tmp_path / "out.nc"
    ended = subprocess.run([sys.executable, "-c", KILLED, out, "killed"], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL and not out.exists()
    assert len(list((tmp_path / "out.parts").glob("*.nc"))) == 2
    found = mm.by_parts(mm.capture, bundled_model, bundled[:12], out=out, part=4, sites="v", batch_size=4).load()
    one = mm.capture(bundled_model, bundled[:12], "v", batch_size=4)
    xr.testing.assert_allclose(found, stored(one, tmp_path / "one.nc"), rtol=1e-5, atol=1e-5)


def ray_workers() -> list[int]:
    """Processes that hold a model for Ray."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"_PartWorker" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers by Linux' /proc")
@pytest.mark.filterwarnings("ignore")
def test_workers_of_ray_of_which_one_is_killed_give_what_one_call_gives(tiny_model, sets, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'mechmem[ray]'")
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list((tmp_path / "perturb.parts").glob("*.nc")):
            time.sleep(0.005)
        killed.extend(ray_workers())
        os.kill(killed[0], signal.SIGKILL)

    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        murderer = threading.Thread(target=kill_one, daemon=True)
        murderer.start()
        function, given, options, part = arguments("perturb", sets)
        call: dict[str, Any] = {"part": part, "engine": "ray", "workers": 2, **options}
        found = mm.by_parts(function, tiny_model, *given, out=tmp_path / "perturb.nc", **call).load()
        murderer.join(5)
        assert killed
        # A worker's refusal is the function's own, and leaves nothing.
        call |= {"workers": 1, "replacement": "none"}
        with pytest.raises(InputError, match="'none'"):
            mm.by_parts(function, tiny_model, *given, out=tmp_path / "none.nc", **call)
        assert not (tmp_path / "none.parts").exists()
    finally:
        ray.shutdown()
    # Another number of threads may sum in another order.
    one = stored(function(tiny_model, *given, **options), tmp_path / "one.nc")
    xr.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-5)
    assert found.attrs == one.attrs and all(found[name].identical(one[name]) for name in one.coords)


@pytest.mark.parametrize("name", CALLS)
def test_a_worker_gives_the_parts_that_this_process_gives(name, tiny_model, sets):
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason="Ray is an extra: pip install 'mechmem[ray]'")
    function, given, options, part = arguments(name, sets)
    call = Call(function, tiny_model, list(given), options)
    worker = _PartWorker(cloudpickle.loads(cloudpickle.dumps(call)), "cpu", torch.get_num_threads())
    rows = slice(part, 2 * part)
    number, found = worker.measure(1, rows)
    assert number == 1 and found.identical(call.job().measure(rows))


def test_without_ray_the_error_says_what_to_install(tiny_model, sets, tmp_path, monkeypatch):
    found = builtins.__import__

    def without_ray(name, *arguments, **options):
        if name.split(".")[0] == "ray":
            raise ImportError("No module named 'ray'")
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(InputError, match=r"pip install 'mechmem\[ray\]'"):
        mm.by_parts(mm.capture, tiny_model, sets[0], out=tmp_path / "out.nc", engine="ray")
    assert list(tmp_path.iterdir()) == []


def centred(model: Any, paragraphs: Any) -> xr.DataArray:
    """A result that depends on which paragraphs are together, and says so."""
    nll = mm.score(model, paragraphs).nll
    return (nll - nll.mean()).assign_attrs(mean=float(nll.mean()))


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        (mm.patch, {"normalize": True}, "normalize=True for a patch by parts.*divide the result by source - base"),
        (mm.patch, {"average": True}, r"average=True.*take \.mean\('paragraph'\)"),
        (mm.ablate_heads, {"average": True}, r"average=True.*take \.mean\('paragraph'\)"),
        (mm.ablate_heads, {"site": "q"}, "site"),
        (mm.capture, {"out": "out.h5"}, r"need a file name that ends in \.nc"),
        (mm.capture, {"part": 0}, "got 0 as part; need a whole number of at least 1"),
        (mm.capture, {"workers": 2}, "got workers=2 with engine 'local'"),
        (mm.capture, {"engine": "spark"}, "engine"),
        (mm.parameter_gradients, {}, "parameter_gradients gives dimensions layer, component; need .* 'paragraph'"),
        (centred, {"part": 8}, "'mean' differs between parts, so the result depends on which paragraphs are together"),
    ],
)
def test_bad_calls_are_refused_and_leave_nothing(function, options, sentence, tiny_model, sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = sets if function is mm.patch else sets[:1]
    with pytest.raises(InputError, match=sentence):
        mm.by_parts(function, tiny_model, *given, **{"out": "out.nc"} | options)
    # The second part shows that a result depends on the others; the first one is kept, as after any stop.
    assert [path.name for path in tmp_path.iterdir()] == (["out.parts"] if function is centred else [])


def test_sets_must_fit(tiny_model, sets, tmp_path):
    with pytest.raises(InputError, match="got sets of 19, 4 paragraphs; need as many of each"):
        mm.by_parts(mm.patch, tiny_model, sets[0], sets[1][:4], out=tmp_path / "out.nc")
    with pytest.raises(InputError, match="got no paragraphs"):
        mm.by_parts(mm.patch, tiny_model, out=tmp_path / "out.nc")
    with pytest.raises(InputError, match="got ndarray as paragraphs; need Paragraphs"):
        mm.by_parts(mm.capture, tiny_model, np.zeros((3, 9)), out=tmp_path / "out.nc")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="no_such"):
        mm.by_parts(mm.capture, tiny_model, sets[0], out=tmp_path / "out.nc", no_such=1)
    assert list(tmp_path.iterdir()) == []
