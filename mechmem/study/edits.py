"""Edits of a study's model: made, saved as small files in its folder, evaluated, attacked and exported."""

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
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.intervene.attack import AttackSizes, attack
from mechmem.intervene.card import edit_card
from mechmem.intervene.edit import edit, with_continuation
from mechmem.intervene.evaluate import evaluate
from mechmem.intervene.loop import Stop
from mechmem.intervene.memorize import memorize
from mechmem.intervene.objectives import OBJECTIVES
from mechmem.intervene.unlearn import unlearn
from mechmem.localize.gradients import weight_gradients
from mechmem.localize.paragraph_gradients import contrastive_gradients
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.worst_pairs import worst_perturbations
from mechmem.model.export import check_exportable, check_target, export
from mechmem.model.load import HookedTransformer
from mechmem.study.damage import OF_MAKING
from mechmem.study.edit_settings import EditSettings
from mechmem.study.folder import StudyFolder
from mechmem.study.saved_edit import SavedEdit
from mechmem.study.sets import HELD_OUT, NEAR, TARGETS, evaluation_sets
from mechmem.study.settings import BUNDLED_RATES
from mechmem.weights.masks import Mask
from mechmem.weights.sparse_edit import save_edit
from mechmem.weights.training import Training


def edit_folder(study: StudyFolder, name: str) -> Path:
    """Where an edit of a study lies.

    Raises:
        InputError: a name that is more than a name.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"the edit's name is {name!r}; need a plain name such as 'top' without slashes")
    return study.folder / "edits" / name


def make_edit(
    study: StudyFolder, name: str, settings: EditSettings, *, resume: bool = False, progress: ProgressLike = None
) -> xr.Dataset:
    """Edit a copy of a study's model and write it to edits/NAME; returns the history.

    The folder holds settings.json, targets.parquet, mask.safetensors (unless all weights may move), history.nc and,
    last, edit.safetensors: the changed weights. While it runs, checkpoint.safetensors.

    Raises:
        InputError: the folder holds an edit, or an interrupted one and `resume` was not asked for or with other
            settings; or what the method itself refuses.
    """
    edit_folder(study, name)
    with study.writing(*(f"edits/{name}/{file}" for file in OF_MAKING)):
        return _made_edit(study, name, settings, resume=resume, progress=progress)


def _made_edit(
    study: StudyFolder, name: str, settings: EditSettings, *, resume: bool, progress: ProgressLike
) -> xr.Dataset:
    folder = edit_folder(study, name)
    settings = _with_known_rate(study, settings)
    _check_free(folder, settings, resume)
    targets, keep, corrupt = _paragraphs(study, settings)
    mask = _mask(study.model, targets if corrupt is None else corrupt, keep, settings)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "settings.json") as temporary:
        temporary.write_text(_json(settings))
    training = _training(settings, folder / "checkpoint.safetensors", resume)
    common: dict[str, Any] = {"mask": mask, "training": training, "seed": settings.seed, "progress": progress}
    if settings.kind == "unlearn":
        stop = Stop(target_em=settings.target_em, keep_kl=settings.keep_kl)
        edited, history = unlearn(study.model, targets, keep, method=settings.method, stop=stop, **common)
    elif corrupt is not None:
        edited, history = edit(study.model, targets, corrupt, keep, **common)
    else:
        edited, history = memorize(study.model, targets, keep, **common)
    targets.save(folder / "targets.parquet")
    if mask is not None:
        mask.save(folder / "mask.safetensors")
    save_netcdf(history, folder / "history.nc")
    save_edit(study.model, edited, folder / "edit.safetensors", {"settings": json.dumps(asdict(settings))})
    return history


def _with_known_rate(study: StudyFolder, settings: EditSettings) -> EditSettings:
    """For the bundled model, the learning rate that was chosen for it, where none was given."""
    if settings.learning_rate is not None or study.settings.model != "bundled" or settings.mask is not None:
        return settings
    what = settings.method if settings.kind == "unlearn" else settings.kind
    return replace(settings, learning_rate=BUNDLED_RATES.get((what, settings.weights)))


def _check_free(folder: Path, settings: EditSettings, resume: bool) -> None:
    """Refuse a folder with another edit, finished or begun."""
    if (folder / "edit.safetensors").exists():
        raise InputError(f"{folder}: holds an edit already; choose another --name, or remove the folder")
    begun = folder / "settings.json"
    if resume and begun.exists() and begun.read_text() != _json(settings):
        raise InputError(
            f"{begun}: the edit was begun with other settings; resume with these, or choose another --name"
        )
    if not resume and (folder / "checkpoint.safetensors").exists():
        raise InputError(f"{folder}: holds an interrupted edit; continue it with --resume, or remove the folder")


def _json(settings: EditSettings) -> str:
    return json.dumps(asdict(settings), indent=2) + "\n"


def _training(settings: EditSettings, checkpoint: Path, resume: bool) -> Training:
    names = ("steps", "learning_rate", "batch_size", "weight_decay", "max_norm", "keep_weight")
    given = {name: getattr(settings, name) for name in names}
    if settings.kind == "unlearn" and settings.method not in OBJECTIVES:
        # A method that drops has no state to resume from.
        return Training(**given)
    return Training(**given, checkpoint=checkpoint, resume=resume)


def evaluate_edit(study: StudyFolder, name: str, *, progress: ProgressLike = None) -> xr.Dataset:
    """Measure what an edit cost on every set; writes costs.nc beside it.

    Raises:
        InputError: there is no such edit, or it is of other weights.
    """
    saved = saved_edit(study, name)
    with study.writing(f"edits/{name}/costs.nc"):
        return _evaluated(study, saved, progress)


def _evaluated(study: StudyFolder, saved: SavedEdit, progress: ProgressLike) -> xr.Dataset:
    sets, _ = evaluation_sets(study)
    own = {TARGETS: saved.targets} | {label: chosen for label, chosen in sets.items() if label != TARGETS}
    costs = evaluate(
        study.model,
        saved.apply(study.model),
        own,
        baseline=study.baseline,
        seed=saved.settings["seed"],
        progress=as_callback(progress, "evaluate_edit"),
    )
    save_netcdf(costs, saved.folder / "costs.nc")
    return costs


def attack_edit(study: StudyFolder, name: str, *, progress: ProgressLike = None) -> xr.Dataset:
    """Try to get back what an edit removed; writes attacks.nc beside it.

    Raises:
        InputError: no such edit, one that removed nothing on purpose, or a study without other memorized paragraphs.
    """
    saved = saved_edit(study, name)
    sets, _ = evaluation_sets(study)
    if saved.settings["kind"] == "memorize":
        raise InputError(f"{name}: is an edit that added paragraphs; attacks need one that removed or rewrote some")
    if HELD_OUT not in sets:
        raise InputError(f"{study.folder}: all memorized paragraphs are targets; attacks need others: scan more text")
    with study.writing(f"edits/{name}/attacks.nc"):
        return _attacked(study, saved, sets, progress)


def _attacked(study: StudyFolder, saved: SavedEdit, sets: dict[str, Paragraphs], progress: ProgressLike) -> xr.Dataset:
    settings = study.settings
    found = attack(
        study.model,
        saved.apply(study.model),
        saved.targets,
        sets[HELD_OUT],
        near=sets.get(NEAR),
        sizes=AttackSizes(
            draws=settings.attack_prefixes, samples=settings.attack_samples, steps=settings.relearning_steps
        ),
        baseline=study.baseline,
        seed=saved.settings["seed"],
        progress=as_callback(progress, "attack_edit"),
    )
    save_netcdf(found, saved.folder / "attacks.nc")
    return found


def export_edit(study: StudyFolder, name: str, out: str | Path) -> None:
    """Write the edited model as a Hugging Face folder, with a card that says what was done and what it cost.

    Raises:
        InputError: no such edit, a folder with files in it, or a model that `export` refuses.
    """
    check_target(out)  # loading the model takes seconds
    saved = saved_edit(study, name)
    check_exportable(study.model, out)
    edited = saved.apply(study.model)
    card = edit_card(
        study.model, edited, saved.targets, settings=saved.settings, history=saved.history, costs=saved.costs
    )
    export(edited, out, card=card)


def cannot_export(model: HookedTransformer) -> str | None:
    """Why edits of a model cannot be exported, or None if they can."""
    try:
        check_exportable(model)
    except InputError as error:
        return str(error)
    return None


def can_attack(study: StudyFolder, saved: SavedEdit) -> bool:
    """Whether there is something to get back, and other memorized paragraphs for it."""
    return saved.settings["kind"] != "memorize" and HELD_OUT in evaluation_sets(study)[0]


def outcome(kind: str, history: xr.Dataset) -> str:
    """A sentence on whether an edit did what it was made for, by at least a token of mean EM."""
    name = "memorized_em" if kind == "unlearn" else "target_em"
    before, after = float(history[name][0]), float(history.attrs[f"final_{name}"])
    what = {"unlearn": "the targets", "edit": "the new text", "memorize": "the paragraphs"}[kind]
    moved = f"the mean EM of {what} went from {before:.1f} to {after:.1f} tokens in {history.sizes['step']} steps"
    if (before - after if kind == "unlearn" else after - before) >= 1:
        return moved
    return f"the edit {'removed' if kind == 'unlearn' else 'taught'} nothing: {moved}"


def saved_edit(study: StudyFolder, name: str) -> SavedEdit:
    """A finished edit by name.

    Raises:
        InputError: there is none; the sentence names those that there are.
    """
    folder, known = edit_folder(study, name), study.edits
    if name not in known:
        raise InputError(
            f"{folder}: holds no finished edit; need one of {', '.join(known) or 'none yet'}: make one with `mechmem "
            "unlearn --name NAME`, `mechmem edit` or `mechmem memorize`"
        )
    return known[name]


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
        return Mask.load(settings.mask)
    if settings.weights == "all":
        return None
    score: Callable[[], dict[str, torch.Tensor]] = (
        (lambda: contrastive_gradients(model, targets, keep, method="fisher"))
        if settings.weights == "fisher"
        else (lambda: weight_gradients(model, targets))
    )
    top = Mask.top(score(), fraction=settings.fraction)
    return Mask.random_like(top, seed=settings.seed) if settings.weights == "random" else top
