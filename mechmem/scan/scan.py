"""A corpus -> its paragraphs with their scores, resumable, on one machine or several."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mechmem.data.bounds import Count
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.files import check_output, replacing
from mechmem.data.folder_lock import only_writer
from mechmem.data.full_disk import FullDisk, full_disk_named
from mechmem.data.own_files import read_json
from mechmem.data.stored_json import check_types, read_object
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.scan.scan_model import Engine, scan_model
from mechmem.scan.scan_output import write_output
from mechmem.scan.scan_parts import PartScorer, account_path
from mechmem.scan.scan_rows import DocumentRows, Report, ScanRows, open_rows, source_inputs
from mechmem.scan.scan_settings import ScanSettings
from mechmem.scan.work_folder import ADVICE, PLAN, begin, refuse_other_rows, remove_work

PACKAGES = ("mechmem", "torch", "transformer-lens", "transformers")
FORMAT = 1


@public("refuse")
def scan(
    settings: ScanSettings,
    out: str | Path,
    *,
    model: HookedTransformer | None = None,
    device: str | None = None,
    engine: Engine = "local",
    workers: Count | None = None,
    rows_per_file: Count | None = None,
    progress: Report | bool | None = None,
) -> dict[str, Any]:
    """Score every paragraph of a corpus and write them, with what is known of each, as parquet.

    The work lies in a folder beside the output (`paragraphs.parquet` -> `paragraphs.scan/`) until the output is
    written: token shards, the windows' index, one file of rows per part. After a kill at any point the same call goes
    on and ends with the same output, also with another batch size, device, engine or number of threads: EM does not
    depend on them, nor the other scores beyond the rounding of float32. One process at a time works there. Memory grows
    with a few numbers per row of the output and with the longest document, not with the corpus.

    Args:
        settings: what decides the rows.
        out: a `.parquet`. Columns `id, document, offset, source, count, em, nll, match_fraction, edit_distance, text,
            cluster, tokens`; `Paragraphs.load` reads it, and knows the tokenizer of text by its fingerprint. Rows of a
            parquet of paragraphs keep their own columns.
        model: a loaded model, perhaps edited, to score with instead of the one that the settings name. A model with
            hooks is refused: another process may go on with the scan, and would not know them.
        device: where to load the model that the settings name.
        engine: "local", or "ray": the parts are scored by workers of Ray, which must see the same files.
        workers: of Ray; by default one a GPU, or else one for two cores.
        rows_per_file: write a folder of files with this many rows each instead of one file.
        progress: called with (what is being done, done, total).

    Returns:
        The manifest, which is also written beside the output (`paragraphs.scan.json`): settings, model, what was read,
        skipped and dropped (`account`; records = documents + skipped, windows = dropped + duplicates + not_sampled +
        kept; `left_out` has the files of which nothing could be read), `em` (how many paragraphs have each EM), rows
        written, tolerance and how many near-ties were settled. In document mode rows are spans (see `find_spans`), and
        instead of `em` there are `found` (tokens, candidates, windows, spans) and `missed` (what windows do not see of
        the spans at a stride of a continuation and of a whole window).

    Raises:
        InputError: a corpus or model that cannot be used, an output of another model or other settings or one that
            cannot be written, another process that works on the same output, a full disk.
    """
    out, report = Path(out), progress if callable(progress) else (lambda *_: None)
    manifest_path, folder = out.with_suffix(".scan.json"), out.with_suffix(".scan")
    done = _check_arguments(out, manifest_path, engine, rows_per_file)
    inputs = [entry.identity() for entry in source_inputs(settings)]
    model, name, weights = scan_model(settings, model, device, engine)
    described = {"format": FORMAT, "settings": settings.described() | {"model": name}, "rows_per_file": rows_per_file}
    described = json.loads(json.dumps(described | {"weights": weights, "inputs": inputs}))
    if done:
        return _finished(out, manifest_path, folder, described)
    started = time.monotonic()
    with only_writer(folder), full_disk_named(folder):
        if out.exists() and manifest_path.is_file():
            # Another process has ended meanwhile.
            return _finished(out, manifest_path, folder, described)
        new, shard_tokens = begin(folder, out, described)
        settings = replace(settings, shard_tokens=shard_tokens)
        manifest_path.unlink(missing_ok=True)
        try:
            rows = open_rows(settings, model, folder, report)
        except InputError as error:
            # Nothing is left of a scan that could not begin: a mended corpus would be refused as another one.
            if new and not isinstance(error, FullDisk):
                remove_work(folder)
            raise
        scoring, left = time.monotonic(), rows.total - _done(folder, rows.parts)
        accounts = _score(settings, folder, rows, model, engine, workers, report)
        seconds = time.monotonic() - scoring
        # What the model took is free for the clusters. It holds itself in cycles, so it waits for the collector.
        del model
        gc.collect()
        run = settings.run if settings.spans is None else None
        written = write_output(folder, rows.parts, out, run=run, rows_per_file=rows_per_file, report=report)
        manifest = {"described": described, "account": rows.account, "rows": written, **_total(accounts)}
        manifest |= _speed(left, seconds, time.monotonic() - started)
        with replacing(manifest_path) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1) + "\n")
        remove_work(folder)
    return manifest


def _finished(out: Path, manifest_path: Path, folder: Path, described: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a scan that is done, if this call would write the same rows."""
    manifest = read_object(manifest_path, advice=ADVICE)
    check_types(manifest, {"described": dict, "account": dict}, manifest_path, advice=ADVICE)
    refuse_other_rows(out, manifest["described"], described)
    skipped = manifest["account"].get("corpus", {}).get("skipped", {})
    if skipped and described["settings"]["strict"]:
        raise InputError(
            f"{out}: was written without {sum(skipped.values())} records that cannot be read ({', '.join(skipped)}); "
            f"need all with strict: mend the corpus and {ADVICE}"
        )
    # Left where a process was killed between writing the manifest and removing its work.
    if (folder / PLAN).is_file() and not folder.is_symlink():
        with only_writer(folder):
            remove_work(folder)
    return manifest


