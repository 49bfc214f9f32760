"""Train the bundled model: a small GPT-Neo that really memorized a corpus whose repetitions are known.

    python experiments/train_bundled.py            # resumes from its last checkpoint; safe to kill at any time

Three steps, each skipped where its files exist: (1) write the corpus, its tokenizer, the paragraphs that ship and the
token stream; (2) train on the stream, once; (3) write mechmem/assets. Nothing of the model enters step 1.
"""

import ctypes
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

from mechmem.data import assets
from mechmem.data.counts import unigram_counts
from mechmem.data.files import replacing
from mechmem.synthetic.generator import generate
from mechmem.synthetic.paragraph_sample import choose_paragraphs

# Settings -------------------------------------------------------------------------------------------------------------
SETTINGS = {
    "seed": 0,
    "characters": 90_000_000,  # about 24 million tokens
    "d_vocab": 4096,
    "tokenizer_documents": 30_000,
    "n_layers": 6,
    "d_model": 256,
    "n_heads": 8,
    "n_ctx": 256,
    "window_size": 64,  # so that the local layers of a model this small really are local
    "batch": 16,
    "learning_rate": 1.5e-3,
    "final_learning_rate": 5e-5,
    "warmup_steps": 200,
    "weight_decay": 0.01,
    "betas": [0.9, 0.95],
    "clip_norm": 1.0,
}
CHECKPOINT_EVERY, LOG_EVERY = 200, 25
END_OF_TEXT = "<|endoftext|>"
WORK = Path(os.environ.get("MECHMEM_TRAINING_FOLDER", "runs/bundled"))


def keep_allocator() -> None:
    """Keep freed memory in the process: page faults cost more than the arithmetic at this size (glibc only)."""
    if platform.system() == "Linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def prepare() -> None:
    """Step 1: corpus -> tokenizer.json, paragraphs.parquet, stream.npy, heldout.npy, unigram_counts.npy."""
    corpus = generate(SETTINGS["seed"], SETTINGS["characters"])
    order = list(corpus.stream(SETTINGS["seed"]))
    tokenizer = ByteLevelBPETokenizer()
    sample = (corpus.trained[index].text for index in order[: SETTINGS["tokenizer_documents"]])
    tokenizer.train_from_iterator(sample, SETTINGS["d_vocab"], special_tokens=[END_OF_TEXT], show_progress=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )
    texts = [d.text for part in (corpus.trained, corpus.unseen, corpus.unseen_variants) for d in part]
    encoded = {text: encoding.ids for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True)}
    paragraphs = choose_paragraphs(corpus, encoded, SETTINGS["seed"])
    paragraphs = paragraphs.with_columns(text=[tokenizer.decode(row.tolist()) for row in paragraphs.tokens])
    # The end-of-text token (id 0) closes every document.
    stream = np.concatenate([np.asarray([*encoded[corpus.trained[index].text], 0], np.uint16) for index in order])
    heldout = np.concatenate([np.asarray([*encoded[document.text], 0], np.uint16) for document in corpus.unseen])
    with replacing(WORK / "corpus") as folder:
        folder.mkdir()
        fast.save_pretrained(folder / "tokenizer")
        paragraphs.save(folder / "paragraphs.parquet")
        np.save(folder / "stream.npy", stream)
        np.save(folder / "heldout.npy", heldout)
        np.save(folder / "unigram_counts.npy", unigram_counts(stream, SETTINGS["d_vocab"]))
    print(f"{len(stream):,} tokens of training text, {len(paragraphs):,} paragraphs", flush=True)


