"""Can an edited model be told apart from one that never read the targets: a test over targets, and a membership score.

**Forget quality** (TOFU, Maini et al. 2024, arXiv 2401.06121): the p-value of a two-sample Kolmogorov-Smirnov test
between the truth ratios of the edited model and those of the oracle. TOFU's truth ratio divides the probability of
wrong answers by that of a right one, both per token. Plain text has no answers, so the wrong ones here are the
continuations of other targets, of other clusters, after the same prefix. Like TOFU's, the ratio removes what a model
says of any text of this kind, which the NLL of the continuation alone does not: an edit that makes a model worse at
everything raises that too.

**Privacy leakage** (MUSE, Shi et al. 2024, arXiv 2407.06460): how much better than the oracle a membership score tells
the targets from text that no model has read. The score is Min-K% Prob (Shi et al. 2023, arXiv 2310.16789).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from scipy.stats import ks_2samp, mannwhitneyu

from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.costs import Outputs, Reader
from mechmem.model.forward import token_nll

# Wrong continuations of each paragraph, as many as TOFU has wrong answers.
WRONG = 5
TARGETS, UNREAD = "targets", "never seen"


def against_oracle(
    readers: dict[str, Reader], sets: Mapping[str, Paragraphs], costs: dict[str, xr.Dataset]
) -> xr.Dataset:
    """Forget quality, where there are targets, and privacy leakage, where there is also text that was never seen.

    Args:
        readers: of the models, an oracle among them.
        sets: those called "targets" and "never seen" are used.
        costs: of each set, with `min_k_nll`.

    Returns:
        Dataset [model] with the variables that the sets allow.
    """
    data, models = {}, [name for name in readers if name != "scale"]
    if TARGETS in sets:
        targets = sets[TARGETS]
        ratios = {name: _kept_ratios(readers[name], targets) for name in models}
        found = [forget_quality(ratios[name], ratios["oracle"], targets.clusters) for name in models]
        about = {"units": "1", "higher": "harder to tell from the oracle", "test": "Kolmogorov-Smirnov, p-value"}
        data["forget_quality"] = ("model", found, about)
    if TARGETS in sets and UNREAD in sets:
        scores = [costs[name].min_k_nll for name in (TARGETS, UNREAD)]
        areas = {name: area_above(*(score.sel(model=name).values for score in scores)) for name in models}
        leaks = [(areas[name] - areas["oracle"]) / max(areas["oracle"], 1e-12) for name in models]
        about = {"units": "1", "higher": "targets look less read than in the oracle; below 0: they look read"}
        data["privacy_leakage"] = ("model", leaks, about)
    return xr.Dataset(data, {"model": models})


def forget_quality(
    first: Float[np.ndarray, " paragraph"], second: Float[np.ndarray, " paragraph"], clusters: np.ndarray
) -> float:
    """p-value of the test between two models' truth ratios; NaN where there are none.

    Near-duplicates are not independent: the test is between means of clusters.
    """
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        return np.nan
    labels, members = np.unique(clusters, return_inverse=True)
    one, other = (np.bincount(members, values) / np.bincount(members) for values in (first, second))
    found: Any = ks_2samp(one, other)
    return float(found.pvalue) if len(labels) > 1 else np.nan


def area_above(first: Float[np.ndarray, " one"], second: Float[np.ndarray, " other"]) -> float:
    """Probability that a value of the first is above one of the second; ties count half."""
    return float(mannwhitneyu(first, second).statistic / (len(first) * len(second)))


def _kept_ratios(reader: Reader, paragraphs: Paragraphs) -> Float[np.ndarray, " paragraph"]:
    return reader.once("truth ratios", paragraphs, lambda: truth_ratios(reader.outputs, paragraphs))


@torch.no_grad()
def truth_ratios(model: Outputs, paragraphs: Paragraphs) -> Float[np.ndarray, " paragraph"]:
    """Log of the mean over wrong continuations of their probability, over that of the true one, per token.

    Nats per token; higher: the true continuation stands out less. NaN where all paragraphs are of one cluster.
    """
    wrong = wrong_rows(paragraphs.clusters)
    if wrong.shape[1] == 0:
        return np.full(len(paragraphs), np.nan)
    tokens = paragraphs.tokens.cpu()
    prefix, ends = tokens[:, : paragraphs.prefix_len], tokens[:, paragraphs.prefix_len :]
    own = _nll(model, tokens, paragraphs.prefix_len)
    others = [
        _nll(model, torch.cat([prefix, ends[torch.from_numpy(row)]], 1), paragraphs.prefix_len) for row in wrong.T
    ]
    return (own + torch.stack([-other for other in others]).logsumexp(0) - np.log(len(others))).numpy()


def wrong_rows(clusters: np.ndarray) -> Int[np.ndarray, "paragraph wrong"]:
    """For each paragraph the next rows of other clusters, round the end; as many as every paragraph can have."""
    rows = np.arange(len(clusters))
    chosen = [
        [(row + step) % len(rows) for step in rows if clusters[(row + step) % len(rows)] != clusters[row]]
        for row in rows
    ]
    most = min(WRONG, min(map(len, chosen)))
    return np.array([some[:most] for some in chosen], dtype=np.int64).reshape(len(rows), most)


def _nll(model: Outputs, tokens: torch.Tensor, prefix_len: int, at_once: int = 16) -> Float[torch.Tensor, " paragraph"]:
    parts = []
    for rows in tokens.split(at_once):
        logits = model.logits(model.columns(rows, prefix_len))
        parts.append(token_nll(logits, rows[:, prefix_len:].to(logits.device)).double().mean(-1).cpu())
    return torch.cat(parts)
