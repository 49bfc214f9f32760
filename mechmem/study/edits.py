"""Edits of a study's model: made, kept as small files beside the study, judged, and shipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.data.inputs import list_inputs
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.intervene.attack import attack
from mechmem.intervene.card import edit_card
from mechmem.intervene.edit import edit, with_continuation
from mechmem.intervene.evaluate import evaluate
from mechmem.intervene.loop import Stop
from mechmem.intervene.memorize import memorize
from mechmem.intervene.objectives import OBJECTIVES
from mechmem.intervene.unlearn import Method, unlearn
from mechmem.localize.gradients import weight_gradients
from mechmem.localize.paragraph_gradients import contrastive_gradients
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.worst_pairs import worst_perturbations
from mechmem.model.export import export
from mechmem.model.load import HookedTransformer
from mechmem.study.folder import StudyFolder
from mechmem.study.unlearning import evaluation_sets
from mechmem.weights.masks import Mask
from mechmem.weights.sparse_edit import load_edit, save_edit
from mechmem.weights.training import Training

Kind = Literal["unlearn", "edit", "memorize"]
Weights = Literal["top", "fisher", "random", "all"]


@dataclass(frozen=True)
class EditSettings:
    """Everything that decides an edit, beside its study.

    Attributes:
        kind: unlearn the study's targets, edit them to say another text, or memorize paragraphs that it does not know.
        method: of `unlearn`.
        weights: those with the largest gradient (top), the largest ratio to the keep set's (fisher), as many random
            ones, or all.
        mask: a file that `Mask.save` wrote, instead of `weights`.
        fraction: share of the attention and MLP weights.
        steps: at most this many.
        learning_rate: of AdamW.
        keep_weight: of the term that holds the keep set.
        seed: masks and orders.
        target_em: unlearning ends when the targets' mean EM is as low as this.
        keep_kl: unlearning ends before KL on the keep set passes this, nats a token.
        text: what an edit shall say instead; None: what the model says after its worst single-token perturbation.
        paragraphs: a file of paragraphs to memorize, token ids as `Paragraphs.load` reads them; None: one `other` one.
    """

    kind: Kind = "unlearn"
    method: Method = "contrastive"
    weights: Weights = "top"
    mask: str | None = None
    fraction: float = 0.001
    steps: int = 30
    learning_rate: float = 1e-3
    keep_weight: float = 1.0
    seed: int = 0
    target_em: float | None = None
    keep_kl: float | None = None
    text: str | None = None
    paragraphs: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("kind", Kind), ("weights", Weights)):
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"{name} is {getattr(self, name)!r}; need one of {', '.join(get_args(choices))}")


def edit_folder(run: StudyFolder, name: str) -> Path:
    """Where an edit of a study lies.

    Raises:
        InputError: a name that is more than a name.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"the edit's name is {name!r}; need a plain name such as 'top' without slashes")
    return run.folder / "edits" / name


def make_edit(
    run: StudyFolder, name: str, settings: EditSettings, *, resume: bool = False, progress: Progress | None = None
) -> xr.Dataset:
    """Edit a copy of a study's model and write it to edits/NAME; returns the history.

    The folder holds settings.json, targets.parquet, mask.safetensors (unless all weights may move), history.nc and,
    last, edit.safetensors: the changed weights. While it runs, checkpoint.safetensors.

    Raises:
        InputError: the folder holds an edit, or an interrupted one and `resume` was not asked for or with other
            settings; or what the method itself refuses.
    """
    folder = edit_folder(run, name)
    if (folder / "edit.safetensors").exists():
        raise InputError(f"{folder}: holds an edit already; choose another --name, or remove the folder")
    written = json.dumps(asdict(settings), indent=2) + "\n"
    begun = folder / "settings.json"
    if resume and begun.exists() and begun.read_text() != written:
        raise InputError(
            f"{begun}: the edit was begun with other settings; resume with these, or choose another --name"
        )
    if not resume and (folder / "checkpoint.safetensors").exists():
        raise InputError(f"{folder}: holds an interrupted edit; go on with --resume, or remove the folder")
    targets, keep, corrupt = _paragraphs(run, settings)
    mask = _mask(run.model, targets if corrupt is None else corrupt, keep, settings)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(begun) as temporary:
        temporary.write_text(written)
    dropping = settings.kind == "unlearn" and settings.method not in OBJECTIVES
    training = Training(steps=settings.steps)
    if not dropping:
        training = replace(
            training,
            learning_rate=settings.learning_rate,
            keep_weight=None if settings.method == "ascent" else settings.keep_weight,
            checkpoint=folder / "checkpoint.safetensors",
            resume=resume,
        )
    common: dict[str, Any] = {"mask": mask, "training": training, "seed": settings.seed, "progress": progress}
    if settings.kind == "unlearn":
        stop = Stop(target_em=settings.target_em, keep_kl=settings.keep_kl)
        edited, history = unlearn(run.model, targets, keep, method=settings.method, stop=stop, **common)
    elif corrupt is not None:
        edited, history = edit(run.model, targets, corrupt, keep, **common)
    else:
        edited, history = memorize(run.model, targets, keep, **common)
    targets.save(folder / "targets.parquet")
    if mask is not None:
        mask.save(folder / "mask.safetensors")
    with replacing(folder / "history.nc") as temporary:
        history.to_netcdf(temporary, engine="h5netcdf")
    save_edit(run.model, edited, folder / "edit.safetensors", {"settings": json.dumps(asdict(settings))})
    return history


