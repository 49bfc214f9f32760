"""A study folder: its model, its paragraphs, its results, its edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from mechmem.data.assets import bundled_paragraphs
from mechmem.data.checksums import writing
from mechmem.data.choices import check_choice
from mechmem.data.corpora import read_corpus
from mechmem.data.errors import InputError
from mechmem.data.lengths import check_lengths
from mechmem.data.netcdf import save_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.spread_sample import spread_sample
from mechmem.intervene.baseline import Baseline
from mechmem.model.devices import check_device
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer, load_model
from mechmem.report.study_contents import read_paragraphs, read_result
from mechmem.report.study_files import read_study
from mechmem.report.study_view import study_view
from mechmem.show.fragment import Theme
from mechmem.show.picture import Picture
from mechmem.study.manifest import settings_of
from mechmem.study.saved_edit import SavedEdit
from mechmem.study.settings import StudySettings
from mechmem.study.stage_progress import Parts

if TYPE_CHECKING:
    from mechmem.detect.detector import Detector

DETECTOR = "detector"
SETS = ("memorized", "other")


class Results(Mapping[str, xr.Dataset]):
    """The results in a folder by name, "heads" for heads.nc; each is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> xr.Dataset:
        """One result, in memory.

        Raises:
            KeyError: the study has no result of this name.
            InputError: it is damaged, or not what its stage writes; the sentence names the stage to run again.
        """
        if name not in list(self):
            raise KeyError(f"{name}: the study has {', '.join(self) or 'no result yet'}")
        return read_result(self._folder, f"{name}.nc")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self._folder.glob("*.nc")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Results({', '.join(self)})"


