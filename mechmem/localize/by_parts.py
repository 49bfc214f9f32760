"""A function of many paragraphs, done part by part: resumable, on one machine or several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from mechmem.data.bounds import Count
from mechmem.data.choices import check_choice
from mechmem.data.code_identity import described, identity
from mechmem.data.errors import InputError
from mechmem.data.files import check_output
from mechmem.data.folder_lock import only_writer
from mechmem.data.full_disk import full_disk_named
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.part_folder import PartFolder
from mechmem.data.progress import Progress, ProgressLike, as_callback, batches
from mechmem.localize.part_jobs import PlainJob, check_alike, checked_options, job_kind
from mechmem.localize.part_workers import Call, Receive, parts_by_ray, parts_here
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.scan.scan_model import weights_digest

Engine = Literal["local", "ray"]
FORMAT = 1
# Options that change nothing beyond the rounding of float32.
NO_MATTER = ("batch_size",)


@public("refuse")
def by_parts(
    function: Callable[..., xr.Dataset | xr.DataArray],
    model: HookedTransformer,
    *paragraphs: Paragraphs,
    out: str | Path,
    part: Count = 64,
    engine: Engine = "local",
    workers: Count | None = None,
    progress: ProgressLike = None,
    **options: Any,
) -> Any:
    """Call a function on paragraphs part by part: `by_parts(mm.capture, model, paragraphs, out="z.nc", sites="z")`.

    The result is that of one call, `function(model, *paragraphs, **options)`. Finished parts lie in a folder beside the
    output (`z.nc` -> `z.parts/`) until the output is written: after a kill at any point the same call goes on, also
    with another engine. If the output is there already, it is opened. Memory grows with a part, not with the number of
    paragraphs; the disk needs room for the result twice.

    Args:
        function: `capture`, `perturb_prefix`, `patch`, `ablate_heads`, or any function whose result has the dimension
            `paragraph` and whose rows do not depend on each other, such as `paragraph_gradients`.
        model: without hooks: another process may go on with the work, and would not know them.
        *paragraphs: the function's sets; `patch` takes two, row by row.
        out: a netCDF file.
        part: paragraphs of one part. A multiple of the function's batch size (of 16, by default) gives the numbers of
            one call to the last bit; others the same to the rounding of float32.
        engine: "local": in this process; "ray": by workers of the cluster that RAY_ADDRESS names, or else of this
            machine. Each gets a copy of the model, and need not see the output.
        workers: of Ray; by default one a GPU, or else one for two cores.
        progress: called with (paragraphs done, paragraphs).
        **options: of the function. For `patch` and `ablate_heads` average=False is set.

    Returns:
        What the function returns, read from the output where you look at it.

    Raises:
        InputError: paragraphs, options or a model that the function refuses; sets of different sizes; a result without
            the dimension `paragraph`, or with something that depends on which paragraphs are together; an output that
            was begun with other arguments, or that cannot be written; no Ray, or workers that died; a full disk.
    """
    out, report = Path(out), as_callback(progress, "by_parts")
    sets = _checked_sets(function, model, paragraphs, out, engine, workers)
    options = checked_options(function, model, sets, options)
    folder = PartFolder(out, _plan(function, model, sets, options, part), list(batches(len(sets[0]), part)))
    done = folder.finished()
    if done is not None:
        return done
    call, kind = Call(function, model, sets, options), job_kind(function)
    with only_writer(folder.folder), full_disk_named(folder.folder):
        folder.begin()
        receive = _receiver(folder, plain=kind is PlainJob, report=report)
        todo = [(number, folder.rows[number]) for number in folder.missing()]
        try:
            if engine == "ray":
                parts_by_ray(call, todo, receive, workers=workers)
            else:
                parts_here(call, todo, receive)
        except InputError:
            # Nothing is left of work that could not begin.
            if len(folder.missing()) == len(folder.rows):
                folder.remove()
            raise
        return folder.join(lambda parts, own: kind.summary(parts, own, sets))


def _receiver(folder: PartFolder, *, plain: bool, report: Progress | None) -> Receive:
    """What keeps each part, and reports how many paragraphs are done."""
    total = folder.rows[-1].stop
    left = {number: folder.rows[number].stop - folder.rows[number].start for number in folder.missing()}
    first: list[xr.Dataset] = []

    def receive(number: int, part: xr.Dataset) -> None:
        own = part.drop_dims("paragraph")
        if plain:
            # What would be refused at the end is refused at the second part.
            check_alike(first[0] if first else own, own)
            first.append(own)
        folder.write(number, part)
        del left[number]
        if report is not None:
            report(total - sum(left.values()), total)

    return receive


def _checked_sets(
    function: Any,
    model: HookedTransformer,
    paragraphs: tuple[Paragraphs, ...],
    out: Path,
    engine: str,
    workers: int | None,
) -> list[Paragraphs]:
    """The sets, after what can be refused before any work."""
    check_choice("engine", engine, Engine)
    if workers is not None and engine != "ray":
        raise InputError(f"got workers={workers} with engine 'local', which has none; need engine='ray'")
    if not callable(function):
        raise InputError(f"got {type(function).__name__} as function; need a function such as mechmem.capture")
    if not paragraphs:
        raise InputError("got no paragraphs; need those that the function takes, after the model")
    for each in paragraphs:
        check_fit(model, each)
    sizes = [len(each) for each in paragraphs]
    if len(set(sizes)) > 1:
        raise InputError(f"got sets of {', '.join(map(str, sizes))} paragraphs; need as many of each, row by row")
    if out.suffix != ".nc":
        raise InputError(f"got out='{out}'; need a file name that ends in .nc")
    check_output(out)
    check_output(out.with_suffix(".parts"), "folder")
    return list(paragraphs)


def _plan(
    function: Any, model: HookedTransformer, sets: list[Paragraphs], options: dict[str, Any], part: int
) -> dict[str, Any]:
    """Everything that decides the result, as JSON has it."""
    name = f"{function.__module__}.{function.__qualname__}"
    return {
        "format": FORMAT,
        "function": name if name.startswith("mechmem.") else identity(function),
        "options": {name: described(value) for name, value in sorted(options.items()) if name not in NO_MATTER},
        "model": weights_digest(model),
        "paragraphs": [_digest(each) for each in sets],
        "part": part,
    }


def _digest(paragraphs: Paragraphs) -> str:
    """Of what a result may depend on: tokens, prefix, ids, clusters."""
    content = hashlib.sha256(paragraphs.tokens.cpu().contiguous().numpy().tobytes())
    content.update(repr((paragraphs.prefix_len, paragraphs.ids.tolist(), paragraphs.clusters.tolist())).encode())
    return f"{len(paragraphs)} {content.hexdigest()[:16]}"
