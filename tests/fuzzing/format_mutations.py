"""Damage that knows its format: heads that lie; sound files of tables and arrays with other shapes, types, values."""

import bz2
import gzip
import io
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.fuzzing.byte_mutations import BOUNDARIES, mutate_bytes
from tests.fuzzing.json_mutations import mutate_json

Mutation = Callable[[bytes, random.Random], bytes]
FLOATS = (float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 3.5e38, 1e-320, 0.0, -1.0)


def compressed(codec: str) -> Mutation:
    """Damage the text and compress it again, in one frame, in several, or with settings that few writers use."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        plain = (
            gzip.decompress(data) if codec == "gz" else zstandard.ZstdDecompressor().decompressobj().decompress(data)
        )
        if rng.random() < 0.7:
            plain = mutate_bytes(plain, rng)
        cut = rng.randrange(len(plain) + 1)
        parts = [plain[:cut], plain[cut:]] if rng.random() < 0.5 else [plain]
        if rng.random() < 0.2:
            parts.insert(rng.randrange(len(parts) + 1), b"\xef\xbb\xbf" if rng.random() < 0.5 else b"")
        if rng.random() < 0.05:
            return bz2.compress(plain)
        frames = [_frame(part, codec, rng) for part in parts]
        if rng.random() < 0.1:
            frames.append(bytes(rng.choice((1, 512))) if codec == "gz" else b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip")
        return b"".join(frames)

    return mutate


def _frame(plain: bytes, codec: str, rng: random.Random) -> bytes:
    if codec == "gz":
        return gzip.compress(plain, rng.randrange(10), mtime=0)
    if rng.random() < 0.1:
        # A frame whose head promises other bytes than follow.
        plain = plain + bytes(rng.choice((0, 10_000_000)))
    window = rng.choice((10, 17, 27, 28, 30))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=window, write_checksum=rng.random() < 0.5, write_content_size=rng.random() < 0.5
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(plain) + packer.flush()


def mutate_npy(data: bytes, rng: random.Random) -> bytes:
    """Another array in the file, or a head that lies about the one there."""
    array = np.load(io.BytesIO(data))
    if rng.random() < 0.5:
        return _npy(_other_array(array, rng))
    descr: Any = rng.choice(
        ("<i8", ">i8", "<f8", "|O", "<u2", "|S4", "<U3", "<c16", "|V8", "<M8[s]", [("a", "<i8")], 7)
    )
    shape: Any = rng.choice(((10**11, 100), (-1, 100), (0, 0), (), (2**63, 2), (3,), (5, 5, 5), "a", (1.5, 2), (7, 11)))
    head = {"descr": "<i8", "fortran_order": False, "shape": array.shape}
    head[rng.choice(("descr", "shape", "fortran_order"))] = rng.choice((descr, shape))
    if rng.random() < 0.5:
        head = {"descr": descr, "fortran_order": rng.choice((True, False, 1, None)), "shape": shape}
    text = (repr(head) if rng.random() < 0.8 else rng.choice(("{", "[" * 5000, "__import__('os')", "{}"))).encode()
    length = rng.choice((len(text), len(text), len(text), 0, 65535))
    body = data[-array.nbytes :]
    return b"\x93NUMPY" + bytes([rng.choice((1, 1, 1, 2, 3, 9)), 0]) + struct.pack("<H", length) + text + body


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    if isinstance(array, dict):
        np.savez(file, **array)
    else:
        np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _other_array(array: np.ndarray, rng: random.Random) -> Any:
    whole = array.astype(np.float64)
    return rng.choice(
        (
            array.astype(">i4"), array.astype(np.longdouble), array.astype(np.float16), array.astype(bool), array[:0],
            array[:, :0], array[:, :1], array[0], array[None], array.astype(object), array.astype("U"), array.T,
            np.asfortranarray(array), array - 10**6, array + 2**40, array.astype(np.uint64) + 2**63, whole * np.nan,
            array.astype("M8[s]"), np.zeros(3, [("a", "i4")]), {"a": array}, array.astype(np.int8), np.array(3),
        )
    )  # fmt: skip


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A head that lies, or other values in the tensors."""
    size = struct.unpack("<Q", data[:8])[0]
    head, body = data[8 : 8 + size], data[8 + size :]
    kind = rng.random()
    if kind < 0.35:
        head = mutate_json(head, rng)
    elif kind < 0.65:
        head = _other_tensor(json.loads(head), rng)
    elif kind < 0.9:
        body = _other_values(body, rng)
    else:
        size = rng.choice((*BOUNDARIES, size + 1, size - 1, 100_000_001))
        return struct.pack("<Q", size) + head + body
    return struct.pack("<Q", len(head)) + head + body


