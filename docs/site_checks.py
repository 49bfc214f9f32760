"""Checks of pages that Sphinx does not make itself. With -W, each message fails the build."""

import json
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
DOCS = Path(__file__).parent
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}|:{3,})(.*)$")
# Files of the repository that are pages of the site.
SHOWN = {
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
    "changelog": "CHANGELOG.md",
}


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx, which gives every page's text to this function before it is parsed."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True}


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Put a repository's file where its page stands, lead links to such files to their pages, and check fences."""
    if page in SHOWN:
        file = DOCS.parent / SHOWN[page]
        app.env.note_dependency(str(file))
        source[0] = file.read_text().replace("](docs/", "](").replace("](README.md", "](index.md")
    for target, file in SHOWN.items():
        source[0] = re.sub(rf"\]\((\.\./)*{re.escape(file)}", f"]({'../' * page.count('/')}{target}.md", source[0])
    warn_of_unclosed(page, source[0])


def warn_of_unclosed(page: str, text: str) -> None:
    """An example without its closing fence takes in the rest of the page; Markdown does not call that an error."""
    for part in markdown_parts(text):
        if (line := unclosed(part)) is not None:
            LOGGER.warning("the block that begins with %r is not closed", line, location=page)


def markdown_parts(text: str) -> list[str]:
    """A page's text, or that of each Markdown cell of a notebook."""
    if not text.lstrip().startswith("{"):
        return [text]
    cells = json.loads(text)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def unclosed(text: str) -> str | None:
    """The first line of a fenced block that is never closed, if there is one."""
    opened: list[tuple[str, str]] = []
    for line in text.splitlines():
        found = FENCE.match(line)
        if not found:
            continue
        fence, info = found[1], found[2].strip()
        closes = opened and not info and fence[0] == opened[-1][0][0] and len(fence) >= len(opened[-1][0])
        # Code blocks take fences literally; blocks of colons hold other blocks.
        if closes:
            opened.pop()
        elif not opened or opened[-1][0][0] == ":":
            opened.append((fence, line))
    return opened[-1][1] if opened else None
