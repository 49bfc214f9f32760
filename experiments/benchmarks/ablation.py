"""Speed of head ablation: without hooks, restarted at the ablated layer, against ablation by hooks.

    python experiments/benchmarks/ablation.py    # 10 minutes

Both alternate for ROUNDS rounds in one process; figures are medians, and ratios are taken within a round. The models
are the bundled one and a planted one of GPT-Neo 125M's shape. Writes docs/benchmarks/localize-ablation.md.
"""

import platform
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mechmem as mm
from mechmem.localize.ablation_runs import AblationRuns
from mechmem.model.lean.model import fast_float32
from mechmem.truth.planted import planted
from mechmem.truth.planted_settings import PlantedSettings

# Settings -------------------------------------------------------------------------------------------------------------
PAGE = Path("docs/benchmarks/localize-ablation.md")
ROUNDS = 3
SEED = 0
SHAPE = PlantedSettings(12, 12, 768, 3072, 50257, 256, layer=1, head=2, memories=16, others=4, seed=SEED)
# Paragraphs of the bundled model, and of the other with the layer whose heads are ablated.
PARAGRAPHS, FEW, LAYER = 16, 4, 6


def product_rate(model: Any, rows: int = 1600, times: int = 40) -> float:
    """Floating-point operations per CPU second of the MLP's product, as the lean forward runs it."""
    into, weight = torch.randn(rows, model.cfg.d_model), torch.randn(model.cfg.d_model, model.cfg.d_mlp)
    with fast_float32(torch.device("cpu")):
        _ = into @ weight
        seconds, _ = cpu_timed(lambda: [into @ weight for _ in range(times)])
    return 2 * times * rows * model.cfg.d_model * model.cfg.d_mlp / seconds


def cpu_timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of the process, which other processes disturb less than wall time, and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def run_flops(model: Any, layers: list[int]) -> float:
    """Operations of one ablated run, mean over layers: the MLP of its layer, later layers, 50 columns of logits."""
    cfg, length, columns = model.cfg, 99, 50
    mlp, attention = 4 * cfg.d_model * cfg.d_mlp, 8 * cfg.d_model**2
    # The last layer's queries and MLP run at the scored columns alone; its keys and values at all positions.
    last = (mlp + attention / 2) * columns + attention / 2 * length
    between = [(cfg.n_layers - 2 - layer) * (mlp + attention) * length + last for layer in layers]
    # After the last layer's attention nothing is left but its MLP.
    later = [more if layer < cfg.n_layers - 1 else 0 for layer, more in zip(layers, between, strict=True)]
    return mlp * length + float(np.mean(later)) + 2 * columns * cfg.d_model * cfg.d_vocab


def ablation() -> None:
    """Runs per CPU second, and the share of what the machine's matrix products allow."""
    bundled, shape = mm.load_model("bundled"), planted(SHAPE)
    cases: dict[str, tuple[Any, mm.Paragraphs, list[tuple[int, int]] | None]] = {
        "bundled model, all heads": (bundled, mm.bundled_paragraphs()[:PARAGRAPHS], None),
        f"125M shape, heads of layer {LAYER}": (
            shape.model,
            shape.memorized[:FEW],
            [(LAYER, head) for head in range(12)],
        ),
    }
    lines = [
        "| case | runs | runs/s | with hooks | ratio, median | lowest | highest | share | apart |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (model, paragraphs, chosen) in cases.items():
        cells = chosen or list(np.ndindex(model.cfg.n_layers, model.cfg.n_heads))
        sets = torch.zeros(len(cells), model.cfg.n_layers, model.cfg.n_heads, dtype=torch.bool)
        for number, cell in enumerate(cells):
            sets[(number, *cell)] = True

        def hooked(model: Any = model, paragraphs: Any = paragraphs, sets: Any = sets) -> Any:
            slow = AblationRuns(model, paragraphs, method="mean")
            return (slow.scores(sets) - slow.intact[:, None]).mean(-1)

        runs, flops = len(cells) * len(paragraphs), run_flops(model, [layer for layer, _ in cells])
        ours, others, shares, apart = [], [], [], 0.0
        for _ in range(ROUNDS):
            rate = product_rate(model)
            seconds, found = cpu_timed(lambda m=model, p=paragraphs, c=chosen: mm.ablate_heads(m, p, heads=c))
            ours.append(runs / seconds)
            shares.append(flops * ours[-1] / rate)
            seconds, slow = cpu_timed(hooked)
            others.append(runs / seconds)
            values = np.array([float(found.nll_change[cell]) for cell in cells])
            apart = max(apart, float(np.abs(values - slow[1].numpy()).max()))
        ratios = np.array(ours) / np.array(others)
        lines.append(
            f"| {name} | {runs:,} | {np.median(ours):.1f} | {np.median(others):.1f} | {np.median(ratios):.1f} | "
            f"{ratios.min():.1f} | {ratios.max():.1f} | {np.median(shares):.2f} | {apart:.1e} |"
        )
    head = (
        f"# Ablating heads\n\n`python experiments/benchmarks/ablation.py`, {datetime.now(UTC).date()}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, seed {SEED}, "
        f"{ROUNDS} rounds.\n\n"
    )
    notes = (
        "\nA run is one head ablated on one paragraph of 100 tokens, replaced by its mean. Times are CPU seconds of "
        "the whole call, including the intact runs and the mean. Share: the operations of the ablated runs, from the "
        "ablated layer on, at the rate of one product of the MLP's size in the same round, relative to the time "
        "measured. Apart: largest difference of the changes of NLL, nats per token. With hooks: `AblationRuns`, which "
        "is still used for models with hooks on them.\n"
    )
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(head + "\n".join(lines) + "\n" + notes)
    print(PAGE.read_text())


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*deprecated.*")
    ablation()
