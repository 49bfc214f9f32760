"""Measure every trained model of the ladder: EM, NLL and the chance of sampling, at each snapshot and prefix length.

    python experiments/ladder_measure.py                     # all rungs that are there; what was measured stays
    python experiments/ladder_measure.py --rung smallest

The last snapshot is measured with every prefix length before the same continuation, the others with one. Results are
netCDF files in the rung's folder, one for a snapshot: the documents that are measured, inserted or not, and after the
one prefix length a near-duplicate of each. Documents with 0 copies are the control: a model that gives one of them
whole has read it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from inputs import start
from ladder_corpus import BASE
from ladder_rungs import SMALLEST, snapshot_folder

import mechmem as mm
from mechmem.data.bounds import Count, check_fields
from mechmem.data.errors import InputError
from mechmem.data.folder_lock import only_writer
from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.data.own_files import read_json
from mechmem.measure.scaling import prefix_scores
from mechmem.model.load import HookedTransformer


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        rung: "smallest", a name as 3M-large-seed1, or "all" that were trained.
        prefix_lens: tokens of the prefix, at the last snapshot.
        prefix_len: the same at the others.
        work: folder of the rungs.
    """

    rung: str = "all"
    prefix_lens: tuple[Count, ...] = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    prefix_len: Count = 50
    work: Path = Path("runs/ladder")

    def __post_init__(self) -> None:
        check_fields(self)


def trained_rungs(work: Path, rung: str = "all") -> list[Path]:
    """Folders of finished rungs, in the order of their names; or the one that is named.

    Raises:
        InputError: none is finished, or not the one that is named.
    """
    name = SMALLEST if rung == "smallest" else rung
    found = sorted(path.parent for path in work.glob("*/training.json"))
    chosen = [folder for folder in found if name in ("all", folder.name)]
    if not chosen:
        there = ", ".join(folder.name for folder in found) or "none"
        raise InputError(
            f"got rung {rung!r}; finished in {work}: {there}: train it first with "
            f"python experiments/ladder.py --rung {rung}"
        )
    return chosen


def steps_of(folder: Path) -> list[int]:
    """After which steps a rung's snapshots were taken, ascending."""
    kept = read_json(folder / "training.json", {"snapshot_sha256": dict})["snapshot_sha256"]
    return sorted(int(step) for step in kept)


def documents_of(folder: Path) -> mm.Paragraphs:
    """The documents that are measured; prefix 100, continuation 50."""
    return mm.Paragraphs.load(folder / "documents.parquet")


def measured(folder: Path) -> xr.Dataset:
    """What was measured of a rung: em, nll, p_extractable [step, prefix_len, paragraph], NaN where nothing was."""
    parts = [
        load_netcdf(folder / "measured" / f"step{step:06d}.nc").expand_dims(step=[step]) for step in steps_of(folder)
    ]
    return xr.concat(parts, "step", join="outer", coords="minimal", compat="override")


def pending(settings: Settings, folder: Path) -> Iterator[tuple[int, tuple[int, ...], Path]]:
    """Step, prefix lengths and file of each snapshot that has no result yet.

    Raises:
        InputError: one was measured with other settings.
    """
    steps = steps_of(folder)
    for step in steps:
        lengths = settings.prefix_lens if step == steps[-1] else (settings.prefix_len,)
        path = folder / "measured" / f"step{step:06d}.nc"
        if not path.exists():
            yield step, lengths, path
        elif (known := load_netcdf(path).prefix_len.values.tolist()) != list(lengths):
            raise InputError(
                f"{path}: was measured with prefixes of {known} tokens, now {list(lengths)}; remove "
                "it, or ask for these"
            )


def scores_of(model: HookedTransformer, documents: mm.Paragraphs, lengths: Sequence[int], main: int) -> xr.Dataset:
    """em, nll, p_extractable [prefix_len, paragraph]; near-duplicates after the main prefix length alone, else NaN."""
    whole = prefix_scores(model, documents, (main,))
    others = [length for length in lengths if length != main]
    if not others:
        return whole
    rest = prefix_scores(model, documents.select(documents.column("text_of") == BASE), others)
    rest = rest.drop_vars([name for name in rest.coords if name not in rest.dims]).reindex(paragraph=whole.paragraph)
    parts = xr.concat([whole, rest], "prefix_len", coords="minimal", compat="override", combine_attrs="override")
    return parts.sel(prefix_len=list(lengths))


def measure_rung(settings: Settings, folder: Path) -> None:
    """Measure the snapshots of a rung that have no result yet."""
    documents = documents_of(folder)
    with only_writer(folder):
        for step, lengths, path in pending(settings, folder):
            model = mm.load_model(snapshot_folder(folder, step), device="cpu")
            result = scores_of(model, documents, lengths, settings.prefix_len)
            for name in ("copies", "condition", "text_of", "source"):
                result = result.assign_coords({name: ("paragraph", np.asarray(documents.column(name)))})
            result.attrs["settings"] = json.dumps(asdict(settings), default=str)
            path.parent.mkdir(exist_ok=True)
            save_netcdf(result, path)
            em = result.em.sel(prefix_len=settings.prefix_len).values
            inserted = (result.text_of.values == BASE) & (result.condition.values == "spread")
            most = result.copies.values == result.copies.values.max()
            said = {"most": inserted & most, "no": inserted & (result.copies.values == 0)}
            means = ", ".join(f"{em[rows].mean():.1f} of those with {name} copies" for name, rows in said.items())
            print(f"{folder.name} step {step}: mean EM {means}", flush=True)


def main(settings: Settings) -> None:
    """Measure every rung that was trained.

    Args:
        settings: which.
    """
    for folder in trained_rungs(settings.work, settings.rung):
        measure_rung(settings, folder)


if __name__ == "__main__":
    start(main, Settings, __doc__)
