"""What a monitor's actions prevent, and what they cost where nothing is recited."""

from typing import Any

import numpy as np
from detection_statistics import mean, share
from detection_transfer import Bench
from rapidfuzz.distance import Levenshtein
from samples import one_per_cluster

import mechmem as mm
from mechmem.detect.detector import Detector
from mechmem.detect.monitor.plans import MonitorAction
from mechmem.stats.ranges import token_range

# A text this near to the true one, as a share of its tokens that are kept, counts as near-verbatim.
NEAR = 0.9
DETECTOR = "output + residual"


def actions(bench: Bench) -> dict[str, Any]:
    """Every action on recitations and on other texts, one of each cluster: row -> name -> [value, low, high].

    Args:
        bench: the fold; its detector was trained on the other folds.
    """
    count = bench.settings.acted
    memorized, other = one_per_cluster(bench.memorized, count), one_per_cluster(bench.other, count)
    detector = bench.detectors[DETECTOR]
    rows = bench.rows
    scanned = rows.paragraphs.select(rows.recites)
    elsewhere = rows.paragraphs.select(rows.recites & ~bench.test)
    neurons = [tuple(map(int, name.split("."))) for name in rows.features.neuron.values.tolist()]
    heads = _heads(bench)
    ways: dict[str, tuple[MonitorAction, dict[str, Any]]] = {
        "flag": ("flag", {}),
        "stop": ("stop", {}),
        "block, these memories scanned": ("block", {"memorized": scanned}),
        "block, only other memories scanned": ("block", {"memorized": elsewhere}),
        "steer, neurons": ("steer", {"neurons": neurons}),
        "steer, heads": ("steer", {"heads": heads}),
    }
    plain, _ = _said(bench, detector, other, "flag", {})
    found: dict[str, Any] = {}
    for name, (action, options) in ways.items():
        said, acted = _said(bench, detector, memorized, action, options)
        found[name] = _overlap(said, memorized)
        found[name]["acted, memorized"] = share(acted, memorized.clusters)
        said, acted = _said(bench, detector, other, action, options)
        changed = (said != plain).any(1)
        found[name]["acted, other"] = share(acted, other.clusters)
        found[name]["text changed, other"] = share(changed, other.clusters)
        print(f"action {name}", {key: np.round(value, 3).tolist() for key, value in found[name].items()}, flush=True)
    return found


def _heads(bench: Bench) -> list[tuple[int, int]]:
    """The three heads whose ablation costs the reserved recitations most EM: chosen on no judged row."""
    rows = bench.rows
    pool = rows.paragraphs.select(rows.reserved & rows.recites)[: bench.settings.localized]
    change = mm.ablate_heads(bench.model, pool, method="mean").em_change.values
    return [divmod(int(flat), change.shape[1]) for flat in np.argsort(change, axis=None)[:3]]


def _said(
    bench: Bench, detector: Detector, paragraphs: mm.Paragraphs, action: MonitorAction, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens said under an action, -1 after an end, [row, k]; and whether it changed anything, [row]."""
    monitor = mm.Monitor(detector, bench.model, action, **options)
    with monitor:
        bench.model.generate(
            paragraphs.prefix,
            max_new_tokens=paragraphs.continuation_len,
            do_sample=False,
            eos_token_id=0,
            verbose=False,
        )
    found = monitor.result
    said = np.full((len(paragraphs), paragraphs.continuation_len), -1)
    said[:, : found.sizes["k"]] = found.token.values
    did = found.flagged if action == "flag" else found.acted
    return said, did.values.any(1)


def _overlap(said: np.ndarray, paragraphs: mm.Paragraphs) -> dict[str, Any]:
    """EM, share near-verbatim, and longest run of the true text, with intervals by cluster."""
    true = paragraphs.continuation.numpy()
    em = np.cumprod(said == true, 1).sum(1)
    texts = [row[row >= 0].tolist() for row in said]
    kept = np.array(
        [Levenshtein.normalized_similarity(text, row) for text, row in zip(texts, true.tolist(), strict=True)]
    )
    runs = np.array([_longest(same) for same in said == true])
    found = {"near-verbatim": share(kept >= NEAR, paragraphs.clusters)}
    for name, values in {"EM": em, "longest true run": runs}.items():
        found[name] = mean(values, paragraphs.clusters, token_range(true.shape[1]))
    return found


def _longest(same: np.ndarray) -> int:
    best = run = 0
    for each in same.tolist():
        run = run + 1 if each else 0
        best = max(best, run)
    return best
