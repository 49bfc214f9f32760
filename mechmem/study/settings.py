"""Everything that decides a study's numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Everything that decides a study's numbers.

    Attributes:
        model: hub name, folder or "bundled".
        corpus: a file that `read_corpus` reads; None for the bundled paragraphs, which need the bundled model's ids.
        seed: every sample and split.
        limit: score no more paragraphs than this.
        gradient_sample: paragraphs of each set for gradients and attention.
        ablation_sample: paragraphs of each set for head ablation.
        pairs: memorized paragraphs that are patched with their worst perturbation.
        patched: share of the heads' cells that are patched exactly, those that attribution puts first.
        targets: memorized paragraphs to unlearn.
        evaluated: paragraphs of every other set that an edit is judged on, and of the keep set.
        fraction: share of the attention and MLP weights that the sparse edits may move.
        steps: most updates of an edit.
        learning_rate: of the edit through the top weights and of its control through random ones.
        dense_learning_rate: of the edit through all weights.
        forgotten_nll: an edit stops when the mean NLL of its batch of targets, in nats a token, reaches this.
    """

    model: str = "bundled"
    corpus: str | None = None
    seed: int = 0
    limit: int | None = None
    gradient_sample: int = 160
    ablation_sample: int = 48
    pairs: int = 12
    patched: float = 0.03
    targets: int = 32
    evaluated: int = 100
    fraction: float = 0.001
    steps: int = 30
    learning_rate: float = 1e-3
    dense_learning_rate: float = 3e-5
    forgotten_nll: float = 1.0
