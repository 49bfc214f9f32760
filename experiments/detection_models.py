"""Other models than the one that detectors were trained on: edited, injected, and written by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
from detection_methods import FALSE_ALARMS
from detection_rows import concatenated, decoded
from detection_statistics import auroc, cluster_weights, ends_at, summary
from detection_transfer import GROUPS, KS, Bench, Judged, standard, together
from samples import one_per_cluster
from scipy.stats import spearmanr

import mechmem as mm
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.probes.choose import Candidate
from mechmem.detect.probes.examples import Examples
from mechmem.detect.probes.fit import fit_detector, step_scores, step_statistics


def edited(bench: Bench) -> Judged:
    """A model made to forget some of the fold's memories by NPO; notes say what its alarms do on what it forgot."""
    targets = one_per_cluster(bench.memorized, bench.settings.edited)
    keep, other = bench.other[:16], bench.other[16:]
    after, _ = mm.unlearn(
        bench.model,
        targets,
        keep,
        method="npo",
        training=mm.Training(steps=60, learning_rate=1e-4),
        stop=mm.Stop(target_em=10.0),
    )
    rest = bench.memorized.select(~np.isin(bench.memorized.clusters, targets.clusters))[:64]
    gone = bench.by_truth("edited-targets", targets, after)
    depth = mm.depth_score(bench.model, after, targets)
    notes: dict[str, Any] = {
        "EM of the targets": float(gone.features.em.mean()),
        "mean depth": float(np.nanmean(depth.depth)),
    }
    for name, detector in bench.detectors.items():
        scores, statistic = step_scores(detector, gone.features), step_statistics(detector, gone.features)
        flagged = statistic > detector.threshold(FALSE_ALARMS)
        notes[f"targets flagged at k = 0, {name}"] = float(flagged[:, 0].mean())
        notes[f"targets flagged, {name}"] = float(flagged[:, -1].mean())
        known = np.isfinite(depth.depth.values)
        agreement: Any = spearmanr(scores[known, 0], depth.depth.values[known])
        notes[f"Spearman of score at k = 0 and depth, {name}"] = float(agreement.statistic)
    both = together(bench.by_truth("edited-rest", rest, after), bench.by_truth("edited-other", other, after), notes)
    return both


def injected(bench: Bench) -> Judged:
    """Texts that were never seen, written into a random twentieth of the neurons, beside others in the same model."""
    taught = bench.other.select(bench.other.column("seen") == "never seen")[: bench.settings.injected]
    rest = bench.other.select(~np.isin(bench.other.ids, taught.ids))
    mask = mm.Mask.neurons(bench.model, mm.random_neurons(bench.model, 0.05, 0))
    after, history = mm.inject(bench.model, taught, mask, training=mm.Training(steps=150))
    texts = bench.by_truth("injected", taught, after), bench.by_truth("injected-other", rest, after)
    judged = together(*texts, {})
    notes = {"EM after injection, tokens": float(history.em[-1])}
    depth = bench.model.cfg.n_layers * 2 // 3
    back = taught_there(bench, judged, {"output": ("output",), "output + residual": ("output", "residual")}, (depth,))
    return together(*texts, notes | back)


def hand_set(bench: Bench) -> Judged:
    """A model whose memories were written by hand; only detectors that read the output or the prefix fit there."""
    found = mm.planted(mm.PlantedSettings(memories=bench.settings.planted, others=4 * bench.settings.planted))
    texts = [
        decoded(
            found.model, paragraphs, bench.settings.out / f"transfer/planted-{recites}", groups=("output", "prefix")
        )
        for paragraphs, recites in ((found.memorized, True), (found.other, False))
    ]
    features = concatenated(texts)
    em = features.em.values
    steps = np.ones((1, features.sizes["k"]), dtype=bool)
    judged = Judged(features, (em == 50)[:, None] & steps, (em <= 10)[:, None] & steps, np.arange(len(em)), {})
    back = taught_there(bench, judged, {"output": ("output",)}, ())
    return Judged(features, judged.recites, judged.other, judged.clusters, back)


def taught_there(
    bench: Bench, judged: Judged, groups: dict[str, tuple[Any, ...]], depths: tuple[int, ...]
) -> dict[str, Any]:
    """The other direction: detectors trained on these texts, judged on the fold's own rows; name -> AUROC."""
    recites, kept = judged.recites[:, 0], np.flatnonzero(judged.recites[:, 0] | judged.other[:, 0])
    part = Examples(judged.features[[*_held(judged), "said", "em"]], recites, judged.clusters).select(kept)
    home = standard(bench)
    weights, ends = cluster_weights(home.clusters, bench.settings.draws), ends_at(home.recites[:, 0], home.clusters)
    identity = next(iter(bench.detectors.values())).identity
    notes: dict[str, Any] = {}
    for name, chosen in groups.items():
        choice = FeatureChoice(chosen, depths=depths if "residual" in chosen else ())
        detector = fit_detector(
            part, [Candidate("logistic", choice)], identity=identity, settings=bench.settings.fit, seed=0
        )
        scores = step_scores(detector, home.features)
        for k in KS:
            value, low, high = summary(auroc(scores[:, k], home.recites[:, k], weights), ends)
            text = f"AUROC at k = {k} on the model's own memories of `{name}` trained here"
            notes[text] = f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return notes


def _held(judged: Judged) -> list[str]:
    return [group for group in GROUPS if group in judged.features]


MODELS: dict[str, Callable[[Bench], Judged]] = {
    "edited model": edited,
    "injected memories": injected,
    "hand-set memories": hand_set,
}