def _other_tensor(head: dict[str, Any], rng: random.Random) -> bytes:
    """A consistent lie: another dtype or shape of as many bytes, another name, two tensors in each other's place."""
    names = [name for name in head if name != "__metadata__"]
    entry = head[rng.choice(names)]
    change = rng.randrange(6)
    if change == 0:
        same = (
            ("F32", "I32", "U32"),
            ("F16", "BF16", "I16", "U16"),
            ("F64", "I64", "U64"),
            ("F8_E4M3", "U8", "I8", "BOOL"),
        )
        entry["dtype"] = rng.choice([kind for kinds in same for kind in kinds if entry["dtype"] in kinds] or ["F32"])
    elif change == 1:
        count = int(np.prod(entry["shape"]))
        entry["shape"] = rng.choice(([count], [1, count], [count, 1], entry["shape"][::-1], [1, *entry["shape"]]))
    elif change == 2:
        name = rng.choice(names)
        head[rng.choice((name + ".x", name.upper(), name[1:], "module." + name, "", "é"))] = head.pop(name)
    elif change == 3:
        a, b = rng.choice(names), rng.choice(names)
        head[a], head[b] = head[b], head[a]
    elif change == 4:
        del head[rng.choice(list(head))]
    else:
        entry["dtype"], entry["shape"] = entry["dtype"], [0, *entry["shape"]]
        entry["data_offsets"] = [entry["data_offsets"][0]] * 2
    return json.dumps(head).encode()


def _other_values(body: bytes, rng: random.Random) -> bytes:
    """A number in the tensors that is none, or an index that is out of range."""
    form, value = rng.choice(
        (("<f", rng.choice(FLOATS)), ("<d", rng.choice(FLOATS)), ("<q", rng.choice((-1, -5, 2**62, 7))))
    )
    packed = struct.pack(form, np.float32(value).item() if form == "<f" else value)
    start = rng.randrange(max(1, len(body) // len(packed))) * len(packed)
    times = rng.choice((1, 1, 10, 1000))
    return (body[:start] + packed * times + body[start + times * len(packed) :])[: len(body)]


def mutate_parquet(data: bytes, rng: random.Random) -> bytes:
    """A sound file of another table, or damage in the footer, where parquet says what is where."""
    if rng.random() < 0.4:
        size = struct.unpack("<I", data[-8:-4])[0]
        footer = data[-8 - size : -8]
        if rng.random() < 0.7:
            footer = mutate_bytes(footer, rng)
        return data[: -8 - size] + footer + struct.pack("<I", rng.choice((len(footer),) * 9 + (0,))) + data[-4:]
    table = pq.read_table(io.BytesIO(data))
    file = io.BytesIO()
    try:
        pq.write_table(_other_table(table, rng), file, row_group_size=rng.choice((None, 3)))
    except (pa.ArrowException, ValueError, OverflowError):
        return data
    return file.getvalue()


def _other_table(table: pa.Table, rng: random.Random) -> pa.Table:
    change, place = rng.randrange(9), rng.randrange(table.num_columns)
    field, column = table.schema.field(place), table.column(place)
    if change == 0:
        return table.remove_column(place)
    if change == 1:
        return table.append_column(field, column)
    if change == 2:
        return table.slice(rng.randrange(len(table)), rng.choice((0, 1, 5)))
    if change == 3:
        return table.rename_columns([rng.choice(("tokens", "text", "", "id", name)) for name in table.column_names])
    if change == 4:
        keys = [*(table.schema.metadata or {}), b"mechmem.prefix_len", b"mechmem.tokenizer", b"huggingface", b"pandas"]
        value = rng.choice((b"", b"-1", b"1e9", b"\xff", b"50.5", b"100", b"{}", b"null", b"9" * 5000))
        return table.replace_schema_metadata({**(table.schema.metadata or {}), rng.choice(keys): value})
    return table.set_column(place, field.name, _other_column(column, rng))


def _other_column(column: Any, rng: random.Random) -> Any:
    rows, values = len(column), column.to_pylist()
    some = rng.randrange(rows) if rows else 0
    values[some : some + 1] = [rng.choice((None, values[some] if values else None))]
    flat = rng.choice(
        (
            0,
            -1,
            2**40,
            1.5,
            float("nan"),
            "text",
            "\x00",
            b"\xff",
            True,
            None,
            [1],
            [[1]],
            {"a": 1},
            {"a": {"b": []}},
            [],
        )
    )
    kind = rng.randrange(6)
    if kind == 0:
        return pa.array(values, column.type)
    if kind == 1:
        return pa.array([flat] * rows)
    if kind == 2:
        return pa.array([{"a": value} for value in values])
    if kind == 3:
        return pa.array([[value] for value in values])
    if kind == 4 and values and isinstance(values[0], list):
        return pa.array([value[: rng.randrange(3, 30)] if value and rng.random() < 0.3 else value for value in values])
    return (
        pa.array(values).dictionary_encode() if not isinstance(values[0], list) else pa.array([str(v) for v in values])
    )
