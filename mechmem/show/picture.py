"""What `mechmem.show` returns: a picture that a notebook displays by itself and that is saved as one file."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechmem.data.errors import InputError
from mechmem.data.files import check_output, replacing
from mechmem.show.browser import draw

# Nothing may be loaded or sent: were an escape ever missing, a paragraph's text could still not reach a server.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'none'; "
    "base-uri 'none'; form-action 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>body {{ margin: 0; }} @media (prefers-color-scheme: dark) {{ body {{ background: #151a20; }} }}
@page {{ margin: 8mm; size: {width}px {height}px; }} svg {{ display: block; }}</style>
</head>
<body>{body}</body>
</html>
"""
ENDINGS = (".html", ".svg", ".pdf", ".png")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a result. A notebook displays it; `save` writes it.

    Attributes:
        title: what it shows, one line.
        html: a fragment that loads nothing and stands in a notebook, a page or a frame.
        draw_svg: gives the still picture as SVG, with its width and height in pixels.
    """

    title: str
    html: str
    draw_svg: Callable[[], tuple[str, int, int]]

    def __repr__(self) -> str:
        return f"Picture({self.title!r}): a notebook displays it; .save('picture.html') or .svg writes it"

    def _repr_html_(self) -> str:
        return self.html

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a notebook keeps: the page's fragment, and a line of text for where HTML is not shown."""
        return {"text/html": self.html, "text/plain": repr(self)}

    def save(self, path: str | Path) -> Path:
        """Write one file that needs no other: .html (the same as in a notebook), .svg, .pdf or .png (still pictures).

        Args:
            path: its ending decides. PDF and PNG are drawn by Chromium; HTML and SVG need nothing.

        Returns:
            The path.

        Raises:
            InputError: another ending, a place that cannot be written, or PDF or PNG without Chromium.
        """
        return save_picture(path, self.title, lambda: self.html, self.draw_svg)


def save_picture(
    path: str | Path, title: str, fragment: Callable[[], str], draw_svg: Callable[[], tuple[str, int, int]]
) -> Path:
    """Write a picture as its path's ending says; see `Picture.save`.

    Args:
        path: ends in .html, .svg, .pdf or .png.
        title: of the page.
        fragment: gives what the page shows, with all that it needs.
        draw_svg: gives the still picture, its width and its height.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise InputError(f"got '{path}'; need a file name that ends in one of {', '.join(ENDINGS)}")
    check_output(path)
    if path.suffix == ".html":
        _write(path, _page(title, fragment(), 1400, 1000))
        return path
    svg, width, height = draw_svg()
    if path.suffix == ".svg":
        _write(path, '<?xml version="1.0" encoding="UTF-8"?>\n' + svg)
    else:
        draw(_page(title, svg, width + 64, height + 64), path, width=width, height=height)
    return path


def _page(title: str, body: str, width: int, height: int) -> str:
    return PAGE.format(policy=POLICY, title=html.escape(title), body=body, width=width, height=height)


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        # A lone surrogate, which a damaged vocabulary can give, has no UTF-8 form: it is shown as its escape.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
