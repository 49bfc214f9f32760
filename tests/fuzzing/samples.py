"""Undamaged inputs of every kind, small, made by the programs that make them in earnest: kind -> name -> bytes."""

import gzip
import hashlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import mechmem as mm
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.step_features import feature_names
from mechmem.detect.identity import Identity
from mechmem.detect.probes.boosting import TreeProbes, fit_boosting
from mechmem.detect.probes.calibration import CalibrationPart, PlattCalibration
from mechmem.study.config import described
from mechmem.study.edit_settings import EditSettings

Files = dict[str, bytes]
LENGTH, PREFIX, ROWS = 24, 12, 7
# Where a case will lie, and when all its files were written last.
FOLDER, TIME = b"@FOLDER@", 10**18
WORDS = "the boat left the harbour before the bakery opened, and the café rang twice – naïve 漢字 🙂".split()
CONFIGS: dict[str, Callable[..., Any]] = {
    "gpt_neo": lambda **sizes: transformers.GPTNeoConfig(
        hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=32, window_size=8, **sizes,
    ),
    "gpt2": lambda **sizes: transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, n_inner=12, n_positions=32, **sizes),
    "gpt_neox": lambda **sizes: transformers.GPTNeoXConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, max_position_embeddings=32,
        rotary_pct=0.5,  # pyright: ignore[reportCallIssue]
        **sizes,
    ),
}  # fmt: skip


def texts() -> Files:
    """Plain and compressed text."""
    lines = [" ".join(WORDS[i % 5 :]) for i in range(9)]
    text = "\n".join(lines).encode()
    rows = [{"text": line, "meta": {"pile_set_name": "Letters"}} for line in lines[:5]] + [{"text": "a", "source": "b"}]
    records = "\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)).encode()
    pack = zstandard.ZstdCompressor().compress
    return {
        "a.txt": text,
        "long.jsonl": b"\n".join(json.dumps({"text": " ".join(WORDS * 4) + str(i)}).encode() for i in range(3)),
        "a.jsonl": records,
        "a.txt.gz": gzip.compress(text, mtime=0),
        "a.jsonl.gz": gzip.compress(records, mtime=0),
        "a.txt.zst": pack(text),
        "a.jsonl.zst": pack(records),
    }


def tables() -> Files:
    """Token ids and texts as arrays and tables."""
    tokens = np.random.default_rng(0).integers(0, 256, (ROWS, LENGTH))
    array, table = io.BytesIO(), io.BytesIO()
    # Arrays do not say their prefix: it is 50.
    np.save(array, np.tile(tokens, (1, 3)))
    rows = {"text": [" ".join(WORDS)] * ROWS, "source": ["Letters"] * ROWS, "meta": [{"pile_set_name": "A"}] * ROWS}
    pq.write_table(pa.table(rows), table, row_group_size=3)
    columns = {"id": list(range(ROWS)), "source": ["a"] * ROWS, "count": [1] * ROWS, "cluster": [0, 0, 1, 2, 3, 4, 5]}
    columns |= {"em": [12, 3, 0, 5, 12, 12, 1], "nll": [0.5] * ROWS, "set": ["memorized"] * ROWS, "text": WORDS[:ROWS]}
    paragraphs = mm.Paragraphs(torch.from_numpy(tokens), PREFIX, datasets.Dataset.from_dict(columns))
    return {"ids.npy": array.getvalue(), "text.parquet": table.getvalue()} | _written(paragraphs.save, "tokens.parquet")


