"""Training a small GPT-Neo on a stream of tokens, once: what the bundled model, its oracle and the ladder share."""

import copy
import ctypes
import json
import math
import platform
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from mechmem.data.bounds import Amount, Count, Level, Rate, Seed, Size, check_fields
from mechmem.data.files import replacing


@dataclass(frozen=True)
class ModelTraining:
    """The model and the recipe.

    Attributes:
        seed: of the order of the documents and of the first weights.
        d_vocab: tokens of the byte-level BPE.
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
    """

    seed: Seed = 0
    d_vocab: Count = 4096
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

    def __post_init__(self) -> None:
        check_fields(self)


def keep_allocator() -> None:
    """Keep freed memory in the process: page faults cost more than the arithmetic at this size (glibc only)."""
    if platform.system() == "Linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def build(settings: ModelTraining) -> GPTNeoForCausalLM:
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


def learning_rate(settings: ModelTraining, step: int, steps: int) -> float:
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


def train(
    settings: ModelTraining,
    stream: np.ndarray,
    folder: Path,
    *,
    snapshots: Collection[int] = (),
    snapshot: Callable[[GPTNeoForCausalLM, int], None] | None = None,
    step_down: Callable[[GPTNeoForCausalLM, torch.optim.Optimizer, torch.Tensor, float], float] | None = None,
) -> tuple[GPTNeoForCausalLM, dict]:
    """One pass over the stream in bfloat16 autocast, from the last checkpoint on.

    Args:
        settings: the model and the recipe.
        stream: token ids of the training text, [pos].
        folder: of the checkpoint.
        snapshots: steps after which `snapshot` is called with the model and the step.
        snapshot: keeps what it wants of the model; called again for a step after the last checkpoint when training
            goes on.
        step_down: `descend`, or what does the same; None: `descend`.

    Returns:
        The model in training mode, and the log: `step`, `steps`, `seconds`, `starts` and `curve`, [step, loss].
    """
    model = build(settings)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        betas=settings.betas,
        fused=True,
    )
    log = load_checkpoint(folder, model, optimizer)
    size = settings.batch * settings.n_ctx
    steps = step_count(settings, stream)
    started, losses = time.monotonic() - log["seconds"], log.pop("unlogged", [])
    for step in range(log["step"], steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, steps)
        rows = torch.from_numpy(stream[step * size : (step + 1) * size].astype(np.int64)).view(settings.batch, -1)
        loss = (step_down or descend)(model, optimizer, rows, settings.clip_norm)
        losses.append(loss)
        last = step + 1 == steps
        if (step + 1) % settings.log_every == 0 or last:
            log["curve"].append([step + 1, round(sum(losses) / len(losses), 4)])
            losses = []
        if step + 1 in snapshots and snapshot is not None:
            snapshot(model, step + 1)
        if (step + 1) % settings.checkpoint_every == 0 or last:
            log |= {"step": step + 1, "seconds": round(time.monotonic() - started, 1), "steps": steps}
            save_checkpoint(folder, model, optimizer, log | {"unlogged": losses})
            left = log["seconds"] / (step + 1) * (steps - step - 1)
            print(f"step {step + 1}/{steps} loss {loss:.3f}, {left / 60:.0f} min left", flush=True)
    return model, log


def step_count(settings: ModelTraining, stream: np.ndarray) -> int:
    """Steps of one pass over the stream, or fewer where the settings say so."""
    steps = len(stream) // (settings.batch * settings.n_ctx)
    return steps if settings.steps is None else min(steps, settings.steps)


def descend(model: GPTNeoForCausalLM, optimizer: torch.optim.Optimizer, rows: torch.Tensor, clip_norm: float) -> float:
    """One step down the mean NLL of rows of tokens, [row, pos]; returns it, in nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(rows).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def save_model(model: GPTNeoForCausalLM, folder: Path) -> None:
    """The weights in float16 and the config, with what decoding needs and training did without."""
    model = copy.deepcopy(model).half()
    model.config.activation_function, model.config.use_cache = "gelu_new", True
    assert model.generation_config is not None
    model.generation_config.use_cache = True
    model.save_pretrained(folder)
