"""Everything that decides the numbers of the repeated study: its settings, in two sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mechmem.data.bounds import Amount, Count, Rate, Seed, Share, check_fields

# The published sizes: what `full` changes.
FULL: dict[str, Any] = {
    "perturbed": None,
    "pairs": 90,
    "gradient_sample": None,
    "activation_sample": 50,
    "targets": 50,
    "kept": 50,
    "repeats": 10,
    "head_sample": None,
    "noise_draws": 10,
}


@dataclass(frozen=True)
class PaperSettings:
    """Everything that decides the numbers.

    Attributes:
        model: hub name, folder with a checkpoint, or "bundled".
        corpus: folder of the study's public files (`em50.npy` and others), or what `read_corpus` reads, a scan's
            parquet among it; not set: the bundled paragraphs, which need the bundled model.
        others: text or ids that the group of EM 0 to 10 is taken from, which the study's public files lack.
        seed: decides every sample, replacement, mask and resample.
        limit: score at most this many paragraphs of a corpus; not set: all.
        perturbed: paragraphs of each set whose prefixes are perturbed; not set: all.
        pairs: pairs of a memorized and a perturbed paragraph that are patched.
        gradient_sample: paragraphs of each EM group for parameter gradients; not set: all.
        activation_sample: paragraphs of each set for gradients of activations.
        targets: memorized paragraphs that are unlearned or edited.
        kept: other paragraphs that are held meanwhile, and as many that are evaluated.
        steps: updates of the fine-tuning.
        learning_rate: of the fine-tuning.
        fraction: share of the weights that are tuned or get noise.
        repeats: runs of the fine-tuning on other targets.
        head_sample: paragraphs of each set for attention to rare tokens; not set: all.
        noise_scales: of the noise, in standard deviations of the weights.
        noise_draws: repetitions of the noise.
        permutations: shuffles of a permutation test.
        draws: resamples of an interval, of another statistic than the mean.
    """

    model: str = "EleutherAI/gpt-neo-125m"
    corpus: str | None = None
    others: str | None = None
    seed: Seed = 0
    limit: Count | None = None
    perturbed: Count | None = 24
    pairs: Count = 8
    gradient_sample: Count | None = 48
    activation_sample: Count = 8
    targets: Count = 8
    kept: Count = 16
    steps: Count = 10
    learning_rate: Rate = 1e-5
    fraction: Share = 0.001
    repeats: Count = 2
    head_sample: Count | None = 64
    noise_scales: tuple[Amount, ...] = (0.1, 0.3, 1.0, 3.0)
    noise_draws: Count = 3
    permutations: Count = 1000
    draws: Count = 2000

    def __post_init__(self) -> None:
        check_fields(self)


def full(settings: PaperSettings) -> PaperSettings:
    """The same settings with the study's own sizes."""
    return replace(settings, **FULL)
