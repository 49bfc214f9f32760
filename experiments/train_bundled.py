"""Train the bundled model: a small GPT-Neo that really memorized a corpus whose repetitions are known.

    python experiments/train_bundled.py            # resumes from its last checkpoint; safe to kill at any time

Three steps: (1) write the corpus, its tokenizer, the paragraphs that ship and the token stream, unless they are there;
(2) train on the stream, once, from the last checkpoint on; (3) write the assets. Nothing of the model enters step 1.
"""

import ctypes
import json
import math
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers
import tyro
from outputs import agree_on_settings, write_json
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

from mechmem.data.assets import ASSETS
from mechmem.data.bounds import Amount, Count, Level, Rate, Seed, Size, check_fields
from mechmem.data.counts import unigram_counts
from mechmem.data.files import replacing
from mechmem.synthetic.generator import SyntheticCorpus, generate
from mechmem.synthetic.paragraph_sample import choose_paragraphs

END_OF_TEXT = "<|endoftext|>"
# Settings that decide neither the corpus nor the weights at a step.
FREE = ("assets", "checkpoint_every", "keep_memory", "only", "work")


@dataclass(frozen=True)
class Settings:
    """What decides the model.

    Attributes:
        seed: of the corpus, of the order of its documents and of the first weights.
        characters: length of the training text; 90 million are about 24 million tokens.
        unseen: documents of templates that are not trained on.
        unseen_variants: documents that are not trained on, of trained templates.
        d_vocab: tokens of the byte-level BPE.
        tokenizer_documents: that the tokenizer is trained on.
        n_layers: global and local attention in turn.
        d_model: width.
        n_heads: heads of a layer.
        n_ctx: tokens of a row, and the longest context.
        window_size: of local attention; small, so that the local layers of a model this small really are local.
        batch: rows of n_ctx tokens in a step.
        steps: at most this many; None: once over the whole text.
        learning_rate: reached after a linear warm-up.
        final_learning_rate: reached at the end of a cosine.
        warmup_steps: of the learning rate.
        weight_decay: of AdamW, on matrices.
        betas: of AdamW.
        clip_norm: Euclidean norm that gradients are clipped to.
        checkpoint_every: steps between checkpoints.
        log_every: steps that a point of the loss curve is the mean of.
        keep_memory: let the process keep freed memory, which is faster at this size (glibc only).
        only: "corpus" stops after step 1.
        work: folder of corpus and checkpoints.
        assets: folder that the model, the paragraphs, the counts and the record are written to.
    """

    seed: Seed = 0
    characters: Count = 90_000_000
    unseen: Size = 800
    unseen_variants: Size = 250
    d_vocab: Count = 4096
    tokenizer_documents: Count = 30_000
    n_layers: Count = 6
    d_model: Count = 256
    n_heads: Count = 8
    n_ctx: Count = 256
    window_size: Count = 64
    batch: Count = 16
    steps: Count | None = None
    learning_rate: Rate = 1.5e-3
    final_learning_rate: Rate = 5e-5
    warmup_steps: Size = 200
    weight_decay: Amount = 0.01
    betas: tuple[Level, Level] = (0.9, 0.95)
    clip_norm: Rate = 1.0
    checkpoint_every: Count = 200
    log_every: Count = 25
    keep_memory: bool = True
    only: Literal["corpus"] | None = None
    work: Path = Path("runs/bundled")
    assets: Path = ASSETS

    def __post_init__(self) -> None:
        check_fields(self)


def synthetic(settings: Settings) -> SyntheticCorpus:
    """The corpus of these settings."""
    return generate(
        settings.seed, settings.characters, unseen=settings.unseen, unseen_variants=settings.unseen_variants
    )


def keep_allocator() -> None:
    """Keep freed memory in the process: page faults cost more than the arithmetic at this size (glibc only)."""
    if platform.system() == "Linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def prepare(settings: Settings) -> None:
    """Step 1: corpus -> tokenizer.json, paragraphs.parquet, stream.npy, heldout.npy, unigram_counts.npy."""
    corpus = synthetic(settings)
    order = list(corpus.stream(settings.seed))
    tokenizer = ByteLevelBPETokenizer()
    sample = (corpus.trained[index].text for index in order[: settings.tokenizer_documents])
    tokenizer.train_from_iterator(sample, settings.d_vocab, special_tokens=[END_OF_TEXT], show_progress=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )
    texts = [d.text for part in (corpus.trained, corpus.unseen, corpus.unseen_variants) for d in part]
    encoded = {text: encoding.ids for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True)}
    paragraphs = choose_paragraphs(corpus, encoded, settings.seed)
    paragraphs = paragraphs.with_columns(text=[tokenizer.decode(row.tolist()) for row in paragraphs.tokens])
    # The end-of-text token (id 0) closes every document.
    stream = np.concatenate([np.asarray([*encoded[corpus.trained[index].text], 0], np.uint16) for index in order])
    heldout = np.concatenate([np.asarray([*encoded[document.text], 0], np.uint16) for document in corpus.unseen])
    with replacing(settings.work / "corpus") as folder:
        folder.mkdir()
        fast.save_pretrained(folder / "tokenizer")
        paragraphs.save(folder / "paragraphs.parquet")
        np.save(folder / "stream.npy", stream)
        np.save(folder / "heldout.npy", heldout)
        np.save(folder / "unigram_counts.npy", unigram_counts(stream, settings.d_vocab))
    print(f"{len(stream):,} tokens of training text, {len(paragraphs):,} paragraphs", flush=True)


