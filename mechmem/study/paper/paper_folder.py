"""The work folder of the repeated study: its model, its sets, and what each item found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.assets import bundled_unigram_counts
from mechmem.data.checksums import damaged, writing
from mechmem.data.counts import unigram_counts
from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.spread_sample import spread_sample
from mechmem.data.stored_json import check_types, read_object
from mechmem.model.devices import check_device
from mechmem.model.load import HookedTransformer, load_model
from mechmem.study.paper.model_check import ModelCheck
from mechmem.study.paper.paper_sets import PaperSets, read_sets
from mechmem.study.paper.paper_settings import PaperSettings
from mechmem.study.paper.published_files import holds_published_files, read_published_files
from mechmem.study.paper.rows import ADVICE, Finding, Row, Trap, as_json, from_json

SETS_FILE, SETS_ACCOUNT = "paragraphs.parquet", "paragraphs.json"


class NotPossibleError(InputError):
    """Why an item cannot be measured here, in words: the page shows it, and the other items go on."""


@dataclass
class PaperFolder:
    """The repeated study in a folder.

    Attributes:
        folder: where it lies.
        settings: what decides its numbers.
        device: where its model is loaded; None: a GPU if there is one.
        progress: called with (what is done, done, total) while an item is measured.
    """

    folder: Path
    settings: PaperSettings
    device: str | None = None
    progress: Callable[[str, int, int], None] = field(default=lambda *_: None)

    def __post_init__(self) -> None:
        """Refuse a device that is not here before anything is done for it."""
        check_device(self.device)

    @property
    def seed(self) -> int:
        """Decides every sample, replacement, mask and resample."""
        return self.settings.seed

    @cached_property
    def model(self) -> HookedTransformer:
        """The model with the checkpoint's weights. Leave it as it is."""
        return load_model(self.settings.model, processing="raw", device=self.device)

    @cached_property
    def folded(self) -> HookedTransformer:
        """The same with TransformerLens' default processing, as the study used it. Leave it as it is."""
        return load_model(self.settings.model, processing="folded", device=self.device)

    def at(self, what: str) -> Callable[[int, int], None]:
        """The progress of one part of an item: called with (done, total)."""
        return lambda done, total: self.progress(what, done, total)

    @cached_property
    def sets(self) -> PaperSets:
        """The sets, scored once and kept in the folder."""
        if not (self.folder / SETS_FILE).is_file() or {SETS_FILE, SETS_ACCOUNT} & set(damaged(self.folder)):
            self.store(read_sets(self.settings, self.model, self.at("scoring paragraphs")))
        account = read_object(self.folder / SETS_ACCOUNT, advice=ADVICE)
        types = {"applies": bool, "sentences": list, "source": str, "pairs": bool}
        check_types(account, types, self.folder / SETS_ACCOUNT, advice=ADVICE)
        check = ModelCheck(account["applies"], tuple(map(str, account["sentences"])))
        scored = Paragraphs.load(self.folder / SETS_FILE)
        pairs = None
        if account["pairs"] and self.settings.corpus and holds_published_files(self.settings.corpus):
            pairs = read_published_files(self.settings.corpus).pairs
        return PaperSets(scored, pairs, check, account["source"])

    def store(self, sets: PaperSets) -> None:
        """Keep the sets in the folder."""
        account = {
            "applies": sets.check.applies,
            "sentences": list(sets.check.sentences),
            "source": sets.source,
            "pairs": sets.pairs is not None,
        }
        with self.writing(SETS_FILE, SETS_ACCOUNT):
            with replacing(self.folder / SETS_ACCOUNT) as temporary:
                temporary.write_text(json.dumps(account, indent=1) + "\n")
            sets.scored.save(self.folder / SETS_FILE)

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each token occurs in the bundled training text, or else in the paragraphs, [d_vocab]."""
        if self.settings.model == "bundled" and self.settings.corpus is None:
            return bundled_unigram_counts()
        return unigram_counts(self.sets.scored.tokens.numpy().reshape(-1), self.model.cfg.d_vocab)

    def sample(self, name: str, count: int | None = None, *, distinct: bool = False) -> Paragraphs:
        """A random sample of a set that draws on as many clusters as it can, in the order of the paragraphs.

        Args:
            name: "memorized", "other", or a group of EM: "11-29", "30-49".
            count: at most this many; None: all.
            distinct: no more than one paragraph of a cluster.

        Raises:
            NotPossibleError: the set has fewer than two clusters, so that nothing could be said about the next one.
        """
        members = self.sets.group(name)
        if len(np.unique(members.clusters)) < 2:
            raise NotPossibleError(
                f"the corpus has {len(members)} paragraphs of the set '{name}' in {len(np.unique(members.clusters))} "
                "clusters of near-duplicates; need at least 2: give more text with --corpus or --others"
            )
        rows, seed = np.arange(len(members)), [self.seed, len(name)]
        return members.select(spread_sample(rows, members.clusters, count, seed=seed, distinct=distinct))

    def writing(self, *names: str) -> Any:
        """Be the folder's only writer in a block, and record the checksums of the files that it writes there."""
        return writing(self.folder, *names)

    def save(self, name: str, finding: Finding) -> None:
        """Write an item's NAME.nc and NAME.json, each whole or not at all, the account last."""
        with self.writing(f"{name}.nc", f"{name}.json"):
            (self.folder / f"{name}.json").unlink(missing_ok=True)
            save_netcdf(finding.data, self.folder / f"{name}.nc")
            self._account(name, as_json(finding.rows, finding.traps))

    def leave_out(self, name: str, reason: str) -> None:
        """Write down why an item was not measured."""
        with self.writing(f"{name}.nc", f"{name}.json"):
            (self.folder / f"{name}.nc").unlink(missing_ok=True)
            self._account(name, {"rows": [], "traps": [], "left_out": reason})

    def _account(self, name: str, found: dict[str, Any]) -> None:
        with replacing(self.folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")

    def done(self, name: str) -> bool:
        """Whether an item has its files, undamaged, or a reason to have none."""
        if not (self.folder / f"{name}.json").is_file() or {f"{name}.nc", f"{name}.json"} & set(damaged(self.folder)):
            return False
        return self.left_out(name) is not None or (self.folder / f"{name}.nc").is_file()

    def left_out(self, name: str) -> str | None:
        """Why an item was not measured; None if it was."""
        reason = read_object(self.folder / f"{name}.json", advice=ADVICE).get("left_out")
        return None if reason is None else str(reason)

    def account(self, name: str) -> tuple[tuple[Row, ...], tuple[Trap, ...]]:
        """An item's rows and traps."""
        path = self.folder / f"{name}.json"
        return from_json(read_object(path, advice=ADVICE), path)

    def data(self, name: str) -> xr.Dataset:
        """An item's arrays."""
        return load_netcdf(self.folder / f"{name}.nc", advice=ADVICE, sealed=True)