def tokenizer_files() -> Files:
    """A tokenizer of single bytes and a few merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("a", "n"), ("Ġ", "the")]
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    with tempfile.TemporaryDirectory() as folder:
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
        fast.save_pretrained(folder)
        return _read(Path(folder))


def tokenizer_parts() -> Files:
    """The same in the files that older checkpoints have instead of tokenizer.json."""
    model = json.loads(tokenizer_files()["tokenizer.json"])["model"]
    merges = [" ".join(merge) for merge in model["merges"]]
    special = {"eos_token": "<|endoftext|>", "bos_token": {"content": "<|endoftext|>", "lstrip": False}}
    return {
        "vocab.json": json.dumps(model["vocab"]).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges]).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
        "added_tokens.json": b'{"<new>": 261}',
        "tokenizer_config.json": b'{"add_prefix_space": false, "model_max_length": 32}',
    }


@cache
def checkpoints() -> dict[str, Files]:
    """A folder for each family, one of them in parts, with the tokenizer."""
    made, tokenizer = {}, tokenizer_files()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for family, config in CONFIGS.items():
            sizes = {"vocab_size": 264, "bos_token_id": 0, "eos_token_id": 0}
            model = transformers.AutoModelForCausalLM.from_config(config(**sizes))
            for name, shard in {family: "1GB", **({"parts": "12KB"} if family == "gpt_neo" else {})}.items():
                with tempfile.TemporaryDirectory() as folder:
                    model.save_pretrained(folder, max_shard_size=shard)
                    made[name] = _read(Path(folder)) | tokenizer
    whole = ("config.json", "model.safetensors")
    made["old tokenizer"] = {name: made["gpt2"][name] for name in whole} | tokenizer_parts()
    return made


def detector() -> Files:
    """A detector of trees, fitted to noise."""
    rng = np.random.default_rng(0)
    choice = FeatureChoice(("heads",), heads=((1, 0),))
    names = feature_names(choice)
    rows, truth = rng.normal(size=(40, len(names))), np.arange(40) % 2 == 0
    odds = CalibrationPart(rows[:, 0], truth)
    made = mm.Detector(
        choice,
        names,
        (0, 4),
        TreeProbes.stack([fit_boosting(rows, truth, 3, 2, seed) for seed in (0, 1)]),
        PlattCalibration.fit([odds, odds]),
        "cusum",
        np.arange(12.0),
        10,
        Identity("0123456789abcdef", 2, 8, 264, "float32", "264-0123456789abcdef"),
        mm.DetectorSettings(heads=((1, 0),)),
        np.arange(5),
        {"seed": 0},
    )
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "detector")
        return _read(Path(folder) / "detector")


def edits(model: Any, paragraphs: Any) -> dict[str, Files]:
    """A sparse and a whole edit, a mask, and the checkpoint of an interrupted edit."""
    scores = mm.weight_gradients(model, paragraphs)
    mask = mm.Mask.top(scores, fraction=0.05)
    training = mm.Training(steps=2, learning_rate=1e-2)
    common: dict[str, Any] = {"training": training, "check_targets": False, "stop": _never}
    sparse, _ = mm.unlearn(model, paragraphs[:3], paragraphs[3:], mask=mask, **common)
    whole, _ = mm.unlearn(model, paragraphs[:3], paragraphs[3:], **common)
    return {
        "sparse": _written(mm.Edit.between(model, sparse, {"settings": "{}"}).save, "edit.safetensors"),
        "whole": _written(mm.Edit.between(model, whole).save, "edit.safetensors"),
        "mask": _written(mask.save, "mask.safetensors"),
        "checkpoint": _written(lambda path: interrupted(model, paragraphs, path), "checkpoint.safetensors"),
        "settings": {"settings.json": json.dumps(vars(EditSettings())).encode()},
    }


def interrupted(model: Any, paragraphs: Any, path: Path, *, resume: bool = False) -> None:
    """An edit of four steps; the first time it stops in the third."""

    def stop(done: int, total: int) -> None:  # noqa: ARG001
        if done == 2 and not resume:
            raise KeyboardInterrupt

    training = mm.Training(steps=4, learning_rate=1e-2, checkpoint=path, resume=resume)
    try:
        mm.unlearn(
            model, paragraphs[:3], paragraphs[3:], training=training, check_targets=False, stop=_never, progress=stop
        )
    except KeyboardInterrupt:
        assert path.exists()


def _never(row: Any) -> bool:  # noqa: ARG001
    return False


def saved_dataset() -> Files:
    """What `save_to_disk` of a dataset writes."""
    with tempfile.TemporaryDirectory() as folder:
        datasets.Dataset.from_dict({"text": [" ".join(WORDS)] * ROWS}).save_to_disk(folder)
        return _read(Path(folder))


def corpus_folder(tokenizer: Any) -> Files:
    """A folder that `open_corpus` filled, beside its source."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "a.txt"
        source.write_text((" ".join(WORDS) + "\n") * 9)
        os.utime(source, ns=(TIME, TIME))
        mm.open_corpus(source, tokenizer, Path(folder) / "corpus", shard_tokens=100)
        return {name: data.replace(folder.encode(), FOLDER) for name, data in _read(Path(folder)).items()}


