"""Making an edit of a study's model: saved as small files, and continued where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.data.inputs import list_inputs
from mechmem.data.netcdf import save_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike
from mechmem.data.settings_match import refuse_other_settings
from mechmem.data.stored_json import read_object
from mechmem.intervene.descent_methods import OBJECTIVES
from mechmem.intervene.edit import edit, with_continuation
from mechmem.intervene.loop import Stop
from mechmem.intervene.memorize import memorize
from mechmem.intervene.unlearn import unlearn
from mechmem.localize.gradients import weight_gradients
from mechmem.localize.paragraph_gradients import contrastive_gradients
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.worst_pairs import worst_perturbations
from mechmem.model.load import HookedTransformer
from mechmem.study.damage import OF_MAKING
from mechmem.study.edit_settings import EditSettings, check_edit_name
from mechmem.study.folder import StudyFolder
from mechmem.study.sets import TARGETS, evaluation_sets
from mechmem.study.settings import BUNDLED_RATES
from mechmem.weights.masked_weights import check_mask
from mechmem.weights.masks import Mask
from mechmem.weights.sparse_edit import save_edit
from mechmem.weights.training import Training

SETTINGS, CHECKPOINT, EDIT = "settings.json", "checkpoint.safetensors", "edit.safetensors"


def edit_folder(study: StudyFolder, name: str) -> Path:
    """Where an edit of a study lies.

    Raises:
        InputError: a name that is more than a name.
    """
    check_edit_name(name)
    return study.folder / "edits" / name


def make_edit(study: StudyFolder, name: str, settings: EditSettings, *, progress: ProgressLike = None) -> xr.Dataset:
    """Edit a copy of a study's model and write it to edits/NAME; returns the history.

    The folder holds settings.json, targets.parquet, mask.safetensors (unless all weights may move), history.nc and,
    last, edit.safetensors: the changed weights. While it runs, checkpoint.safetensors. An edit that was interrupted
    goes on from there when it is made again with the same settings, and ends with the same weights.

    Raises:
        InputError: the folder holds an edit, or an interrupted one with other settings; or what the method itself
            refuses, and then the folder is as it was.
    """
    folder = edit_folder(study, name)
    with study.writing(*(f"edits/{name}/{file}" for file in OF_MAKING)):
        settings = _with_known_rate(study, settings)
        begun = _begun(folder, settings)
        targets, keep, corrupt = _paragraphs(study, settings)
        mask = _mask(study.model, targets if corrupt is None else corrupt, keep, settings)
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / SETTINGS) as temporary:
            temporary.write_text(_json(settings))
        try:
            edited, history = _edited(study.model, folder, settings, (targets, keep, corrupt), mask, begun, progress)
        except InputError:
            if not (folder / CHECKPOINT).exists():
                (folder / SETTINGS).unlink()
                if new:
                    folder.rmdir()
            raise
        targets.save(folder / "targets.parquet")
        if mask is not None:
            mask.save(folder / "mask.safetensors")
        save_netcdf(history, folder / "history.nc")
        save_edit(study.model, edited, folder / EDIT, {"settings": json.dumps(asdict(settings))})
        return history


def check_files(settings: EditSettings) -> None:
    """Refuse files that an edit names and that cannot be read, before anything is computed.

    Raises:
        InputError: says which file, and what is wrong with it.
    """
    if settings.mask is not None:
        Mask.load(settings.mask)
    if settings.paragraphs is not None:
        list_inputs(settings.paragraphs)
        Paragraphs.load(settings.paragraphs)


def _begun(folder: Path, settings: EditSettings) -> bool:
    """Whether the folder holds this edit, interrupted; anything but that and nothing is refused."""
    if (folder / EDIT).exists():
        raise InputError(f"{folder}: holds an edit already; choose another --name, or remove the folder")
    if not (folder / CHECKPOINT).exists():
        # Settings alone are of an edit that was stopped before its first step: nothing is lost with them.
        return False
    advice = "repeat these to continue, choose another --name, or remove the folder"
    was = read_object(folder / SETTINGS, advice="remove the folder to begin again")
    refuse_other_settings(folder, was, asdict(settings), advice=advice)
    return True


def _edited(
    model: HookedTransformer,
    folder: Path,
    settings: EditSettings,
    sets: tuple[Paragraphs, Paragraphs, Paragraphs | None],
    mask: Mask | None,
    begun: bool,
    progress: ProgressLike,
) -> tuple[HookedTransformer, xr.Dataset]:
    targets, keep, corrupt = sets
    training = _training(settings, folder / CHECKPOINT, begun)
    common: dict[str, Any] = {"mask": mask, "training": training, "seed": settings.seed, "progress": progress}
    if settings.kind == "unlearn":
        goal = float(targets.continuation_len // 5) if settings.target_em is None else settings.target_em
        stop = Stop(target_em=goal, keep_kl=settings.keep_kl)
        return unlearn(model, targets, keep, method=settings.method, stop=stop, **common)
    if corrupt is not None:
        return edit(model, targets, corrupt, keep, **common)
    return memorize(model, targets, keep, **common)


def _with_known_rate(study: StudyFolder, settings: EditSettings) -> EditSettings:
    """For the bundled model, the learning rate that was chosen for it, where none was given."""
    if settings.learning_rate is not None or study.settings.model != "bundled" or settings.mask is not None:
        return settings
    what = settings.method if settings.kind == "unlearn" else settings.kind
    return replace(settings, learning_rate=BUNDLED_RATES.get((what, settings.weights)))


def _json(settings: EditSettings) -> str:
    return json.dumps(asdict(settings), indent=2) + "\n"


def _training(settings: EditSettings, checkpoint: Path, resume: bool) -> Training:
    names = ("steps", "learning_rate", "batch_size", "weight_decay", "max_norm", "keep_weight", "null_space")
    given = {name: getattr(settings, name) for name in names}
    if settings.kind == "unlearn" and settings.method not in OBJECTIVES:
        # A method that drops has no state to resume from.
        return Training(**given)
    return Training(**given, checkpoint=checkpoint, resume=resume)


def _paragraphs(study: StudyFolder, settings: EditSettings) -> tuple[Paragraphs, Paragraphs, Paragraphs | None]:
    """What shall change, what shall not, and what an edit shall say instead."""
    sets, keep = evaluation_sets(study)
    if settings.kind == "memorize":
        if settings.paragraphs is None:
            return sets["other"].select(np.arange(1)), keep, None
        list_inputs(settings.paragraphs)  # says what is wrong with the path
        return Paragraphs.load(settings.paragraphs), keep, None
    targets = sets[TARGETS]
    if settings.kind == "unlearn":
        return targets, keep, None
    if settings.text is None:
        clean, corrupt = worst_perturbations(
            study.model, targets, perturb_prefix(study.model, targets, seed=settings.seed)
        )
        return clean, keep, corrupt
    if study.model.tokenizer is None:
        raise InputError("the model has no tokenizer, so a text cannot be given; leave --text out")
    ids = torch.tensor(study.model.tokenizer.encode(settings.text))
    length = targets.continuation_len
    if len(ids) < length:
        raise InputError(f"the text has {len(ids)} tokens; need at least the {length} of a continuation: extend it")
    return targets, keep, with_continuation(targets, ids[:length])


def _mask(model: HookedTransformer, targets: Paragraphs, keep: Paragraphs, settings: EditSettings) -> Mask | None:
    if settings.mask is not None:
        mask = Mask.load(settings.mask)
        check_mask(model, mask)
        return mask
    if settings.weights == "all":
        return None
    score: Callable[[], dict[str, torch.Tensor]] = (
        (lambda: contrastive_gradients(model, targets, keep, method="fisher"))
        if settings.weights == "fisher"
        else (lambda: weight_gradients(model, targets))
    )
    top = Mask.top(score(), fraction=settings.fraction)
    return Mask.random_like(top, seed=settings.seed) if settings.weights == "random" else top