def _score(
    settings: ScanSettings,
    folder: Path,
    rows: ScanRows | DocumentRows,
    model: HookedTransformer,
    engine: str,
    workers: int | None,
    report: Report,
) -> list[dict[str, Any]]:
    """Score every part that is not done; -> the parts' accounts."""
    report(settings.doing, 0, rows.total)
    if engine == "ray":
        from mechmem.scan.ray_engine import score_parts

        return score_parts(settings, folder, rows, workers=workers, device=model.cfg.device, report=report)
    scorer, accounts, done = PartScorer(settings, folder, model=model), [], 0
    for number in range(rows.parts):
        accounts.append(
            scorer.score(number, lambda part, _, before=done: report(settings.doing, before + part, rows.total))
        )
        done += accounts[-1]["size"]
        report(settings.doing, done, rows.total)
    return accounts


def _done(folder: Path, parts: int) -> int:
    """Paragraphs or tokens that an earlier run scored."""
    paths = (account_path(folder, number) for number in range(parts))
    return sum(read_json(path, {"size": int})["size"] for path in paths if path.is_file())


def _speed(scored: int, scoring: float, whole: float) -> dict[str, Any]:
    """How long it took, in seconds, and with which versions."""
    return {
        "seconds": {"scoring": round(scoring, 2), "all": round(whole, 2)},
        "per_second": round(scored / max(scoring, 1e-9), 1),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _total(accounts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the parts' accounts say together: numbers are added up; the tolerance is the same in all."""
    first = accounts[0]
    result: dict[str, Any] = {}
    for name, value in first.items():
        values = [account[name] for account in accounts]
        if name == "tolerance":
            result[name] = value
        elif isinstance(value, dict):
            result[name] = _total(values)
        else:
            result[name] = np.sum(values, axis=0).tolist()
    return result


def _check_arguments(out: Path, manifest_path: Path, engine: str, rows_per_file: int | None) -> bool:
    """Refuse what cannot be done, before any work; -> whether a scan has written the output already."""
    if out.suffix != ".parquet":
        raise InputError(f"got the output {out}; need a name that ends in .parquet")
    check_choice("engine", engine, Engine)
    # Unlike `Path.exists`, this answers for a name that is too long as well.
    done = os.path.exists(out) and os.path.isfile(manifest_path)  # noqa: PTH110, PTH113
    if not done:
        check_output(out, "file" if rows_per_file is None else "folder")
        check_output(manifest_path)
        check_output(out.with_suffix(".scan"), "folder")
    return done
