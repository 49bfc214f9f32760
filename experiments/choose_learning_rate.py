"""Choose the learning rates of the study's edits on paragraphs that no study reports; write docs/learning-rate.md.

    python experiments/choose_learning_rate.py     # a few minutes on two cores

Targets are nearly memorized paragraphs (EM 30 to 49) from clusters without a memorized one; the cost is measured on
partly known paragraphs (EM 11 to 29). No study uses either as a target or for evaluation. Every kind of mask is tried
at every rate until the targets' NLL reaches the study's threshold; the rate with the lowest KL is chosen.
"""

import platform
import time
from pathlib import Path

import numpy as np
import torch

import mechmem as mm
from mechmem.study.settings import Settings

# Settings -------------------------------------------------------------------------------------------------------------
SPARSE_RATES, DENSE_RATES = [3e-4, 1e-3, 3e-3, 1e-2], [1e-5, 3e-5, 1e-4, 3e-4]
STUDY = Settings()
SEED = 1
PAGE = Path("docs/learning-rate.md")


def main() -> None:
    """Try every mask at every rate and write the page."""
    model, paragraphs = mm.load_model("bundled"), mm.bundled_paragraphs()
    em = mm.score(model, paragraphs).em.values
    cluster = paragraphs.column("cluster")
    known = np.isin(cluster, cluster[em == 50])
    rng = np.random.default_rng(SEED)
    nearly, half = np.flatnonzero((em >= 30) & (em < 50) & ~known), np.flatnonzero((em > 10) & (em < 30) & ~known)
    targets = paragraphs.select(rng.permutation(nearly)[: STUDY.targets])
    half = rng.permutation(half)
    keep, held = paragraphs.select(half[: len(half) // 2]), paragraphs.select(half[len(half) // 2 :])
    top = mm.Mask.top(mm.weight_gradients(model, targets), fraction=STUDY.fraction)
    masks = {"top": top, "random": mm.Mask.random_like(top, seed=SEED), "all": None}
    print(f"{len(targets)} targets, {len(keep)} keep, {len(held)} held out")
    lines = []
    for name, mask in masks.items():
        for rate in DENSE_RATES if mask is None else SPARSE_RATES:
            try:
                edited, history = mm.unlearn(
                    model,
                    targets,
                    keep,
                    method="contrastive",
                    mask=mask,
                    training=mm.Training(steps=STUDY.steps, learning_rate=rate),
                    seed=SEED,
                    stop=lambda row: row["memorized_nll"] >= STUDY.forgotten_nll,
                )
            except FloatingPointError:
                lines.append([name, f"{rate:g}", "diverged", "", "", "", ""])
                continue
            reached = history.memorized_nll.values[-1] >= STUDY.forgotten_nll
            after = mm.score(edited, targets)
            row = [name, f"{rate:g}", str(history.sizes["step"]), "yes" if reached else "no"]
            row += [f"{float(after.nll.mean()):.2f}", f"{float(after.em.mean()):.1f}"]
            row += [f"{float(mm.kl(model, edited, held).mean()):.3f}"]
            lines.append(row)
            print(*row, flush=True)
    least = {
        name: min((float(row[6]), row[1]) for row in lines if row[0] == name and row[3] == "yes")
        for name in masks
        if any(row[0] == name and row[3] == "yes" for row in lines)
    }
    prices = "; ".join(f"{name} {kl:.3f} (rate {rate})" for name, (kl, rate) in least.items())
    head = ["mask", "rate", "steps", "threshold reached", "targets' NLL", "targets' EM", "KL, held-out"]
    text = [
        "# The learning rates of the study's edits",
        "",
        "`experiments/choose_learning_rate.py` tries every kind of mask at every rate on paragraphs that no study uses "
        f"as a target or for evaluation: {len(targets)} targets with EM 30 to 49 and {len(held)} held-out paragraphs "
        "with EM 11 to 29. NLL and KL are in nats per token. An edit stops when the NLL of its batch of targets "
        f"reaches {STUDY.forgotten_nll} or after {STUDY.steps} steps. For the top weights and for all weights, the "
        "study takes the rate with the lowest KL among those that reach the threshold. Random weights are the control "
        "of the top weights and use the same rate.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in lines),
        "",
        f"Lowest KL at the threshold: {prices}. This is one seed and one set of targets, without an interval: it "
        "chooses rates and does not rank masks.",
        "",
        f"The study's rates: {STUDY.learning_rate:g} for top and random weights, {STUDY.dense_learning_rate:g} for "
        "all weights.",
        "",
        f"Measured on {time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} threads, "
        f"seed {SEED}.",
        "",
    ]
    PAGE.write_text("\n".join(text))


if __name__ == "__main__":
    main()