def evaluate_edit(run: StudyFolder, name: str, *, attacks: bool = True, progress: Progress | None = None) -> xr.Dataset:
    """Measure what an edit cost and whether its targets are gone; writes costs.nc and attacks.nc beside it.

    Raises:
        InputError: there is no such edit, or it is of other weights.
    """
    folder = edit_folder(run, name)
    edited, targets, settings = _open(run, folder)
    sets, _ = evaluation_sets(run)
    own = {"targets": targets} | {label: s for label, s in sets.items() if label != "targeted memorized"}
    costs = evaluate(run.model, edited, own, seed=settings.seed)
    with replacing(folder / "costs.nc") as temporary:
        costs.to_netcdf(temporary, engine="h5netcdf")
    others = sets.get("held-out memorized")
    if attacks and settings.kind != "memorize" and others is not None:
        near = sets.get("near-duplicates")
        found = attack(run.model, edited, targets, others, near=near, seed=settings.seed, progress=progress)
        with replacing(folder / "attacks.nc") as temporary:
            found.to_netcdf(temporary, engine="h5netcdf")
    return costs


def export_edit(run: StudyFolder, name: str, out: str | Path) -> None:
    """Write the edited model as a Hugging Face folder, with a card that says what was done and what it cost.

    Raises:
        InputError: no such edit, a folder with files in it, or a model that `export` refuses.
    """
    folder = edit_folder(run, name)
    edited, targets, settings = _open(run, folder)
    history = xr.load_dataset(folder / "history.nc", engine="h5netcdf")
    costs = folder / "costs.nc"
    known = xr.load_dataset(costs, engine="h5netcdf") if costs.is_file() else None
    card = edit_card(run.model, edited, targets, settings=asdict(settings), history=history, costs=known)
    export(edited, out, card=card)


def _open(run: StudyFolder, folder: Path) -> tuple[HookedTransformer, Paragraphs, EditSettings]:
    if not (folder / "edit.safetensors").is_file():
        known = sorted(path.parent.name for path in folder.parent.glob("*/edit.safetensors"))
        raise InputError(
            f"{folder}: holds no finished edit; need one of {known or 'none yet'}: make one with `mechmem unlearn "
            "--name NAME`, `mechmem edit` or `mechmem memorize`"
        )
    edited, notes = load_edit(run.model, folder / "edit.safetensors")
    return edited, Paragraphs.load(folder / "targets.parquet"), EditSettings(**json.loads(notes["settings"]))


def _paragraphs(run: StudyFolder, settings: EditSettings) -> tuple[Paragraphs, Paragraphs, Paragraphs | None]:
    """What shall change, what shall not, and what an edit shall say instead."""
    sets, keep = evaluation_sets(run)
    if settings.kind == "memorize":
        if settings.paragraphs is None:
            return sets["other"].select(np.arange(1)), keep, None
        list_inputs(settings.paragraphs)  # says what is wrong with the path
        return Paragraphs.load(settings.paragraphs), keep, None
    targets = sets["targeted memorized"]
    if settings.kind == "unlearn":
        return targets, keep, None
    if settings.text is None:
        clean, corrupt = worst_perturbations(run.model, targets, perturb_prefix(run.model, targets, seed=settings.seed))
        return clean, keep, corrupt
    if run.model.tokenizer is None:
        raise InputError("the model has no tokenizer, so a text cannot be given; leave --text out")
    ids = torch.tensor(run.model.tokenizer.encode(settings.text))
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
