"""One study folder: its model, its paragraphs, its samples, its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from mechmem.data.assets import bundled_paragraphs
from mechmem.data.corpora import read_corpus
from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer, load_model
from mechmem.study.settings import Settings

SETS = ("memorized", "other")


@dataclass
class StudyFolder:
    """One study folder while its stages run."""

    folder: Path
    settings: Settings
    device: str | None = None
    progress: Progress = field(default=lambda *_: None)

    @cached_property
    def model(self) -> HookedTransformer:
        """The model, raw weights, loaded on first use."""
        return load_model(self.settings.model, processing="raw", device=self.device)

    @cached_property
    def unscored(self) -> Paragraphs:
        """The corpus' paragraphs, known to fit the model."""
        paragraphs = corpus_paragraphs(self.settings, self.model)
        check_fit(self.model, paragraphs)
        return paragraphs

    @cached_property
    def paragraphs(self) -> Paragraphs:
        """The scored paragraphs."""
        return Paragraphs.load(self.folder / "paragraphs.parquet")

    @property
    def comparable(self) -> bool:
        """Whether both sets hold at least two clusters: splits by cluster and means over others need two."""
        return all(len(self.subset(name, 2, distinct=True)) == 2 for name in SETS)

    def subset(self, name: str, count: int | None = None, *, distinct: bool = False) -> Paragraphs:
        """A set by name, or a random sample of it that draws on as many clusters as it can.

        With `distinct` there is no more than one paragraph of a cluster, so no two are near-duplicates.
        """
        members = np.flatnonzero(self.paragraphs.column("set") == name)
        members = np.random.default_rng([self.settings.seed, len(name)]).permutation(members)
        labels = pd.Series(self.paragraphs.column("cluster")[members])
        turn = labels.groupby(labels).cumcount().to_numpy()
        order = np.argsort(turn, kind="stable")[: int((turn == 0).sum()) if distinct else len(turn)]
        return self.paragraphs.select(np.sort(members[order[:count]]))

    def save(self, result: xr.Dataset, name: str) -> None:
        """Write one result, whole or not at all."""
        with replacing(self.folder / name) as temporary:
            result.to_netcdf(temporary, engine="h5netcdf")


def corpus_paragraphs(settings: Settings, model: HookedTransformer) -> Paragraphs:
    """The paragraphs that a study scores, before any score."""
    if settings.corpus is not None:
        return read_corpus(settings.corpus, model.tokenizer, limit=settings.limit, seed=settings.seed)
    if settings.model != "bundled":
        raise InputError(
            f"no corpus came for {settings.model}; the bundled paragraphs are token ids of the bundled model alone: "
            "name text or tokens that the model was trained on with --corpus FILE"
        )
    paragraphs = bundled_paragraphs()
    return paragraphs.select(np.arange(len(paragraphs))[: settings.limit])
