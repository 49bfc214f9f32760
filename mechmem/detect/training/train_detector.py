"""Train a detector of recitation on what a model says after prefixes whose truth is known."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from mechmem.data.bounds import Count, Seed
from mechmem.data.errors import InputError
from mechmem.data.folder_lock import only_writer
from mechmem.data.hashes import row_hashes
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, between
from mechmem.detect.detector import Detector
from mechmem.detect.detector_settings import DetectorSettings
from mechmem.detect.features.feature_choice import FeatureChoice, FeatureGroup
from mechmem.detect.identity import model_identity
from mechmem.detect.probes.choose import Candidate
from mechmem.detect.probes.examples import Examples, check_clusters, divide
from mechmem.detect.probes.fit import fit_detector
from mechmem.detect.training.candidates import DetectorMethod, candidates_of, union
from mechmem.detect.training.decoded_parts import DecodedParts, weights_digest
from mechmem.detect.training.training_texts import TrainingTexts, prefix_hashes, training_texts
from mechmem.measure.scores import memorized_other
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public


@public("refuse")
def train_detector(
    model: HookedTransformer,
    memorized: Paragraphs,
    other: Paragraphs,
    *,
    features: Sequence[FeatureGroup] | FeatureGroup | None = None,
    method: DetectorMethod = "auto",
    settings: DetectorSettings | None = None,
    work: str | Path | None = None,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> Detector:
    """Train a detector that notices, while a model decodes, that it recites text it memorized.

    1. Add predictable text to the others: copies whose prefix repeats its first 8 to 16 tokens.
    2. Divide the clusters of near-duplicates into a part to fit probes on, one to calibrate them on, and one for the
       threshold. No cluster is in two parts.
    3. Let the model continue the prefixes of the first two parts greedily, and read features at `settings.ks`. A text
       is recited if it is the whole true continuation, and is not if at most a fifth of the continuation's tokens lead
       it; those between are left out.
    4. Choose a kind of probe and a depth by nested cross-validation over the clusters of the first part, fit one probe
       for each group of steps, and calibrate.
    5. Let the model continue the others of the third part, read the chosen features at every step, and keep the
       statistic of one whole generation of each cluster: the false-alarm bound comes from these.

    Args:
        model: left as it is; hooks on it are refused.
        memorized: paragraphs that the model recites.
        other: paragraphs that it does not recite; at least 1/a - 1 clusters in the third part for a bound of a.
        features: groups of `detection_features`; None: "output", "prefix" (one unembedding of the prompt, before the
            first step) and "residual", with boosting without "residual".
        method: "logistic", "boosting", or "auto": logistic regression on each depth and without any, and boosting on
            the groups of few columns, whichever predicts held-out clusters best.
        settings: None: the defaults.
        work: a folder in which decoded features are kept until the detector is there, so that the same call goes on
            after it was stopped; None: nothing is kept.
        seed: of copies, parts, folds and trees.
        batch_size: paragraphs that decode together; None: chosen for the machine.
        progress: called with (parts of a hundred done, 100).

    Returns:
        The detector; its `notes` say what it was chosen from and how many paragraphs were left out.

    Raises:
        InputError: paragraphs that do not fit the model or each other, no other paragraph, fewer than two clusters in
            a set, too few for three parts, features that the method or the model does not have, NaN states, or work
            that was begun with other settings.
    """
    settings = settings or DetectorSettings()
    _check_sets(model, memorized, other)
    candidates = candidates_of(model, features, method, settings)
    texts = training_texts(memorized, other, settings.predictable, seed)
    check_clusters(texts.memorized, texts.clusters)
    folder = None if work is None else Path(work)
    with contextlib.nullcontext() if folder is None else only_writer(folder):
        parts = DecodedParts(folder, {} if folder is None else _described(model, texts, candidates, settings, seed))
        detector = _Trainer(model, texts, settings, parts, seed, batch_size, progress).train(candidates)
        parts.remove()
    return detector


@dataclass(frozen=True, eq=False)
class _Trainer:
    """What all steps of one training share."""

    model: HookedTransformer
    texts: TrainingTexts
    settings: DetectorSettings
    parts: DecodedParts
    seed: int
    batch_size: int | None
    progress: ProgressLike

    def train(self, candidates: list[Candidate]) -> Detector:
        """Steps 2 to 5."""
        settings, texts = self.settings, self.texts
        shares = (1 - settings.conformal, settings.conformal)
        first, rest = divide(texts.memorized, texts.clusters, shares, self.seed)
        first_texts, rest_texts = texts.select(first), texts.select(rest[~texts.memorized[rest]])
        length = texts.paragraphs.continuation_len
        ks = tuple(k for k in sorted(set(settings.ks)) if k < length)
        if not ks:
            raise InputError(
                f"got settings.ks {settings.ks} for continuations of {length} tokens; need some below {length}"
            )
        choice = union([candidate.choice for candidate in candidates])
        examples, left_out = self._examples(first_texts, choice, ks, (0, 40))
        found: list[int] = []

        def null(chosen: FeatureChoice) -> Examples:
            rows, out = self._examples(rest_texts, chosen, tuple(range(length)), (70, 100))
            found.append(out)
            return rows

        identity = model_identity(self.model)
        # False: no bar of its own beside the whole's.
        report = between(self.progress, 40, 70, 100) or False
        detector = fit_detector(
            examples,
            candidates,
            identity=identity,
            settings=settings,
            null=null,
            seed=self.seed,
            progress=report,
        )
        trained_on = np.concatenate([prefix_hashes(part.paragraphs) for part in (first_texts, rest_texts)])
        notes = dict(detector.notes) | {"left_out": left_out + sum(found)}
        return replace(detector, trained_on=np.unique(trained_on), notes=notes)

    def _examples(
        self, texts: TrainingTexts, choice: FeatureChoice, ks: tuple[int, ...], span: tuple[int, int]
    ) -> tuple[Examples, int]:
        """Decoded texts whose truth is clear, and how many were left out."""
        size, report = self.batch_size, between(self.progress, *span, 100)
        features = self.parts.decode(self.model, texts.paragraphs, choice, ks, batch_size=size, progress=report)
        recites, clear = truth_of(features.em.values, texts.paragraphs.continuation_len)
        if texts.memorized.any():
            _refuse_strangers(recites, texts.memorized)
        return Examples(features, recites, texts.clusters).select(np.flatnonzero(clear)), int((~clear).sum())


def truth_of(
    em: Int[np.ndarray, " paragraph"], length: int
) -> tuple[Bool[np.ndarray, " paragraph"], Bool[np.ndarray, " paragraph"]]:
    """Whether each text is recited, and whether that is clear: it is not where part of the text is right."""
    recites, other = memorized_other(em, length)
    return recites, recites | other


def _check_sets(model: HookedTransformer, memorized: Paragraphs, other: Paragraphs) -> None:
    if len(other) == 0:
        raise InputError(
            "got no other paragraph; need paragraphs that the model does not recite, in at least 4 clusters: a "
            "detector learns from both"
        )
    if len(memorized) == 0:
        raise InputError("got no memorized paragraph; need paragraphs that the model recites, in at least 3 clusters")
    for paragraphs in (memorized, other):
        check_fit(model, paragraphs)


def _refuse_strangers(recites: Bool[np.ndarray, " paragraph"], memorized: Bool[np.ndarray, " paragraph"]) -> None:
    """Refuse sets of which the one is not recited, or the other is, before more is decoded."""
    if not (recites & memorized).any():
        raise InputError(
            f"the model recites none of the {int(memorized.sum())} paragraphs given as memorized that it has "
            "continued; need those it recites: check the prefix length, the model, and that the sets are not swapped"
        )


def _described(
    model: HookedTransformer,
    texts: TrainingTexts,
    candidates: list[Candidate],
    settings: DetectorSettings,
    seed: int,
) -> dict[str, Any]:
    """What decides the decoded features: work goes on only where all of it is the same."""
    return {
        "weights": weights_digest(model),
        "paragraphs": f"{len(texts.paragraphs)}-{np.bitwise_xor.reduce(row_hashes(texts.paragraphs.tokens.numpy())):x}",
        "candidates": [asdict(candidate) for candidate in candidates],
        "settings": asdict(settings),
        "seed": seed,
    }
