"""Devices, types and numbers that a model cannot have are found before anything is read."""

import inspect

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import mechmem as mm
import mechmem.model.load as load_module
from mechmem.cli import app
from mechmem.data.errors import InputError
from mechmem.model.check import check_model
from mechmem.model.devices import check_device, check_dtype
from mechmem.model.load import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.* has no tokenizer:UserWarning")
ABSENT = ["banana", "", "cuda:99", "cuda:-1", "cpu:7", "meta", "xla", "cpu,cuda", "CPU", "c\0pu", *["cuda", "mps"]]
if torch.cuda.is_available():
    ABSENT.remove("cuda")
if torch.backends.mps.is_available():
    ABSENT.remove("mps")


@pytest.mark.parametrize("device", ABSENT)
def test_a_device_that_cannot_be_used_is_refused_before_work(device, monkeypatch):
    monkeypatch.setattr(load_module, "find_folder", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr("mechmem.model.check.find_folder", lambda *_: pytest.fail("it began"))
    for job in (load_model, check_model):
        with pytest.raises(InputError, match=r"as device; .*: choose one of cpu.*, or omit device to take a GPU"):
            job("bundled", device=device)


def test_studies_and_scans_find_a_wrong_device_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(load_module, "find_folder", lambda *_: pytest.fail("it began"))
    for job in (
        lambda: mm.run_study(tmp_path / "study", device="meta"),
        lambda: mm.open_study(tmp_path / "study", device="cuda:99"),
        lambda: mm.scan(mm.ScanSettings(), tmp_path / "scan.parquet", device="meta"),
    ):
        with pytest.raises(InputError, match="as device; .*: choose one of cpu|no study"):
            job()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", [3, True, 1.5, ["cpu"], object()])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(InputError, match=r"as device; need its name or a torch\.device: choose one of cpu"):
        check_device(device)


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu"), "cpu:0", torch.device("cpu", 0)])
def test_a_device_that_can_be_used_passes(device):
    check_device(device)


def test_torch_knows_devices_that_hold_no_numbers():
    """The reason why it is tried: torch accepts `meta` without a word."""
    assert torch.empty(0, device="meta").device.type == "meta"
    with pytest.raises(InputError, match="it holds shapes and no numbers"):
        check_device(torch.device("meta"))


WRONG = [
    torch.int32,
    torch.int8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    "float32",
    np.float32,
    float,
    None,
    3,
]


@pytest.mark.parametrize("dtype", WRONG, ids=str)
def test_a_dtype_that_models_are_not_computed_in_is_refused(dtype, monkeypatch):
    monkeypatch.setattr(load_module, "find_folder", lambda *_: pytest.fail("it began"))
    sentence = r"as dtype; need one of torch\.float32, torch\.float16, torch\.bfloat16, torch\.float64"
    with pytest.raises(InputError, match=sentence):
        check_dtype(dtype)
    with pytest.raises(InputError, match=sentence):
        inspect.unwrap(load_model)("bundled", dtype=dtype)


FC = "transformer.h.3.mlp.c_fc.weight"


@pytest.fixture
def rewritten(write_checkpoint):
    """A checkpoint with one weight changed, stored as some type."""

    def make(value: float, stored: torch.dtype = torch.float32):
        folder, _ = write_checkpoint("gpt_neo")
        file = folder / "model.safetensors"
        tensors = {name: tensor.to(stored) for name, tensor in load_file(file).items()}
        tensors[FC].view(-1)[17] = value
        save_file(tensors, file, metadata={"format": "pt"})
        return folder

    return make


def test_a_weight_that_float32_cannot_hold_is_refused(rewritten):
    folder = rewritten(1e300, torch.float64)
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(InputError, match=f"tensor '{FC}' holds 1.0e\\+300, which float32 cannot hold"):
            load_model(folder, dtype=dtype)


def test_a_weight_that_the_dtype_cannot_hold_is_refused(rewritten):
    folder = rewritten(1e5)
    assert float(load_model(folder).get_parameter("blocks.3.mlp.W_in").detach().max()) == 1e5
    with pytest.raises(
        InputError, match=r"'blocks.3.mlp.W_in' would hold 1.0e\+05, and the largest number of torch.fl"
    ):
        load_model(folder, dtype=torch.float16)
    folder = rewritten(3.4e38)
    with pytest.raises(InputError, match=r"would hold 3.4e\+38, and the largest number of torch.bfloat16 is 3.4e\+38"):
        load_model(folder, dtype=torch.bfloat16)


def test_weights_whose_folded_product_overflows_are_refused(rewritten):
    folder = rewritten(3e38)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.h.3.ln_2.weight"] *= 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    load_model(folder)
    with pytest.raises(InputError, match="load the model with processing='raw'"):
        load_model(folder, processing="folded")


@pytest.mark.parametrize(
    "command",
    [
        ["check", "bundled"],
        ["run", "--out", "{out}"],
        ["scan", "--out", "{out}", "--corpus", "{corpus}"],
        ["perturb", "--out", "{out}.nc"],
        ["gradients", "--out", "{out}"],
        ["heads", "--out", "{out}"],
        ["patch", "--out", "{out}"],
        ["localize", "--out", "{out}"],
        ["unlearn", "--out", "{out}"],
        ["edit", "--out", "{out}", "--name", "a"],
        ["memorize", "--out", "{out}"],
        ["evaluate", "a", "--out", "{out}"],
    ],
)
@pytest.mark.parametrize("device", ["meta", "cuda:99"])
def test_every_command_finds_a_wrong_device_before_it_writes(command, device, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("text")
    paths = {"out": tmp_path / "out", "corpus": corpus}
    given = [word.format(**paths) for word in command]
    answer = CliRunner().invoke(app, [*given, "--device", device])
    assert answer.exit_code == 2 and f"got '{device}' as device" in answer.output, answer.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt"]