def build(settings: Settings) -> GPTNeoForCausalLM:
    """A GPT-Neo with random weights; the fused tanh gelu computes the same function as gelu_new."""
    torch.manual_seed(settings.seed)
    config = GPTNeoConfig(
        vocab_size=settings.d_vocab,
        max_position_embeddings=settings.n_ctx,
        hidden_size=settings.d_model,
        num_layers=settings.n_layers,
        num_heads=settings.n_heads,
        attention_types=[[["global", "local"], settings.n_layers // 2]],
        window_size=settings.window_size,
        activation_function="gelu_pytorch_tanh",
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return GPTNeoForCausalLM(config)


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to the final rate."""
    warmup, peak, final = settings.warmup_steps, settings.learning_rate, settings.final_learning_rate
    if step < warmup:
        return peak * (step + 1) / warmup
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save_checkpoint(folder: Path, model: GPTNeoForCausalLM, optimizer: torch.optim.Optimizer, log: dict) -> None:
    """Weights, both Adam moments and the log, in one folder that is replaced whole."""
    tensors = {f"weight.{name}": value.detach() for name, value in model.named_parameters()}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors |= {f"{moment}.{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq")}
    with replacing(folder) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / "state.safetensors")
        (temporary / "log.json").write_text(json.dumps(log))


def load_checkpoint(folder: Path, model: GPTNeoForCausalLM, optimizer: torch.optim.Optimizer) -> dict:
    """Continue where the last checkpoint stands, or start."""
    if not folder.exists():
        return {"step": 0, "seconds": 0.0, "curve": [], "starts": 1}
    tensors = load_file(folder / "state.safetensors")
    log = json.loads((folder / "log.json").read_text())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(log["step"])),
                "exp_avg": tensors[f"exp_avg.{name}"],
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
            }
    return log | {"starts": log["starts"] + 1}


def train(settings: Settings) -> tuple[GPTNeoForCausalLM, dict]:
    """Step 2: one pass over the stream in bfloat16 autocast."""
    stream = np.load(settings.work / "corpus/stream.npy", mmap_mode="r")
    model = build(settings)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        betas=settings.betas,
        fused=True,
    )
    log = load_checkpoint(settings.work / "checkpoint", model, optimizer)
    size = settings.batch * settings.n_ctx
    steps = len(stream) // size
    steps = steps if settings.steps is None else min(steps, settings.steps)
    started, losses = time.monotonic() - log["seconds"], []
    for step in range(log["step"], steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, steps)
        rows = torch.from_numpy(stream[step * size : (step + 1) * size].astype(np.int64)).view(settings.batch, -1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(rows).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % settings.log_every == 0 or step + 1 == steps:
            log["curve"].append([step + 1, round(sum(losses) / len(losses), 4)])
            losses = []
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == steps:
            log |= {"step": step + 1, "seconds": round(time.monotonic() - started, 1), "steps": steps}
            save_checkpoint(settings.work / "checkpoint", model, optimizer, log)
            left = log["seconds"] / (step + 1) * (steps - step - 1)
            print(f"step {step + 1}/{steps} loss {log['curve'][-1][1]:.3f}, {left / 60:.0f} min left", flush=True)
    return model, log


def ship(settings: Settings, model: GPTNeoForCausalLM, log: dict) -> None:
    """Step 3: the checkpoint in float16, tokenizer, paragraphs, counts and the training record as assets."""
    # Decoding needs what training did without.
    model.config.activation_function, model.config.use_cache = "gelu_new", True
    assert model.generation_config is not None
    model.generation_config.use_cache = True
    with replacing(settings.assets / "bundled") as folder:
        model.half().save_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(settings.work / "corpus/tokenizer").save_pretrained(folder)
    for name in ("paragraphs.parquet", "unigram_counts.npy"):
        shutil.copyfile(settings.work / "corpus" / name, settings.assets / name)
    size = settings.batch * settings.n_ctx
    record = {
        "settings": {name: value for name, value in asdict(settings).items() if name not in FREE},
        "corpus_sha256": synthetic(settings).digest(),
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
    write_json(settings.assets / "training.json", record)


def main(settings: Settings) -> None:
    """Run the three steps.

    Args:
        settings: what decides the model.
    """
    if settings.keep_memory:
        keep_allocator()
    agree_on_settings(settings.work, settings, free=FREE)
    if not (settings.work / "corpus").exists():
        prepare(settings)
    if settings.only != "corpus":
        ship(settings, *train(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