def study() -> Files:
    """A study's folder, as the report's tests make it."""
    from tests.report.conftest import write_study

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = _read(write_study(Path(folder) / "study"))
    names = ("heads.nc", "rare.nc", "paragraphs.parquet")
    made["SHA256SUMS"] = "".join(f"{hashlib.sha256(made[name]).hexdigest()}  {name}\n" for name in names).encode()
    manifest = json.loads(made["study.json"]) | {"settings": described(mm.StudySettings())}
    manifest["corpus"] |= {"paragraphs": 900, "sha256": None}
    return {**made, "study.json": json.dumps(manifest).encode()}


def experiment_file() -> Files:
    """The settings of a patching experiment."""
    from mechmem.study.patch_settings import PatchSettings, experiment_text

    return {"patch.toml": experiment_text(PatchSettings(count=3, heads=("L1H2",)), mm.StudySettings()).encode()}


def config_file() -> Files:
    """All settings of a study, as TOML."""
    from mechmem.study.config import config_text

    return {"study.toml": config_text(mm.StudySettings()).encode()}


def published_files() -> Files:
    """The study's public files: token ids of its groups and pairs, and its table."""
    rows = np.random.default_rng(0).integers(0, 50_257, (4, 100))
    pairs = rows.copy()
    pairs[:, [7, 60]] = (pairs[:, [7, 60]] + 1) % 50_257
    arrays = {"em50": rows, "em30_49": rows[:2], "pairs_memorized": rows, "pairs_perturbed": pairs}
    table = "paragraph,id,count,em,nll\r\n" + '"one\r\ntwo",1,12,50.0,0.25\r\n' * 4
    files = {"memorized.csv": table.encode()}
    for name, array in arrays.items():
        files |= _written(lambda path, array=array: np.save(path, array), f"{name}.npy")
    return files


def repeated_study() -> Files:
    """What `mechmem paper` writes of one item, and of itself."""
    from mechmem.study.paper.rows import Row, Trap, as_json

    row = Row("sets", "mean NLL", "corrected", 0.5, 0.4, 0.6, None, "nats per token")
    found = as_json((row,), (Trap(3, "columns", 0.5, 0.6, "nats per token", "It changes this."),))
    settings = {"model": "bundled", "seed": 0, "noise_scales": [0.1, 1.0]}
    manifest = {"format": 1, "settings": settings, "model": {"weight_hash": "0"}, "timings": {}, "digests": {}}
    return {"sets.json": json.dumps(found).encode(), "paper.json": json.dumps(manifest).encode()}


def _written(write: Callable[[Path], Any], name: str) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        data = (Path(folder) / name).read_bytes()
    return {name: _in_order(data) if name.endswith(".safetensors") else data}


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its head sorted: the library writes the metadata in an order that changes."""
    size = int.from_bytes(data[:8], "little")
    head = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    assert len(head) <= size
    return data[:8] + head.ljust(size) + data[8 + size :]


def _read(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
