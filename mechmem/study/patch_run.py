"""A patching experiment of a study: its pairs, its result, its page and the file that repeats it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.files import check_output, replacing
from mechmem.data.netcdf import save_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, between
from mechmem.data.settings_match import refuse_other_settings
from mechmem.localize.patch_experiment import chosen_cells, patch_experiment
from mechmem.localize.patch_pairs import check_pairs, check_perturbed
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.worst_pairs import worst_perturbations
from mechmem.model.activation_sites import site_of
from mechmem.model.load import provenance
from mechmem.report.page import write_page
from mechmem.report.patch_page import patch_page
from mechmem.stats.covariates import with_covariates
from mechmem.stats.pairs import pairs, read_pairs
from mechmem.study.config import described
from mechmem.study.folder import StudyFolder
from mechmem.study.patch_settings import (
    PAIRS,
    STUDY,
    PatchSettings,
    check_experiment_name,
    experiment_text,
    read_experiment,
)
from mechmem.study.stages import token_frequencies

FOLDER = "patches"
# Of the whole, what perturbing takes; the rest is patching.
PERTURBING = 0.2
# Paragraphs that are perturbed for each pair: what no replacement changes is left out.
SPARE = 3
# Sites that some models lack.
NOT_EVERYWHERE = ("resid_mid", "mlp_out", "mlp_post")


def run_patch(
    study: StudyFolder, settings: PatchSettings, *, name: str | None = None, progress: ProgressLike = None
) -> xr.Dataset:
    """Patch pairs of a study that is scored, and write NAME.nc, NAME.html and NAME.toml into its folder `patches`.

    Args:
        study: with `paragraphs`, unless the pairs are a file's.
        settings: what decides the numbers, beside the study's seed.
        name: of the files; None: the pairs and the site, such as "perturbed-z".
        progress: called with (done, total).

    Returns:
        What `patch_experiment` gives; `attrs` also hold the settings of the experiment and of the study, as JSON, the
        model's name and the hash of its weights.

    Raises:
        InputError: a name that is taken by another experiment or cannot be one of files, no memorized paragraphs, pairs
            that cannot be patched, or as `patch_experiment`.
    """
    name = name or settings.name
    check_name(study.folder, name, settings, described(study.settings))
    perturbs = settings.pairs == "perturbed"
    clean, corrupt = patch_sides(study, settings, between(progress, 0, int(100 * PERTURBING), 100))
    result = patch_experiment(
        study.model,
        clean,
        corrupt,
        site=settings.site,
        pos=settings.pos,
        direction=settings.direction,
        metric=settings.metric,
        scored=settings.scored,
        layers=settings.layers,
        heads=settings.heads,
        attribute_first=settings.attribute_first,
        attribute_method=settings.attribute_method,
        normalize=settings.normalize,
        progress=between(progress, int(100 * PERTURBING) if perturbs else 0, 100, 100),
    )
    known = {key: described(study.settings)[key] for key in STUDY}
    result = result.assign_attrs(
        seed=study.settings.seed,
        model=study.settings.model,
        weight_hash=provenance(study.model).weight_hash,
        study=json.dumps(known),
        settings=json.dumps(described(settings)),
    )
    _write(study, name, settings, result)
    return result


def check_fits(study: StudyFolder, settings: PatchSettings) -> None:
    """Refuse, before anything is scored, what this study's model does not have; the model is loaded only if it must be.

    Raises:
        InputError: a site, layer or head that it lacks, no corpus to make pairs of, or a file that holds no pairs.
    """
    if settings.file is not None:
        clean, corrupt = read_pairs(settings.file)
        check_pairs(study.model, clean, corrupt, "noising", settings.scored)
        check_perturbed(clean, corrupt, settings.pos)
    if settings.layers is not None or settings.heads is not None or settings.site in NOT_EVERYWHERE:
        site = site_of(study.model, settings.site)
        chosen_cells(study.model, site, "all", 1, settings.layers, settings.heads)


def experiment_files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Where an experiment's result, page and settings lie."""
    return tuple(folder / FOLDER / f"{name}.{suffix}" for suffix in ("nc", "html", "toml"))  # pyright: ignore[reportReturnType]


def check_name(folder: Path, name: str, settings: PatchSettings, study: Mapping[str, Any]) -> None:
    """Refuse, before any work, a name that another experiment has or that cannot be written.

    Raises:
        InputError: as said.
    """
    check_experiment_name(name)
    for path in experiment_files(folder, name):
        check_output(path)
    stored = experiment_files(folder, name)[-1]
    if stored.is_file():
        was_study, was = read_experiment(stored)
        before = described(PatchSettings()) | was | {key: None for key in STUDY} | was_study
        now = described(settings) | {key: study[key] for key in STUDY}
        refuse_other_settings(stored, before, now, advice="choose another name with --name, or remove it")


def patch_sides(
    study: StudyFolder, settings: PatchSettings, progress: ProgressLike = None
) -> tuple[Paragraphs, Paragraphs]:
    """The clean and the corrupt side of an experiment's pairs, row by row.

    Perturbed pairs are memorized paragraphs, one of each cluster, and their worst perturbations. Other pairs are those
    and as many that are not memorized, of like rarity and, where that is known, of one source.

    Raises:
        InputError: no memorized or no other paragraph, or a file that holds no pairs.
    """
    if settings.file is not None:
        clean, corrupt = read_pairs(settings.file)
        few = np.arange(min(len(clean), settings.count or len(clean)))
        return clean.select(few), corrupt.select(few)
    count = settings.count or PAIRS
    perturbs = settings.pairs == "perturbed"
    memorized = study.subset("memorized", SPARE * count if perturbs else count, distinct=True)
    if not len(memorized):
        longest = study.paragraphs.continuation_len
        raise InputError(
            f"{study.folder}: the scan found no memorized paragraph (EM {longest} of {longest}) among "
            f"{len(study.paragraphs):,}; need at least 1: scan text that the model was trained on, or more of it, or "
            "name a file of pairs with --pairs FILE"
        )
    if perturbs:
        found = perturb_prefix(study.model, memorized, seed=study.settings.seed, progress=progress)
        clean, corrupt = worst_perturbations(study.model, memorized, found)
        few = np.arange(min(len(clean), count))
        return clean.select(few), corrupt.select(few)
    other = study.subset("other")
    if not len(other):
        raise InputError(
            f"{study.folder}: the scan found no other paragraph to pair with; need at least 1: scan more text"
        )
    counts = token_frequencies(study)
    sides = [with_covariates(side, unigram_counts=counts) for side in (memorized, other)]
    match = ["rarity", *(["source"] if all(side.has("source") for side in sides) else [])]
    return pairs(*sides, match=match, seed=study.settings.seed)


def _write(study: StudyFolder, name: str, settings: PatchSettings, result: xr.Dataset) -> None:
    """The three files, each whole or not at all; the settings last, so that they speak of a result that is there."""
    data, page, stored = experiment_files(study.folder, name)
    drawn = patch_page(result, name)
    (study.folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with study.writing(*(str(path.relative_to(study.folder)) for path in (data, page, stored))):
        save_netcdf(result, data)
        write_page(page, drawn)
        with replacing(stored) as temporary:
            text = experiment_text(settings, study.settings)
            temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
