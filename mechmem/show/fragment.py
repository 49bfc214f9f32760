"""HTML that stands anywhere: a view's data, its script, and a still picture for where scripts do not run."""

from __future__ import annotations

from hashlib import sha256
from importlib import resources
from typing import Any, Literal

from mechmem.show.embed import json_markup, script_markup

Theme = Literal["auto", "light", "dark"]


def fragment(view: str, scripts: tuple[str, ...], data: dict[str, Any], still: str) -> str:
    """One view, with all that it needs; several stand in one page, of one release or of several.

    Args:
        view: the class that draws it, of the last script: made with the host element and the data, then `show()`.
        scripts: names of files in `scripts/`, each a .js and a .css, in their order; `shared` comes before them.
        data: what the class gets, and a `style`: all the CSS.
        still: trusted HTML, seen until the script has run, and where it does not run.
    """
    names = ("shared", *scripts)
    code = script_markup("\n".join(script_file(f"{script}.js") for script in names))
    content = json_markup(data | {"style": "".join(script_file(f"{script}.css") for script in names)})
    name = view_name(f"{view}{content}")
    return (
        f'<div id="{name}" class="mechmem">{still}</div>'
        f'<script type="application/json" id="{name}-data">{content}</script>'
        f'<script>(() => {{\n{code}\nopenView({view}, "{name}");\n}})();</script>'
    ).replace("\0", "\\x00")


def view_name(content: str) -> str:
    """What a view is called in its page.

    Not a count: a notebook that is kept has views of several kernels. The same content gives the same page.
    """
    return f"mechmem-{sha256(content.encode('utf-8', 'backslashreplace')).hexdigest()[:12]}"


def script_file(name: str) -> str:
    """The text of a file in `scripts/`."""
    return (resources.files("mechmem.show") / "scripts" / name).read_text(encoding="utf-8")
