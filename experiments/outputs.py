"""How an experiment writes what it found: numbers with their settings, a page of docs, a picture."""

import json
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
import xarray as xr

from mechmem.data.files import replacing
from mechmem.data.netcdf import save_netcdf
from mechmem.data.settings_match import refuse_other_settings
from mechmem.show.browser import browser, headless


def save(result: xr.Dataset, figures: Sequence[go.Figure], settings: Any) -> None:
    """Write result.nc with the settings in its attributes, and figure.html, which loads nothing, if there are figures.

    Args:
        result: gets the attribute `settings`, as JSON.
        figures: of the page, from the top down.
        settings: a dataclass with a field `out`, the folder.
    """
    result.attrs["settings"] = json.dumps(asdict(settings), default=str)
    save_netcdf(result, settings.out / "result.nc")
    if not figures:
        return
    # Plotly's script is needed once.
    parts = [figure.to_html(full_html=False, include_plotlyjs=number == 0) for number, figure in enumerate(figures)]
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{settings.out.name}</title></head>'
    with replacing(settings.out / "figure.html") as temporary:
        temporary.write_text(f"{head}<body>{''.join(parts)}</body></html>\n", encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def read_json(path: Path) -> Any:
    """What was written before, or an empty dict."""
    return json.loads(path.read_text()) if path.is_file() else {}


def agree_on_settings(folder: Path, settings: Any, *, free: Sequence[str] = ()) -> None:
    """Write the settings into a folder, or refuse to go on in one that was begun with other settings.

    Args:
        folder: of the results.
        settings: a dataclass.
        free: settings that may differ, since they do not decide what is in the folder.

    Raises:
        InputError: names the settings that differ.
    """
    now, before = asdict(settings), read_json(folder / "settings.json")
    if before:
        was, fixed = ({name: all_[name] for name in all_ if name not in free} for all_ in (before, now))
        refuse_other_settings(folder, was, fixed, advice="choose another folder, or remove this one")
    write_json(folder / "settings.json", now)


def write_page(path: Path | None, lines: Sequence[str]) -> None:
    """Show the lines of a page, and write them if there is a path."""
    text = "\n".join(lines) + "\n"
    print(text)
    if path is not None:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def stamp(script: str) -> str:
    """Which script measured, when, and on what machine."""
    threads = torch.get_num_threads()
    return (
        f"`python experiments/{script}.py`, {datetime.now(UTC).date()}, {platform.machine()}, "
        f"{threads} thread{'s' * (threads != 1)}"
    )


def kept_text(path: Path | None, mark: str) -> str:
    """What stands between two marks `<!-- mark -->` of a page that was written before: text that people wrote."""
    line = f"<!-- {mark} -->"
    known = path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""
    return known.split(line)[1] if known.count(line) == 2 else "\n"


def photograph(figure: go.Figure, path: Path) -> None:
    """Save the figure as a PNG with Chromium; print a message if Chromium is not installed."""
    chromium = browser()
    if chromium is None:
        print(f"chromium is not installed: {path} is not updated")
        return
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        page.write_text(f"<style>body{{margin:0}}</style>{figure.to_html(config={'staticPlot': True})}")
        command = [*headless(chromium, Path(folder) / "profile"), "--virtual-time-budget=5000"]
        command += ["--window-size=900,480", f"--screenshot={path.resolve()}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
