"""safetensors files and indexes that a stranger wrote: a lie is one sentence, nothing outside the folder is read."""

import json
import math
import os
import struct
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.model.hostile import FEW, JSON, loads_or_says_why, refused

pytestmark = pytest.mark.filterwarnings("ignore:.* has no tokenizer:UserWarning")


def header(entries: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, shape: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


LIES = {
    "empty": b"",
    "seven bytes": b"1234567",
    "header of 2^63 bytes": header(b"{}", length=2**63),
    "header of 2^64 - 1 bytes": header(b"{}", length=2**64 - 1),
    "header beyond the file": header(b"{}", length=100),
    "header of 50 MB": header(b" " * 50 * 2**20),
    "no JSON": header(b"{oops"),
    "a list": header(b"[]"),
    "deep": header(b'{"a":' * 100_000),
    "offsets beyond the file": header({"a": entry(0, 400, [100])}, b"\0" * 40),
    "offsets of 2^60": header({"a": entry(2**60, 2**60 + 4, [1])}, b"\0" * 4),
    "overlapping": header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"\0" * 12),
    "with a gap": header({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"\0" * 12),
    "backwards": header({"a": entry(4, 0, [1])}, b"\0" * 4),
    "negative": header({"a": entry(-4, 0, [1])}, b"\0" * 4),
    "shape that overflows": header({"a": entry(0, 4, [2**40, 2**40])}, b"\0" * 4),
    "negative shape": header({"a": entry(0, 4, [-1])}, b"\0" * 4),
    "shape of text": header({"a": entry(0, 4, ["1"])}, b"\0" * 4),
    "unknown type": header({"a": entry(0, 4, [1], "F31")}, b"\0" * 4),
    "type of a list": header({"a": entry(0, 4, [1], ["F32"])}, b"\0" * 4),
    "no entry": header({"a": 3}),
    "huge shape without numbers": header({"a": entry(0, 0, [2**62, 0])}),
}


@pytest.mark.parametrize("case", LIES)
def test_headers_that_lie_are_refused(case, changed):
    folder = changed("gpt_neo")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(LIES[case])
    refused(folder)


INDEXES: dict[str, Any] = {
    "no object": [],
    "no map": {},
    "map of a list": {"weight_map": []},
    "empty map": {"weight_map": {}},
    "number": {"weight_map": {"a": 3}},
    "number among names": {"weight_map": {"a": "part.safetensors", "b": 3}},
    "null": {"weight_map": {"a": None}},
    "list": {"weight_map": {"a": ["part.safetensors"]}},
    "object": {"weight_map": {"a": {}}},
    "empty name": {"weight_map": {"a": ""}},
    "the folder": {"weight_map": {"a": "."}},
    "the folder above": {"weight_map": {"a": ".."}},
    "above": {"weight_map": {"a": "../outside.safetensors"}},
    "absolute": {"weight_map": {"a": "/etc/passwd"}},
    "absolute tensors": {"weight_map": {"a": "OUTSIDE"}},
    "NUL": {"weight_map": {"a": "part\0.safetensors"}},
    "long": {"weight_map": {"a": "x" * 5000 + ".safetensors"}},
    "no safetensors": {"weight_map": {"a": "config.json"}},
    "tensor that is elsewhere": {"weight_map": {"a": "part.safetensors"}},
}


@pytest.mark.parametrize("case", INDEXES)
def test_odd_indexes_are_refused(case, changed, tmp_path):
    folder = changed("gpt_neo")
    outside = tmp_path / "outside.safetensors"
    os.link(folder / "model.safetensors", outside)
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = json.dumps(INDEXES[case]).replace("OUTSIDE", str(outside))
    (folder / "model.safetensors.index.json").write_text(index)
    refused(folder, "index")


def test_a_sparse_file_of_a_huge_model_is_refused_before_anything_of_its_size_is_allocated(changed):
    """Its header and configuration agree, and the file has the size that they say, without any block on the disk."""
    ids = 2 * 10**9
    folder = changed("gpt_neo", vocab_size=ids)
    file = folder / "model.safetensors"
    described, place = {}, 0
    for name, tensor in load_file(file).items():
        shape = [ids, 21] if name == "transformer.wte.weight" else list(tensor.shape)
        size = 4 * math.prod(shape)
        described[name] = entry(place, place + size, shape)
        place += size
    text = header(described)
    file.unlink()
    with file.open("wb") as opened:
        opened.write(text)
        opened.truncate(len(text) + place)
    assert file.stat().st_size > 10**11 and file.stat().st_blocks < 100
    start = time.perf_counter()
    refused(folder, r"weights, which take .* GB is free on cpu|do not fit in this machine's memory")
    assert time.perf_counter() - start < 2


def test_a_tensor_in_two_parts_is_refused(changed):
    folder = changed("gpt_neo")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    name = next(iter(tensors))
    save_file({name: tensors[name] * 2}, folder / "two.safetensors")
    listed = dict.fromkeys(tensors, "one.safetensors") | {"extra": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    refused(folder, rf"tensor '{name}' is in one\.safetensors and in two\.safetensors; need it once")


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        ("module.", "torch's DataParallel or DistributedDataParallel put this before"),
        ("_orig_mod.", r"torch\.compile put this"),
        ("module._orig_mod.", "names begin with 'module._orig_mod.'"),
        ("model.", "a training class that holds the model as `model` put this"),
        ("other.", r"found 57 others, the first is 'other\."),
    ],
)
def test_names_that_a_wrapper_changed_are_said(prefix, sentence, changed):
    folder = changed("gpt_neo")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    sentence = sentence.replace("57", str(len(tensors)))
    refused(folder, rf"tensors are missing, the first is 'transformer\.wte\.weight'; need all 57 .*: .*{sentence}")


@FEW
@given(data=st.data())
def test_mutated_headers_load_or_say_why(data, changed):
    folder = changed("gpt_neo")
    whole = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    mutated = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, length + 8))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(mutated))))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(mutated if cut is None else mutated[:cut])
    loads_or_says_why(folder)
    (folder / "model.safetensors").unlink()


@FEW
@given(data=st.data())
def test_mutated_indexes_load_or_say_why(data, changed):
    folder = changed("gpt_neo")
    if (folder / "model.safetensors").exists():
        (folder / "model.safetensors").replace(folder / "part.safetensors")
    names = list(load_file(folder / "part.safetensors"))
    index: dict[str, Any] = {"weight_map": dict.fromkeys(names, "part.safetensors")}
    index["weight_map"] |= data.draw(st.dictionaries(st.sampled_from(names) | st.text(max_size=5), JSON, max_size=2))
    if data.draw(st.booleans()):
        index = data.draw(JSON)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loads_or_says_why(folder)
