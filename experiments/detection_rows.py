"""The rows of the detection experiment, decoded once and kept: every later step reads files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import xarray as xr
from detection_sets import Truth, halves, training_text, truth, with_ease
from detection_texts import FAMILIES, predictable
from samples import shuffled

import mechmem as mm
from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.detect.decoding.decoding_settings import DecodingSettings
from mechmem.detect.features.text_features import hashed_counts
from mechmem.model.load import HookedTransformer

# Rows decoded between two saves, and between two words about it.
PART = 512
GROUPS = ("output", "prefix", "residual", "lens", "heads", "neurons")
# Columns that the rows keep; `ease` columns are added.
KEPT = ("id", "source", "cluster", "seen", "count", "text")


@dataclass(frozen=True)
class Rows:
    """Paragraphs, what the model says after their prefixes, and what that is.

    Attributes:
        paragraphs: those of the bundled model, then predictable texts; with the columns of `with_ease`.
        features: of every step, [paragraph, k, ...].
        truth: of each row; predictable texts are not in it.
        predictable: rows of predictable texts, written for this experiment.
        taught: predictable texts of families that detectors may be trained on.
        reserved: rows of clusters that are always trained on, for neurons are chosen on them.
        corpus: the training text.
    """

    paragraphs: mm.Paragraphs
    features: xr.Dataset
    truth: Truth
    predictable: np.ndarray
    taught: np.ndarray
    reserved: np.ndarray
    corpus: list[np.ndarray]

    @property
    def recites(self) -> np.ndarray:
        """Rows that recite."""
        return self.truth.recites & ~self.predictable

    @property
    def other(self) -> np.ndarray:
        """Rows that say what no training text says."""
        return self.truth.other & ~self.predictable

    @property
    def clusters(self) -> np.ndarray:
        """Each row's cluster."""
        return self.paragraphs.clusters


def open_rows(settings: Any, model: HookedTransformer, groups: Sequence[str]) -> Rows:
    """Write, decode and label all rows, or read what was done before.

    Args:
        settings: of the experiment.
        model: the bundled model.
        groups: of features, those of `GROUPS` that a detector reads.
    """
    corpus = training_text(model)
    work = settings.out / "rows"
    paragraphs = _paragraphs(settings, model, corpus, work / "paragraphs.parquet")
    reserved = halves(paragraphs.clusters, 77, settings.reserved)
    wanted = [group for group in GROUPS if group in {*groups, "output", "prefix"}]
    neurons = None
    if "neurons" in wanted:
        neurons = _neurons(settings, model, paragraphs, reserved, work / "neurons.nc")
    features = decoded(model, paragraphs, work, groups=wanted, neurons=neurons, counts=mm.bundled_unigram_counts())
    kinds = paragraphs.column("source")
    said = np.concatenate([paragraphs.prefix.numpy(), features.said.values], 1)
    ks = tuple(features.k.values.tolist())
    features["text"] = (("paragraph", "k", "bucket"), hashed_counts(said, paragraphs.prefix_len, ks))
    # What is matched on in the harder match.
    paragraphs = paragraphs.with_columns(prefix_nll=features.prefix.sel(prefix_statistic="mean_nll").values)
    written = np.array([kind.startswith("predictable") for kind in kinds])
    taught = np.isin(kinds, [f"predictable: {family}" for family in list(FAMILIES)[::2]])
    found = truth(features.em.values, features.said.values, corpus)
    return Rows(paragraphs, features, found, written, taught, reserved & ~written, corpus)


def decoded(
    model: HookedTransformer,
    paragraphs: mm.Paragraphs,
    work: Path,
    *,
    groups: Sequence[str],
    ks: tuple[int, ...] | None = None,
    neurons: Any = None,
    counts: Any = None,
    **decoding: Any,
) -> xr.Dataset:
    """Features of paragraphs, a part at a time, each part kept in a file.

    Args:
        model: that decodes.
        paragraphs: prefixes.
        work: folder of the parts.
        groups: of features.
        ks: steps; None: every one.
        neurons: of the group "neurons".
        counts: of tokens, for the heads' attention to rare ones.
        **decoding: other settings of decoding.
    """
    length = decoding.get("max_new_tokens") or paragraphs.continuation_len
    how = DecodingSettings(ks=tuple(range(length)) if ks is None else ks, **decoding)
    chosen: dict[str, Any] = {"features": tuple(groups), "decoding": how}
    chosen |= {"neurons": neurons} if "neurons" in groups else {}
    chosen |= {"counts": counts} if "heads" in groups else {}
    parts = []
    for start in range(0, len(paragraphs), PART):
        path = work / f"part-{start:05}.nc"
        if not path.is_file():
            save_netcdf(mm.detection_features(model, paragraphs[start : start + PART], **chosen), path)
            print(f"decoded {min(start + PART, len(paragraphs))} of {len(paragraphs)} rows: {work.name}", flush=True)
        parts.append(load_netcdf(path))
    return concatenated(parts)


def concatenated(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Features of paragraphs, one after the other."""
    how: Any = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "override"}
    return xr.concat(list(parts), "paragraph", **how)


def _paragraphs(settings: Any, model: HookedTransformer, corpus: list[np.ndarray], path: Path) -> mm.Paragraphs:
    if path.is_file():
        return mm.Paragraphs.load(path)
    bundled = mm.bundled_paragraphs()
    if settings.candidates is not None:
        bundled = shuffled(bundled, 0)[: settings.candidates]
    rows = joined([bundled, predictable(model, corpus, settings.predictable)])
    rows = with_ease(model, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.save(path)
    return rows


def joined(parts: Sequence[mm.Paragraphs]) -> mm.Paragraphs:
    """Paragraphs of one length, one after the other, with the columns `KEPT`."""
    table: dict[str, list[Any]] = {name: [] for name in KEPT}
    for part in parts:
        assert part.table is not None
        for name in KEPT:
            table[name] += list(part.table[name])
    tokens = torch.cat([part.tokens for part in parts])
    return mm.Paragraphs(tokens, parts[0].prefix_len, datasets.Dataset.from_dict(table))


def _neurons(
    settings: Any, model: HookedTransformer, paragraphs: mm.Paragraphs, reserved: np.ndarray, path: Path
) -> list[tuple[int, int]]:
    """Neurons that recitations of the reserved clusters depend on most, by one of the scoreboard's better methods."""
    if not path.is_file():
        pool = paragraphs.select(reserved)
        em = mm.score(model, pool).em.values
        memorized = pool.select(em == pool.continuation_len)[: settings.localized]
        others = pool.select(em <= pool.continuation_len // 5)[: settings.localized]
        save_netcdf(mm.localize_neurons(model, memorized, others, method=settings.localizer).to_dataset(), path)
    return mm.top_neurons(load_netcdf(path).score, settings.neuron_share)
