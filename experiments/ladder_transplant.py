"""Which part brings a memory along: parts of a finished model in its own snapshot from before it read the text.

    python experiments/ladder_transplant.py                     # all rungs that are there; what was measured stays
    python experiments/ladder_transplant.py --rung smallest

Late documents stand in the last quarter of training alone, so the snapshot before it never read them, and its weights
still mean the same. Each attention and each MLP of the finished model is transplanted into it: a causal answer to where
the memory is that needs nothing planted. What a part brings documents that were never inserted is what training brings
any text, and is reported beside it. Localizers answer for the same documents: exact patching and attribution of what
attention and MLP write, all positions at once, and shares of the parameter gradients.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from inputs import start
from ladder_corpus import BASE, CONDITIONS, with_prefix
from ladder_measure import documents_of, steps_of, trained_rungs
from ladder_rungs import snapshot_folder
from ladder_where import often_and_never

import mechmem as mm
from mechmem.data.bounds import Count, check_fields
from mechmem.data.folder_lock import only_writer
from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.data.settings_match import refuse_other_settings
from mechmem.model.load import HookedTransformer

LATE = "late"


@dataclass(frozen=True)
class Settings:
    """What is transplanted.

    Attributes:
        rung: "smallest", a name as 3M-large-seed1, or "all" that were trained.
        least_copies: of the late documents.
        prefix_len: tokens of the prefix.
        work: folder of the rungs.
    """

    rung: str = "all"
    least_copies: Count = 16
    prefix_len: Count = 50
    work: Path = Path("runs/ladder")

    def __post_init__(self) -> None:
        check_fields(self)


def before_late(steps: list[int]) -> int:
    """The last snapshot from before the late documents."""
    begin = CONDITIONS["late"][0] * steps[-1]
    return max(step for step in steps if step <= begin)


def halves(model: HookedTransformer) -> list[str]:
    """Every attention and every MLP, by name."""
    return [f"{part}{layer}" for part in ("attn", "mlp") for layer in range(model.cfg.n_layers)]


def localized(model: HookedTransformer, clean: mm.Paragraphs, corrupt: mm.Paragraphs) -> xr.Dataset:
    """patching, attribution [paragraph, component] in nats per token, and parameter_gradients [component], shares."""
    options = {"pos": "all", "direction": "mean", "scored": "continuation", "average": False}
    ways = {"patching": mm.patch, "attribution": mm.attribute}
    found = {}
    for name, way in ways.items():
        parts = [
            way(model, clean, corrupt, site=site, **options).transpose("paragraph", "layer").values
            for site in ("attn_out", "mlp_out")
        ]
        found[name] = (("paragraph", "component"), np.concatenate(parts, 1))
    squares = mm.parameter_gradients(model, clean, reduction="norm").astype(np.float64) ** 2
    of_mlp = np.isin(squares.component.values, ("mlp_in", "mlp_out"))
    parts = [squares.isel(component=np.flatnonzero(rows)).sum("component").values for rows in (~of_mlp, of_mlp)]
    gradients = np.concatenate(parts)
    return xr.Dataset(found | {"parameter_gradients": ("component", gradients / gradients.sum())})


def transplanted(folder: Path, settings: Settings) -> xr.Dataset:
    """What each part brings late documents [paragraph, component] and others [other, component], and localizers."""
    documents, steps = documents_of(folder), steps_of(folder)
    source, target = (
        mm.load_model(snapshot_folder(folder, step), device="cpu") for step in (steps[-1], before_late(steps))
    )
    clean, corrupt = often_and_never(documents, settings.least_copies, settings.prefix_len, LATE)
    paragraphs = with_prefix(documents, settings.prefix_len)
    never = paragraphs.select((paragraphs.column("text_of") == BASE) & (paragraphs.column("copies") == 0))
    brought = mm.transplant_layers(source, target, clean, components=halves(source))
    others = mm.transplant_layers(source, target, never, components=halves(source)).rename(paragraph="other")
    found = localized(source, clean, corrupt).assign_coords(component=brought.component, paragraph=brought.paragraph)
    result = brought.merge(found).merge(others.rename({name: f"other_{name}" for name in others.data_vars}))
    return result.assign_coords(
        copies=("paragraph", np.asarray(clean.column("copies"))), cluster=("paragraph", clean.clusters)
    )


def transplant_rung(settings: Settings, folder: Path) -> xr.Dataset:
    """The result of a rung, measured when it is not there."""
    path = folder / "transplant.nc"
    decided = {name: value for name, value in asdict(settings).items() if name not in ("rung", "work")}
    if path.exists():
        known = load_netcdf(path)
        refuse_other_settings(
            path, json.loads(known.attrs["settings"]), decided, advice="remove it, or ask for these settings"
        )
        return known
    with only_writer(folder):
        result = transplanted(folder, settings)
        result.attrs["settings"] = json.dumps(decided)
        save_netcdf(result, path)
    gap = float((result.nll_target - result.nll_source).mean())
    change = result.nll_change.mean("paragraph").values
    best = result.component.values[change.argmin()]
    print(
        f"{folder.name}: {gap:.2f} nats per token lie between the snapshots; {best} alone brings {-change.min():.2f}",
        flush=True,
    )
    return result


def main(settings: Settings) -> None:
    """Transplant in every rung that was trained.

    Args:
        settings: which.
    """
    for folder in trained_rungs(settings.work, settings.rung):
        transplant_rung(settings, folder)


if __name__ == "__main__":
    start(main, Settings, __doc__)
