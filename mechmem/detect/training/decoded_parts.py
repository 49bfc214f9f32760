"""Features decoded in parts, each kept in a folder if there is one: a process that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.files import foreign_entries, remove_partials, replacing
from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, between
from mechmem.data.settings_match import refuse_other_settings
from mechmem.data.stored_json import check_types, read_object
from mechmem.detect.decoding.decoding_settings import DecodingSettings
from mechmem.detect.features.detection_features import features_of_choice
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.model.load import HookedTransformer

# Paragraphs of a part. Parts are the same with and without a folder, and so are their features.
PART = 128
PLAN = "detector-work.json"
ADVICE = "choose another folder, or remove this one"


class DecodedParts:
    """Decodes paragraphs part by part.

    Args:
        folder: where parts are kept; None: nowhere. The caller holds its lock.
        described: what decides the features, for work that is to go on with nothing else.

    Raises:
        InputError: the folder holds work of other settings, or files of something else.
    """

    def __init__(self, folder: Path | None, described: Mapping[str, Any]) -> None:
        """Begin, or find what was begun."""
        self.folder = folder
        if folder is None:
            return
        plan = folder / PLAN
        if plan.is_file():
            was = read_object(plan, advice=ADVICE)
            check_types(was, {"settings": dict}, plan, advice=ADVICE)
            refuse_other_settings(folder, was["settings"], described, advice=ADVICE)
        elif foreign := foreign_entries(folder):
            raise InputError(
                f"{folder}: holds files of something else ({foreign[0].name}), and training keeps its work there; "
                "choose another folder"
            )
        else:
            with replacing(plan) as temporary:
                temporary.write_text(json.dumps({"settings": dict(described)}, default=str))
        (folder / "parts").mkdir(exist_ok=True)
        for place in (folder, folder / "parts"):
            remove_partials(place)

    def decode(
        self,
        model: HookedTransformer,
        paragraphs: Paragraphs,
        choice: FeatureChoice,
        ks: tuple[int, ...],
        *,
        batch_size: int | None,
        progress: ProgressLike,
    ) -> xr.Dataset:
        """Features at every one of `ks`; parts that the folder holds are read."""
        digest = hashlib.sha256(json.dumps([asdict(choice), ks, paragraphs.ids.tolist()]).encode()).hexdigest()[:12]
        decoding, found, total = DecodingSettings(ks=ks), [], len(paragraphs)
        for number, start in enumerate(range(0, total, PART)):
            stop = min(start + PART, total)
            file = None if self.folder is None else self.folder / "parts" / f"{digest}-{number:05d}.nc"
            if file is not None and file.is_file():
                found.append(load_netcdf(file, ("said", "em"), advice="remove it, and train again", sealed=True))
                continue
            part = paragraphs[start:stop]
            report = between(progress, start, stop, total)
            found.append(features_of_choice(model, part, choice, decoding, batch_size, report))
            if file is not None:
                save_netcdf(found[-1], file)
        shared = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "override"}
        return xr.concat(found, "paragraph", **shared)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def remove(self) -> None:
        """Remove what was kept, when the detector is there."""
        if self.folder is not None:
            shutil.rmtree(self.folder / "parts", ignore_errors=True)
            (self.folder / PLAN).unlink(missing_ok=True)


def weights_digest(model: HookedTransformer) -> str:
    """Of every weight: an edited model has another one."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
