"""What each file of a study holds, and reading one only if it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from mechmem.data.checksums import refuse_damaged
from mechmem.data.errors import InputError
from mechmem.data.netcdf import load_netcdf
from mechmem.data.paragraphs import Paragraphs

SCORES, TABLE = "paragraphs.parquet", ("set", "edit")


@dataclass(frozen=True)
class Contents:
    """What a result holds.

    Attributes:
        stage: which stage of a study writes it.
        numbers: variable -> its dimensions.
        texts: the same, of text.
        attrs: attributes that are there, of the result or of "variable.attribute".
        command: which command runs the stage.
    """

    stage: str
    numbers: Mapping[str, tuple[str, ...]]
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    attrs: tuple[str, ...] = ()
    command: str = "run"


def _of_heads(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {"layer": ("layer",), "head": ("head",)} | {name: ("layer", "head") for name in names}


def _with_ends(names: tuple[str, ...], dims: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {f"{name}{end}": dims for name in names for end in ("", "_low", "_high")}


COSTS = ("em", "em_low", "em_high", "exact_fraction", "match_fraction", "edit_distance", "nll", "perplexity")
RESULTS = {
    "gradients.nc": Contents(
        "gradients",
        {"max_gradient": ("set", "layer", "component"), "layer_share": ("set", "layer"), "layer": ("layer",)},
        {"set": ("set",), "component": ("component",)},
    ),
    "heads.nc": Contents(
        "heads",
        {name: ("set", "layer", "head") for name in ("em_change", "nll_change")} | _of_heads(()),
        {"set": ("set",)},
        ("method",),
    ),
    "rare.nc": Contents(
        "attention", _of_heads(("excess", "spearman", "kendall", "p_value")), attrs=("excess.expectation",)
    ),
    "attention.nc": Contents(
        "attention",
        {
            "pattern": ("view", "head_slot", "query_pos", "key_pos"),
            "layer": ("view", "head_slot"),
            "head": ("view", "head_slot"),
        },
        {"token": ("view", "query_pos"), "caption": ("view",), "finding": ("view",)},
    ),
    "patching.nc": Contents(
        "patch",
        {"resid_pre": ("paragraph", "layer", "pos"), "z": ("paragraph", "layer", "head", "pos")}
        | {"perturbed_pos": ("paragraph",), "impact_pos": ("paragraph",), "pos": ("pos",)}
        | _of_heads(()),
        attrs=("resid_pre.base", "resid_pre.source"),
    ),
    "unlearn.nc": Contents(
        "unlearn",
        {name: TABLE for name in (*COSTS, "kl", "kl_low", "kl_high", "changed_top1")}
        | {"weights_changed": ("edit",), "nll_history": ("edit", "step")},
        {"edit": ("edit",), "set": ("set",)},
        ("weights_total",),
    ),
    "attacks.nc": Contents(
        "attack",
        {name: ("edit", "attack") for name in ("em_before", "em_after", "em_after_low", "em_after_high")},
        {"edit": ("edit",), "attack": ("attack",)},
    ),
    "detect.nc": Contents(
        "detect",
        _with_ends(("tpr_at_1", "tpr_at_01", "auroc"), ("method", "k"))
        | _with_ends(("flagged", "flagged_early", "false_alarm_rate"), ("method",))
        | _with_ends(("observed",), ("method", "bin"))
        | {"calibration_error": ("method", "k"), "k": ("k",)}
        | {name: ("method", "bin") for name in ("predicted", "in_bin")}
        | {"example_score": ("example", "example_pos"), "example_alarm": ("example",), "example_em": ("example",)},
        {
            "method": ("method",),
            "kind": ("method",),
            "example_text": ("example", "example_pos"),
            "example_kind": ("example",),
        },
        ("false_alarms", "generation_len", "recitations", "others", "prefix_len"),
        command="detect",
    ),
}


def read_result(folder: Path, name: str) -> xr.Dataset:
    """A result of a study, in memory; one whose checksum differs is refused before it is opened.

    Args:
        folder: the study's.
        name: the file, "heads.nc".

    Raises:
        InputError: it is damaged, no netCDF file, or not what the stage of this name writes; the sentence names the
            stage to run again.
    """
    contents, path = RESULTS.get(name), folder / name
    advice = f"remove it: {name} is not written by a stage"
    if contents is not None:
        advice = _again(folder, contents.stage, contents.command)
    refuse_damaged(folder, name, advice=advice)
    result = load_netcdf(path, advice=advice, sealed=True)
    if contents is not None:
        _check_contents(result, contents, path, advice)
    return result


def read_paragraphs(folder: Path) -> Paragraphs:
    """The scored paragraphs of a study, as `read_result` reads results.

    Raises:
        InputError: they are damaged, or a column has another type than the scan writes.
    """
    advice = _again(folder, "scan")
    refuse_damaged(folder, SCORES, advice=advice)
    try:
        paragraphs = Paragraphs.load(folder / SCORES)
    except InputError as error:
        raise InputError(f"{error}; {advice}") from error
    for name, kinds in {"em": "iu", "nll": "f", "match_fraction": "f", "edit_distance": "iuf", "cluster": "iu"}.items():
        if paragraphs.has(name) and (kind := paragraphs.column(name).dtype).kind not in kinds:
            raise InputError(f"{folder / SCORES}: column '{name}' holds {kind}; need numbers: {advice}")
    em, most = paragraphs.column("em") if paragraphs.has("em") else np.zeros(0, int), paragraphs.continuation_len
    if len(em) and not 0 <= em.min() <= em.max() <= most:
        raise InputError(f"{folder / SCORES}: column 'em' holds {em.min()} to {em.max()}; need 0 to {most}: {advice}")
    for name in ("set", "prefix_text", "continuation_text", "greedy_text"):
        if paragraphs.has(name) and not all(isinstance(value, str) for value in paragraphs.column(name).tolist()):
            raise InputError(f"{folder / SCORES}: column '{name}' does not hold text in each row; {advice}")
    return paragraphs


def _again(folder: Path, stage: str, command: str = "run") -> str:
    return f"run stage '{stage}' again: `mechmem {command} --out {folder}` does it"


def _check_contents(result: xr.Dataset, contents: Contents, path: Path, advice: str) -> None:
    for name, dims in {**contents.numbers, **contents.texts}.items():
        if name not in result.variables:
            raise InputError(f"{path}: has no variable '{name}', as stage '{contents.stage}' writes it; {advice}")
        variable = result[name]
        if set(variable.dims) != set(dims):
            raise InputError(f"{path}: '{name}' has dimensions {list(variable.dims)}; need {list(dims)}: {advice}")
        is_text = variable.dtype.kind in "OUT"
        if is_text != (name in contents.texts) or (not is_text and not np.issubdtype(variable.dtype, np.number)):
            need = "text" if name in contents.texts else "numbers"
            raise InputError(f"{path}: '{name}' holds {variable.dtype}; need {need}: {advice}")
    for place in contents.attrs:
        variable, _, name = place.rpartition(".")
        if name not in (result[variable] if variable else result).attrs:
            raise InputError(f"{path}: has no attribute '{place}', as stage '{contents.stage}' writes it; {advice}")