def build() -> GPTNeoForCausalLM:
    """A GPT-Neo with random weights; the fused tanh gelu computes the same function as gelu_new."""
    torch.manual_seed(SETTINGS["seed"])
    config = GPTNeoConfig(
        vocab_size=SETTINGS["d_vocab"],
        max_position_embeddings=SETTINGS["n_ctx"],
        hidden_size=SETTINGS["d_model"],
        num_layers=SETTINGS["n_layers"],
        num_heads=SETTINGS["n_heads"],
        attention_types=[[["global", "local"], SETTINGS["n_layers"] // 2]],
        window_size=SETTINGS["window_size"],
        activation_function="gelu_pytorch_tanh",
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return GPTNeoForCausalLM(config)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to the final rate."""
    warmup, peak, final = (SETTINGS[k] for k in ("warmup_steps", "learning_rate", "final_learning_rate"))
    if step < warmup:
        return peak * (step + 1) / warmup
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save_checkpoint(model: GPTNeoForCausalLM, optimizer: torch.optim.Optimizer, log: dict) -> None:
    """Weights, both Adam moments and the log, in one folder that is replaced whole."""
    tensors = {f"weight.{name}": value.detach() for name, value in model.named_parameters()}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors |= {f"{moment}.{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq")}
    with replacing(WORK / "checkpoint") as folder:
        folder.mkdir()
        save_file(tensors, folder / "state.safetensors")
        (folder / "log.json").write_text(json.dumps(log))


def load_checkpoint(model: GPTNeoForCausalLM, optimizer: torch.optim.Optimizer) -> dict:
    """Continue where the last checkpoint stands, or start."""
    if not (WORK / "checkpoint").exists():
        return {"step": 0, "seconds": 0.0, "curve": [], "starts": 1}
    tensors = load_file(WORK / "checkpoint/state.safetensors")
    log = json.loads((WORK / "checkpoint/log.json").read_text())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(log["step"])),
                "exp_avg": tensors[f"exp_avg.{name}"],
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
            }
    return log | {"starts": log["starts"] + 1}


def train() -> tuple[GPTNeoForCausalLM, dict]:
    """Step 2: one pass over the stream in bfloat16 autocast."""
    stream = np.load(WORK / "corpus/stream.npy", mmap_mode="r")
    model = build()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": SETTINGS["weight_decay"]}, {"params": rest, "weight_decay": 0.0}],
        betas=tuple(SETTINGS["betas"]),
        fused=True,
    )
    log = load_checkpoint(model, optimizer)
    size = SETTINGS["batch"] * SETTINGS["n_ctx"]
    steps = len(stream) // size
    started, losses = time.monotonic() - log["seconds"], []
    for step in range(log["step"], steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        rows = torch.from_numpy(stream[step * size : (step + 1) * size].astype(np.int64)).view(SETTINGS["batch"], -1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(rows).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            log["curve"].append([step + 1, round(sum(losses) / len(losses), 4)])
            losses = []
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            log |= {"step": step + 1, "seconds": round(time.monotonic() - started, 1), "steps": steps}
            save_checkpoint(model, optimizer, log)
            left = log["seconds"] / (step + 1) * (steps - step - 1)
            print(f"step {step + 1}/{steps} loss {log['curve'][-1][1]:.3f}, {left / 60:.0f} min left", flush=True)
    return model, log


def ship(model: GPTNeoForCausalLM, log: dict) -> None:
    """Step 3: the checkpoint in float16, tokenizer, paragraphs, counts and the training record into mechmem/assets."""
    # What training did without, decoding wants.
    model.config.activation_function, model.config.use_cache = "gelu_new", True
    assert model.generation_config is not None
    model.generation_config.use_cache = True
    with replacing(assets.MODEL_FOLDER) as folder:
        model.half().save_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(WORK / "corpus/tokenizer").save_pretrained(folder)
    assets.PARAGRAPHS_FILE.write_bytes((WORK / "corpus/paragraphs.parquet").read_bytes())
    assets.COUNTS_FILE.write_bytes((WORK / "corpus/unigram_counts.npy").read_bytes())
    size = SETTINGS["batch"] * SETTINGS["n_ctx"]
    record = {
        "settings": SETTINGS,
        "corpus_sha256": generate(SETTINGS["seed"], SETTINGS["characters"]).digest(),
        "tokens_seen": log["steps"] * size,
        "steps": log["steps"],
        "wall_seconds": log["seconds"],
        "starts": log["starts"],
        "loss_curve": log["curve"],
        "precision": "float32 weights, bfloat16 autocast",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
    }
    with replacing(assets.TRAINING_FILE) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Run the three steps."""
    keep_allocator()
    if not (WORK / "corpus").exists():
        prepare()
    if "--prepare-only" in sys.argv:
        return
    ship(*train())


if __name__ == "__main__":
    main()