@dataclass
class StudyFolder:
    """A study in a folder: open one with `mechmem.open_study`.

    Attributes:
        folder: where it lies.
        settings: what decides its numbers.
        device: where its model is loaded; None: a GPU if there is one.
        report: called with (what is done, done, total) while a stage runs.
    """

    folder: Path
    settings: StudySettings
    device: str | None = None
    report: Callable[[str, int, int], None] = field(default=lambda *_: None)

    def __post_init__(self) -> None:
        """Refuse a device that is not here before anything is done for it."""
        check_device(self.device)

    def __repr__(self) -> str:
        held = f"results: {', '.join(self.results) or 'none'}; edits: {', '.join(self.edits) or 'none'}"
        return f"StudyFolder({str(self.folder)!r}, model {self.settings.model!r}; {held})"

    def _repr_html_(self) -> str:
        """The linked view; of a study without scored paragraphs, what it is and what to do."""
        try:
            return self.show().html
        except InputError as error:
            return f"<p>{escape(repr(self))}</p><p>{escape(str(error))}</p>"

    def show(self, *, theme: Theme | str = "auto") -> Picture:
        """A table of the paragraphs; of the one that is chosen the text, the loss of each token, heatmaps and heads.

        The study's files alone are read, and its model is not loaded. A notebook shows the same for the study itself.

        Args:
            theme: "auto" follows the notebook or the browser; "light"; "dark".

        Returns:
            A `Picture`: `.save("study.html")` writes one file that loads nothing.

        Raises:
            InputError: no paragraph was scored yet, or a file is damaged.
        """
        check_choice("theme", theme, Theme)
        return study_view(read_study(self.folder), theme=theme)

    @cached_property
    def model(self) -> HookedTransformer:
        """The model that was studied, raw weights, loaded when it is asked for."""
        return load_model(self.settings.model, processing="raw", device=self.device)

    @cached_property
    def beside(self) -> tuple[HookedTransformer | None, HookedTransformer | None]:
        """The oracle and the model of another seed that the settings name, loaded when they are asked for.

        Raises:
            InputError: a model that cannot be loaded.
        """
        names = (self.settings.oracle, self.settings.oracle_scale)
        oracle, scale = (None if name is None else load_model(name, device=self.device) for name in names)
        return oracle, scale

    @cached_property
    def targets_from(self) -> Paragraphs | None:
        """The texts among which targets are chosen; None: all.

        Raises:
            InputError: no such file, or not one of paragraphs.
        """
        path = self.settings.targets_from
        return None if path is None else Paragraphs.load(path)

    @cached_property
    def baseline(self) -> Baseline:
        """What the model makes of the sets, computed once for all its edits."""
        return Baseline(self.model)

    @cached_property
    def paragraphs(self) -> Paragraphs:
        """The scored paragraphs."""
        return read_paragraphs(self.folder)

    @property
    def results(self) -> Results:
        """Results by name: "gradients", "heads", "rare", "attention", "patching", "unlearn", "attacks"."""
        return Results(self.folder)

    @property
    def edits(self) -> dict[str, SavedEdit]:
        """The finished edits by name."""
        folders = sorted(path.parent for path in (self.folder / "edits").glob("*/edit.safetensors"))
        return {folder.name: SavedEdit(folder) for folder in folders}

    @cached_property
    def detector(self) -> Detector:
        """What `mechmem detect` trained.

        Raises:
            InputError: it has trained none yet, or its files are damaged.
        """
        folder = self.folder / DETECTOR
        if not (folder / "detector.json").is_file():
            raise InputError(f"{self.folder}: has no detector yet; train one with `mechmem detect --out {self.folder}`")
        # Only a study with a detector needs scikit-learn.
        from mechmem.detect.detector import Detector

        return Detector.load(folder)

    @cached_property
    def unscored(self) -> Paragraphs:
        """The corpus' paragraphs, known to fit the model."""
        paragraphs = corpus_paragraphs(self.settings, self.model)
        check_fit(self.model, paragraphs)
        return paragraphs

    @property
    def comparable(self) -> bool:
        """Whether both sets hold at least two clusters: splits by cluster and means over others need two."""
        return all(len(self.subset(name, 2, distinct=True)) == 2 for name in SETS)

    def parts(self, weights: Mapping[str, int | float]) -> Parts:
        """The progress of a stage that consists of these parts, with about so much work in each."""
        return Parts(self.report, weights)

    def subset(self, name: str, count: int | None = None, *, distinct: bool = False) -> Paragraphs:
        """A set by name, or a random sample of it that draws on as many clusters as it can.

        With `distinct` there is no more than one paragraph of a cluster, so no two are near-duplicates.
        """
        members = np.flatnonzero(self.paragraphs.column("set") == name)
        clusters = self.paragraphs.column("cluster")[members]
        seed = [self.settings.seed, len(name)]
        return self.paragraphs.select(spread_sample(members, clusters, count, seed=seed, distinct=distinct))

    def save(self, result: xr.Dataset, name: str) -> None:
        """Write one result, whole or not at all, and record its checksum."""
        with self.writing(name):
            save_netcdf(result, self.folder / name)

    def writing(self, *names: str) -> AbstractContextManager[None]:
        """Be the folder's only writer in a block, and record the checksums of the files that it writes there."""
        return writing(self.folder, *names)


def open_study(folder: str | Path, *, device: str | None = None) -> StudyFolder:
    """Open a study that `mechmem run` or `run_study` made.

    Args:
        folder: its folder.
        device: where to load its model; None: a GPU if there is one.

    Returns:
        An object with `results` (by name, each read when it is asked for), `paragraphs`, `model` (loaded when it is
        asked for), `edits` (by name), `detector` and `settings`.

    Raises:
        InputError: no study in the folder, or one that another version wrote.
    """
    return StudyFolder(Path(folder), settings_of(folder), device)


def corpus_paragraphs(settings: StudySettings, model: HookedTransformer) -> Paragraphs:
    """The paragraphs that a study scores, before any score."""
    asked = {"prefix_len": settings.prefix_len, "continuation_len": settings.continuation_len}
    if settings.corpus is not None:
        return read_corpus(settings.corpus, model.tokenizer, limit=settings.limit, seed=settings.seed, **asked)
    if settings.model != "bundled":
        raise InputError(
            f"got no corpus for {settings.model}; the bundled paragraphs are token ids of the bundled model alone: "
            "name text or tokens that the model was trained on with --corpus FILE"
        )
    paragraphs = bundled_paragraphs()
    check_lengths("the bundled paragraphs", paragraphs, **asked)
    return paragraphs.select(np.arange(len(paragraphs))[: settings.limit])
