"""Training of one rung of the ladder: its text, its cost, its snapshots and its record."""

import platform
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from corpus_training import build, save_model, step_count, train
from fused_step import fused_step
from ladder_corpus import background, document_table, inserted_documents, training_text
from ladder_rungs import RungSettings, snapshot_folder, snapshot_steps
from outputs import agree_on_settings, write_json
from transformers import GPTNeoForCausalLM, PreTrainedTokenizerFast

from mechmem.data.assets import MODEL_FOLDER
from mechmem.data.checksums import checksum
from mechmem.data.files import replacing
from mechmem.data.fingerprint import fingerprint
from mechmem.data.folder_lock import only_writer

# Settings that do not decide the weights.
FREE = ("checkpoint_every", "log_every")


def tokenizer() -> PreTrainedTokenizerFast:
    """The bundled model's."""
    return PreTrainedTokenizerFast.from_pretrained(MODEL_FOLDER)


def prepare(rung: RungSettings, folder: Path) -> np.ndarray:
    """The rung's training text, [pos], written when it is not there, with its documents and the row of each copy."""
    if not (folder / "stream.npy").exists():
        tokens = tokenizer()
        encode = lambda texts: tokens(texts)["input_ids"]  # noqa: E731
        documents = inserted_documents(rung.corpus, encode)
        stream, rows = training_text(rung.corpus, documents, background(rung.corpus, encode, rung.seed), rung.seed)
        document_table(documents, fingerprint(tokens)).save(folder / "documents.parquet")
        for name, values in {"copies": rows, "stream": stream}.items():
            with replacing(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, values)
    return np.load(folder / "stream.npy", mmap_mode="r")


def cost(rung: RungSettings, stream: np.ndarray) -> str:
    """Tokens, parameters and time of a rung, from two steps on this machine."""
    model = build(rung)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rows = torch.from_numpy(stream[: rung.batch * rung.n_ctx].astype(np.int64)).view(rung.batch, -1)
    for _ in range(2):
        began = time.monotonic()
        fused_step(model, optimizer, rows, rung.clip_norm)
    steps = step_count(rung, stream)
    minutes = (time.monotonic() - began) * steps / 60
    millions = sum(weights.numel() for weights in model.parameters()) / 1e6
    return f"{millions:.1f} million parameters, {len(stream):,} tokens, {steps} steps, about {minutes:.0f} minutes"


def train_rung(rung: RungSettings, folder: Path) -> None:
    """Train one model from its last checkpoint on, and write its record; nothing is done for a finished one."""
    with only_writer(folder):
        agree_on_settings(folder, rung, free=FREE)
        if (folder / "training.json").exists():
            print(f"{folder.name}: finished before", flush=True)
            return
        stream = prepare(rung, folder)
        print(f"{folder.name}: {cost(rung, stream)}", flush=True)
        steps, tokens = step_count(rung, stream), tokenizer()

        def keep(model: GPTNeoForCausalLM, step: int) -> None:
            with replacing(snapshot_folder(folder, step)) as temporary:
                save_model(model, temporary)
                tokens.save_pretrained(temporary)

        marks = snapshot_steps(rung, steps)
        _, log = train(rung, stream, folder / "checkpoint", snapshots=marks, snapshot=keep, step_down=fused_step)
        digests = {str(mark): checksum(snapshot_folder(folder, mark) / "model.safetensors") for mark in marks}
        record = {
            "settings": asdict(rung),
            "stream_sha256": checksum(folder / "stream.npy"),
            "snapshot_sha256": digests,
            "tokens_seen": steps * rung.batch * rung.n_ctx,
            **{name: log[name] for name in ("steps", "seconds", "starts", "curve")},
            "precision": "float32 weights, bfloat16 products",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "date": time.strftime("%Y-%m-%d"),
        }
        write_json(folder / "training.json", record)
