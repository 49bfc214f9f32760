"""Time and memory of edits, compared with the paper's implementation.

    python experiments/benchmarks/intervene.py      # about 16 minutes on two idle cores

One repetition is ten steps on one memorized and ten keep paragraphs of 100 tokens, from a folder with a checkpoint of
GPT-Neo 125M's shape to the edited model. The implementations alternate for ROUNDS rounds in one process; figures are
medians, and ratios are taken within a round. Peak memory is that of a process that runs nothing else.
Writes docs/benchmarks/intervene.md.
"""

import gc
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import mechmem as mm
from mechmem.model.sites import editable_parameters
from mechmem.truth.planted import planted
from mechmem.truth.planted_settings import PlantedSettings

# Settings -------------------------------------------------------------------------------------------------------------
PAGE = Path("docs/benchmarks/intervene.md")
ROUNDS, STEPS, KEEP, SEED = 5, 10, 10, 0
FRACTION = 0.001
SHAPE = PlantedSettings(12, 12, 768, 3072, 50257, 256, layer=1, head=2, memories=4, others=KEEP, seed=SEED)


def papers_way(folder: Path, memorized: mm.Paragraphs, keep: mm.Paragraphs, mask: mm.Mask | None) -> None:
    """The paper's implementation: a new model per repetition, Adam over all parameters, integer masks, all logits.

    The original model's predictions on the keep set are computed once, which is faster than in the public code.
    """
    model = mm.load_model(folder)
    device_masks = None
    if mask is not None:
        device_masks = {}
        for name, parameter in model.named_parameters():
            whole = torch.zeros(parameter.numel(), dtype=torch.int64)
            whole[mask.indices.get(name, torch.zeros(0, dtype=torch.long))] = 1
            device_masks[name] = whole.view(parameter.shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, weight_decay=1.0)
    columns = slice(49, -1)
    with torch.no_grad():
        reference = model(keep.tokens)[:, columns].log_softmax(-1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        true = memorized.continuation
        log_probs = model(memorized.tokens)[:, columns].log_softmax(-1)
        nll = -log_probs.gather(-1, true[..., None]).mean()
        held = model(keep.tokens)[:, columns].log_softmax(-1)
        kl = functional.kl_div(held, reference, log_target=True, reduction="none").sum(-1).mean()
        (kl - nll).backward()
        if device_masks is not None:
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    parameter.grad *= device_masks[name]
        optimizer.step()


def our_way(model: object, memorized: mm.Paragraphs, keep: mm.Paragraphs, mask: mm.Mask | None) -> None:
    """Our implementation: one model for all repetitions; includes the check that no other weight moved."""
    training = mm.Training(steps=STEPS, learning_rate=1e-5)
    mm.unlearn(model, memorized, keep, method="contrastive", mask=mask, training=training, stop=mm.Stop())  # pyright: ignore[reportArgumentType]


def sets(folder: Path) -> tuple[mm.Paragraphs, mm.Paragraphs]:
    """One memorized and ten other paragraphs."""
    return mm.Paragraphs.load(folder / "memorized.parquet"), mm.Paragraphs.load(folder / "keep.parquet")


def masks(model: object, memorized: mm.Paragraphs) -> dict[str, mm.Mask | None]:
    """The paper's two edits."""
    return {
        "sparse": mm.Mask.top(mm.weight_gradients(model, memorized), fraction=FRACTION),  # pyright: ignore[reportArgumentType]
        "dense": None,
    }


def status(field: str) -> int:
    """A field of this process's status, in bytes."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def peak(folder: Path, way: str, kind: str) -> None:
    """Run one implementation alone and print its peak memory above that of an idle interpreter with its libraries."""
    mask = mm.Mask.load(folder / "mask.safetensors") if kind == "sparse" else None
    memorized, keep = sets(folder)
    gc.collect()
    before = status("VmRSS")
    if way == "paper":
        papers_way(folder, memorized, keep, mask)
    else:
        our_way(mm.load_model(folder), memorized, keep, mask)
    print(json.dumps({"peak": status("VmHWM") - before}))


def measured_peak(folder: Path, way: str, kind: str) -> float:
    """Peak memory in a process of its own, in GB."""
    command = [sys.executable, __file__, "peak", str(folder), way, kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["peak"] / 1e9


def main() -> None:
    """Time both implementations of both edits, measure their memory and write the page."""
    lines = [
        "| edit | seconds | paper, seconds | speed-up, median | lowest | highest | peak GB | paper, peak GB | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        truth = planted(SHAPE)
        mm.export(truth.model, folder)
        truth.memorized.select(np.arange(1)).save(folder / "memorized.parquet")
        truth.other.select(np.arange(KEEP)).save(folder / "keep.parquet")
        del truth
        memorized, keep = sets(folder)
        model = mm.load_model(folder)
        for kind, mask in masks(model, memorized).items():
            if mask is not None:
                mask.save(folder / "mask.safetensors")
            seconds: dict[str, list[float]] = {"ours": [], "paper": []}
            for _ in range(ROUNDS):
                for name in seconds:
                    started = time.perf_counter()
                    if name == "ours":
                        our_way(model, memorized, keep, mask)
                    else:
                        papers_way(folder, memorized, keep, mask)
                    seconds[name].append(time.perf_counter() - started)
                    gc.collect()
            ratios = np.array(seconds["paper"]) / np.array(seconds["ours"])
            print(kind, seconds, flush=True)
            gigabytes = {way: measured_peak(folder, way, kind) for way in seconds}
            lines.append(
                f"| {kind} | {np.median(seconds['ours']):.1f} | {np.median(seconds['paper']):.1f} | "
                f"{np.median(ratios):.1f} | {ratios.min():.1f} | {ratios.max():.1f} | {gigabytes['ours']:.2f} | "
                f"{gigabytes['paper']:.2f} | {gigabytes['ours'] / gigabytes['paper']:.2f} |"
            )
            print(lines[-1], flush=True)
    weights = sum(p.numel() for p in editable_parameters(model).values())
    head = [
        "# Edits compared with the paper's implementation",
        "",
        f"`python experiments/benchmarks/intervene.py`, {datetime.now(UTC).date()}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, seed {SEED}, {ROUNDS} rounds.",
        "",
    ]
    tail = [
        "",
        f"{STEPS} steps on one memorized and {KEEP} keep paragraphs of 100 tokens. The model has GPT-Neo 125M's shape; "
        f"{FRACTION:.1%} (sparse) or all (dense) of its {weights:,} attention and MLP weights may move. Target: 3 "
        "times as fast with half the memory. The paper's implementation reloads the model for each repetition, keeps "
        "Adam's moments for all parameters and masks of 64-bit integers, and computes the logits of all columns. Both "
        "implementations compute the original model's predictions once. mechmem's time includes the check that no "
        "other weight moved. Peak memory is measured above that of an idle process and includes the model. A dense "
        "edit keeps the original, a copy, the gradient, two moments and the best weights so far, which it may have to "
        "restore: at least 2.7 GB. The paper's implementation keeps one model and can restore nothing.",
    ]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join([*head, *lines, *tail]) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*deprecated.*")
    if sys.argv[1:2] == ["peak"]:
        peak(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        main()
