"""PNG and PDF files, which only a browser draws: Chromium, without a window."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from mechmem.data.errors import InputError
from mechmem.data.files import replacing

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 120


def browser() -> str | None:
    """A Chromium on this machine; None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name)) is not None), None)


def headless(program: str, profile: Path) -> list[str]:
    """The beginning of a command that opens a page without a window and asks the network for nothing.

    Args:
        program: what `browser` found.
        profile: a folder that the browser may write to.
    """
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    return [*command, "--disable-background-networking", "--no-first-run", "--hide-scrollbars"]


def draw(page: str, path: Path, *, width: int, height: int) -> None:
    """Write an HTML page as PNG or PDF, as the path's suffix says, whole or not at all.

    Args:
        page: HTML that loads nothing.
        path: ends in .png or .pdf.
        width: of the picture, in CSS pixels.
        height: of the picture.

    Raises:
        InputError: there is no Chromium, or it could not draw the page.
    """
    program = browser()
    if program is None:
        raise InputError(f"{path}: {path.suffix[1:]} needs Chromium, which is not installed; .svg and .html need none")
    with tempfile.TemporaryDirectory(prefix="mechmem-") as folder:
        source, drawn = Path(folder) / "page.html", Path(folder) / f"drawn{path.suffix}"
        source.write_text(page, encoding="utf-8")
        command = headless(program, Path(folder) / "profile")
        if path.suffix == ".pdf":
            command += ["--no-pdf-header-footer", f"--print-to-pdf={drawn}"]
        else:
            command += [f"--window-size={width},{height}", "--force-device-scale-factor=2", f"--screenshot={drawn}"]
        try:
            subprocess.run([*command, source.as_uri()], capture_output=True, timeout=SECONDS, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            raise InputError(f"{path}: {program} could not draw it ({type(error).__name__})") from error
        if not drawn.is_file():
            raise InputError(f"{path}: {program} drew nothing")
        with replacing(path) as temporary:
            temporary.write_bytes(drawn.read_bytes())
