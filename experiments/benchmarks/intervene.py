"""Time and memory of edits, compared with the paper's implementation.

    python experiments/benchmarks/intervene.py      # about 16 minutes on two idle cores

One repetition is ten steps on one memorized and ten keep paragraphs of 100 tokens, from a folder with a checkpoint of
GPT-Neo 125M's shape to the edited model. The implementations alternate for several rounds in one process; figures are
medians, and ratios are taken within a round. Peak memory is that of a process that runs nothing else.
Writes docs/benchmarks/intervene.md.
"""

import gc
import re
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rounds import Shape, alternate, spread, stamp, write_page
from torch.nn import functional

import mechmem as mm
from mechmem.data.bounds import Count, Seed, Share, check_fields
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters
from mechmem.truth.planted import planted


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        rounds: repetitions of every edit.
        steps: of an edit.
        keep: paragraphs to keep.
        fraction: of the attention and MLP weights, for the sparse edit.
        seed: of the planted model.
        shape: of the model.
        memory: whether peak memory is measured too, in processes of their own.
        page: the table, or None.
        peak: used by the script itself: measure only the peak memory of one implementation ("ours" or "paper") of one
            edit ("sparse" or "dense") on the files of a folder.
    """

    rounds: Count = 5
    steps: Count = 10
    keep: Count = 10
    fraction: Share = 0.001
    seed: Seed = 0
    shape: Shape = Shape()
    memory: bool = True
    page: Path | None = Path("docs/benchmarks/intervene.md")
    peak: tuple[Path, Literal["ours", "paper"], Literal["sparse", "dense"]] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def papers_way(
    folder: Path, memorized: mm.Paragraphs, keep: mm.Paragraphs, mask: mm.Mask | None, steps: int
) -> HookedTransformer:
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
    for _ in range(steps):
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
    return model


def our_way(
    model: HookedTransformer, memorized: mm.Paragraphs, keep: mm.Paragraphs, mask: mm.Mask | None, steps: int
) -> HookedTransformer:
    """Our implementation: one model for all repetitions; includes the check that no other weight moved."""
    training = mm.Training(steps=steps, learning_rate=1e-5)
    return mm.unlearn(model, memorized, keep, method="contrastive", mask=mask, training=training, stop=mm.Stop())[0]


def sets(folder: Path) -> tuple[mm.Paragraphs, mm.Paragraphs]:
    """One memorized and ten other paragraphs."""
    return mm.Paragraphs.load(folder / "memorized.parquet"), mm.Paragraphs.load(folder / "keep.parquet")


def masks(model: HookedTransformer, memorized: mm.Paragraphs, fraction: float) -> dict[str, mm.Mask | None]:
    """The paper's two edits."""
    return {"sparse": mm.Mask.top(mm.weight_gradients(model, memorized), fraction=fraction), "dense": None}


def status(field: str) -> int:
    """A field of this process's status, in bytes."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def peak(folder: Path, way: str, kind: str, steps: int) -> float:
    """Run one implementation alone; its peak memory above that of an idle interpreter with its libraries, in GB."""
    mask = mm.Mask.load(folder / "mask.safetensors") if kind == "sparse" else None
    memorized, keep = sets(folder)
    gc.collect()
    before = status("VmRSS")
    if way == "paper":
        papers_way(folder, memorized, keep, mask, steps)
    else:
        our_way(mm.load_model(folder), memorized, keep, mask, steps)
    return (status("VmHWM") - before) / 1e9


def measured_peak(folder: Path, way: str, kind: str, settings: Settings) -> float:
    """Peak memory in a process of its own, in GB."""
    command = [sys.executable, __file__, "--steps", str(settings.steps), "--peak", str(folder), way, kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def main(settings: Settings) -> dict[str, dict[str, Any]]:
    """Time both implementations of both edits, measure their memory and write the page.

    Args:
        settings: what is measured.

    Returns:
        Edit -> seconds of both implementations [round], and gigabytes.
    """
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        truth = planted(settings.shape.planted(memories=4, others=settings.keep, seed=settings.seed))
        mm.export(truth.model, folder)
        truth.memorized[:1].save(folder / "memorized.parquet")
        truth.other.save(folder / "keep.parquet")
        del truth
        memorized, keep = sets(folder)
        model = mm.load_model(folder)
        for kind, mask in masks(model, memorized, settings.fraction).items():
            if mask is not None:
                mask.save(folder / "mask.safetensors")
            work = {
                "ours": partial(our_way, model, memorized, keep, mask, settings.steps),
                "paper": partial(papers_way, folder, memorized, keep, mask, settings.steps),
            }
            found[kind] = {"seconds": alternate(work, settings.rounds)}
            found[kind]["gigabytes"] = {
                way: measured_peak(folder, way, kind, settings) if settings.memory else float("nan") for way in work
            }
            print(kind, found[kind], flush=True)
    weights = sum(p.numel() for p in editable_parameters(model).values())
    write(settings, found, weights)
    return found


def write(settings: Settings, found: dict[str, dict[str, Any]], weights: int) -> None:
    """The page of docs.

    Args:
        settings: what was measured.
        found: what `main` returns.
        weights: attention and MLP weights of the model.
    """
    lines = [
        "| edit | seconds | paper, seconds | speed-up, median | lowest | highest | peak GB | paper, peak GB | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, row in found.items():
        seconds, peaks = row["seconds"], row["gigabytes"]
        lines.append(
            f"| {kind} | {np.median(seconds['ours']):.1f} | {np.median(seconds['paper']):.1f} | "
            f"{spread(seconds['paper'] / seconds['ours'])} | {peaks['ours']:.2f} | {peaks['paper']:.2f} | "
            f"{peaks['ours'] / peaks['paper']:.2f} |"
        )
    head = [
        "# Edits compared with the paper's implementation",
        "",
        stamp("intervene.py", settings.rounds, settings.seed),
        "",
    ]
    tail = [
        "",
        f"{settings.steps} steps on one memorized and {settings.keep} keep paragraphs of 100 tokens. The model has "
        f"{settings.shape.layers} layers of width {settings.shape.width} (GPT-Neo 125M's shape: 12 of 768); "
        f"{settings.fraction:.1%} (sparse) or all (dense) of its {weights:,} attention and MLP weights may move. "
        "Target: 3 times as fast with half the memory. The paper's implementation reloads the model for each "
        "repetition, keeps Adam's moments for all parameters and masks of 64-bit integers, and computes the logits of "
        "all columns. Both implementations compute the original model's predictions once. mechmem's time includes the "
        "check that no other weight moved. Peak memory is measured above that of an idle process and includes the "
        "model. A dense edit keeps the original, a copy, the gradient, two moments and the best weights so far, which "
        "it may have to restore: at least 2.7 GB at the shape of GPT-Neo 125M. The paper's implementation keeps one "
        "model and can restore nothing.",
    ]
    write_page(settings.page, [*head, *lines, *tail])


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*deprecated.*")
    # The paper's learning rate is too small for the planted model; what is measured is the time of its steps.
    warnings.filterwarnings("ignore", message="the edit removed nothing")
    chosen = tyro.cli(Settings, description=__doc__)
    if chosen.peak is not None:
        print(peak(*chosen.peak, chosen.steps))
    else:
        main(chosen)
