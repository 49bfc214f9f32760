"""`mechmem patch`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mechmem.cli.choices import PatchAttribution, PatchDirection, PatchMetric, PatchScored, PatchSite, PatchWhere
from mechmem.cli.commands import command, console, wrote
from mechmem.cli.display import live_progress
from mechmem.cli.studies import StudyOptions, run_until
from mechmem.data.bounds import Count, Share

ROWS = 10


@dataclass(frozen=True)
class CellOptions:
    """What is patched in which pairs; what is not given is the default, or what --from-file says."""

    site: Annotated[PatchSite | None, typer.Option(help="What is patched; by default z, each head's output.")] = None
    pos: Annotated[
        PatchWhere | None,
        typer.Option(help="Each position alone (the default), each pair's perturbed token alone, or all together."),
    ] = None
    direction: Annotated[
        PatchDirection | None,
        typer.Option(help="noising: the clean run with the corrupt's activations; mean: one effect; by default both."),
    ] = None
    metric: Annotated[PatchMetric | None, typer.Option(help="Of the patched run; by default nll.")] = None
    scored: Annotated[
        PatchScored | None, typer.Option(help="impact: the first token in which a pair differs, the default.")
    ] = None
    pairs: Annotated[
        str | None,
        typer.Option(help="perturbed (the default), other, or a file with the columns tokens, pair and side."),
    ] = None
    count: Annotated[Count | None, typer.Option(help="Most pairs; by default 16, or all of a file.")] = None
    layers: Annotated[str | None, typer.Option(help="Patch these layers alone, such as 0-3,5.")] = None
    heads: Annotated[str | None, typer.Option(help="Patch these heads alone, such as L1H2,L3H0.")] = None
    attribute_first: Annotated[
        Share | None, typer.Option(help="Patch exactly this share of the cells: the highest by attribution.")
    ] = None
    attribute_method: Annotated[
        PatchAttribution | None, typer.Option(help="How --attribute-first estimates; by default the site's own.")
    ] = None
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="1: as if everything were replaced.")
    ] = None

    def given(self) -> dict[str, Any]:
        """The settings of the experiment that were given."""
        from mechmem.study.patch_settings import parsed_layers

        found = {key: value for key, value in asdict(self).items() if value is not None}
        if self.pairs not in (None, "perturbed", "other"):
            found["pairs"] = str(Path(self.pairs).resolve())
        if self.layers is not None:
            found["layers"] = parsed_layers(self.layers)
        if self.heads is not None:
            found["heads"] = tuple(part.strip() for part in self.heads.split(","))
        return found


@command()
def patch(
    study: StudyOptions,
    cells: CellOptions,
    name: Annotated[
        str | None, typer.Option(help="Of the files; by default the pairs and the site, such as perturbed-z.")
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(help="Repeat an experiment: its NAME.toml. Options given beside it replace what it says."),
    ] = None,
) -> None:
    """Patch pairs of texts: which cells carry what tells them apart; writes OUT/patches/NAME.nc, .html and .toml.

    An experiment by itself: it runs the scan of the study in OUT first, if it has none, and nothing else; with a file
    of pairs not even that. The study's own stage, OUT/patching.nc, is made by `mechmem run`.
    """
    from mechmem.study.patch_settings import PatchSettings, read_experiment

    known: dict[str, Any] = {}
    base: dict[str, Any] = {}
    if from_file is not None:
        base, known = read_experiment(from_file)
        name = name or from_file.stem
    settings = _settings(PatchSettings(), known, cells.given())
    _run(study, settings, base, name or settings.name)


def _settings(default: Any, known: dict[str, Any], given: dict[str, Any]) -> Any:
    """The defaults, changed by what a file says and then by what was given."""
    from mechmem.study.config import apply_settings

    return apply_settings(apply_settings(default, known), given)


def _run(options: StudyOptions, settings: Any, base: dict[str, Any], name: str) -> None:
    """Do what the study lacks, patch, and say what was found and where it lies."""
    from mechmem.data.files import check_output
    from mechmem.study.config import described
    from mechmem.study.patch_settings import check_experiment_name

    out = options.out
    # What was given on the command line, and for the rest what the file says.
    known = {key: Path(value) if key == "corpus" else value for key, value in base.items()}
    options = replace(options, **{key: value for key, value in known.items() if getattr(options, key) is None})
    of_study = options.settings()
    check_experiment_name(name)
    check_output(out, "folder")
    with console.status("loading"):
        from mechmem.localize.patch_experiment import strongest_cells
        from mechmem.study.folder import StudyFolder
        from mechmem.study.patch_run import check_fits, check_name, experiment_files, run_patch

        check_name(out, name, settings, described(of_study))
        study = StudyFolder(out, of_study, options.device)
        check_fits(study, settings)
    if settings.file is None:
        run_until(out, of_study, "scan", device=options.device)
    with live_progress() as progress:
        result = run_patch(study, settings, name=name, progress=lambda done, total: progress("patching", done, total))
    for way in result.direction.values:
        table = Table("cell", f"effect, {result.effect.attrs['units']}", "95 %", title=f"{way}: strongest cells")
        for cell, mean, low, high in strongest_cells(result, str(way), ROWS):
            table.add_row(cell, f"{mean:+.4g}", f"{low:+.4g} to {high:+.4g}")
        console.print(table)
    console.print(f"Means over {result.sizes['paragraph']} pairs; intervals by cluster.", highlight=False)
    wrote(*experiment_files(out, name))
