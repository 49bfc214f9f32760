"""Write the reference of every public name: its docstring, and the example of it that tests run in reference.md.

The names come from `mechmem/__init__.pyi` and `mechmem/show/__init__.pyi`, sections and examples from `reference.md`.
The pages are written to the folder `api` whenever the site is built.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
PACKAGE = Path(__file__).parents[1] / "mechmem"
ANNOTATED = re.compile(r"Annotated\[([^,\[\]]+), [^\[\]]*\]")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Section:
    """A section of reference.md: its title, what its table says of each name, and its code."""

    title: str
    rows: dict[str, str]
    code: str

    @property
    def page(self) -> str:
        """The name of its page in the folder `api`."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx; the pages are there before it looks for pages."""
    app.connect("config-inited", lambda *_: write_pages(Path(app.srcdir)))
    app.connect("autodoc-process-docstring", with_plain_bars)
    app.connect("autodoc-process-signature", without_bounds)
    return {"parallel_read_safe": True}


def with_plain_bars(*arguments: Any) -> None:
    """In docstrings, |x| is an absolute value; reStructuredText would replace it by something named x."""
    lines = arguments[-1]
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[number] = "`".join(parts)


def without_bounds(*arguments: Any) -> tuple[str | None, str | None]:
    """In signatures, the plain type of a number; its bounds are long, and errors name them."""
    signature, returned = arguments[-2:]
    return ANNOTATED.sub(r"\1", signature or "") or None, returned


def write_pages(docs: Path) -> None:
    """Write one page for each section and an index, and remove pages of sections that are gone."""
    names = public_names(PACKAGE)
    found, folder = sections((docs / "reference.md").read_text()), docs / "api"
    code = "\n".join(section.code for section in found)
    pages = {f"{section.page}.rst": page_of(section, names, code) for section in found if placed(section, names)}
    pages["index.rst"] = index_of([section for section in found if placed(section, names)])
    for name in sorted(set(names) - {name for section in found for name in placed(section, names)}):
        LOGGER.warning("%s is public and has no row in reference.md", name)
    folder.mkdir(exist_ok=True)
    for old in set(folder.glob("*.rst")) - {folder / name for name in pages}:
        old.unlink()
    for name, text in pages.items():
        # A page that stays as it is keeps its time, so that a second build does not read it again.
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)


def public_names(package: Path) -> list[str]:
    """Names as a user writes them after `mm.`, in the order of the declarations."""
    names = [name for name in declared(package / "__init__.pyi") if name != "show"]
    return names + [f"show.{name}" for name in declared(package / "show/__init__.pyi")]


def declared(stub: Path) -> Iterator[str]:
    """The names that a stub file declares."""
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield from (alias.asname for alias in node.names if alias.asname)


def sections(text: str) -> list[Section]:
    """The page's sections in order."""
    parts = re.split(r"^## (.*)$", text, flags=re.M)[1:]
    found = []
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        rows = {}
        for cells, said in re.findall(r"^\| (`.*?) \| (.*) \|$", body, re.M):
            rows |= dict.fromkeys(re.findall(r"`([\w.]+)`", cells), said)
        found.append(Section(title, rows, "".join(BLOCK.findall(body))))
    return found


def placed(section: Section, names: list[str]) -> list[str]:
    """The public names that belong to a section; pictures belong to that of `show`."""
    named = [name for name in section.rows if name in names]
    if "show" in section.rows:
        named += [name for name in names if name.startswith("show.") and name not in named]
    return named


def page_of(section: Section, names: list[str], code: str) -> str:
    """A section's page in reStructuredText; examples are from the code of all sections."""
    lines = [section.title, "=" * len(section.title), ""]
    lines += ["The examples continue one session: :doc:`/reference` has them in order.", ""]
    for name in placed(section, names):
        lines += entry(name, section, code)
    return "\n".join(lines)


def entry(name: str, section: Section, code: str) -> list[str]:
    """The directive that shows a name's docstring, with its example."""
    value = value_of(name)
    # Pictures are returned and not made: any of `show` is an example of them.
    returned = inspect.isclass(value) and name.startswith("show.")
    example = example_of("show" if returned else name, code)
    if not (inspect.getdoc(value) or "").strip() and not isinstance(value, (tuple, list, dict, str)):
        LOGGER.warning("%s is public and has no docstring", name)
    if example is None:
        LOGGER.warning("%s is public and has no example in reference.md", name)
    return [*directive(name, value, section.rows.get(name, "")), "", *indented(example or ""), ""]


def directive(name: str, value: Any, said: str) -> list[str]:
    """The directive for a function, class, module or constant."""
    if inspect.ismodule(value):
        return [f".. py:module:: mechmem.{name}", "", *heading(name), f"   {inspect.getdoc(value)}", *members_of(value)]
    if inspect.isclass(value):
        return [f".. autoclass:: mechmem.{name}", "   :members:"]
    if callable(value):
        return [f".. autofunction:: mechmem.{name}"]
    return [f".. py:data:: mechmem.{name}", "", f"   {said}"]


def heading(name: str) -> list[str]:
    """A heading within a page, for a module."""
    return [f"``mm.{name}``", "-" * (len(name) + 7), ""]


def members_of(module: Any) -> list[str]:
    """The public functions of a module that is itself a public name."""
    functions = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    return ["", *(f".. autofunction:: {module.__name__}.{name}" for name in functions)]


def value_of(name: str) -> Any:
    """What a public name stands for."""
    value = importlib.import_module("mechmem")
    for part in name.split("."):
        value = getattr(value, part)
    return value


def example_of(name: str, code: str) -> str | None:
    """The first statement in a section's code that uses a name, with its comment."""
    lines = code.splitlines()
    used = re.compile(rf"\bmm\.{re.escape(name)}\b")
    for node in ast.parse(code).body:
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if used.search(text):
            return text
    return None


def indented(example: str) -> list[str]:
    """An example as the content of a directive."""
    return ["   .. code-block:: python", "", *(f"      {line}" for line in example.splitlines())] if example else []


def index_of(found: list[Section]) -> str:
    """The page that lists the sections."""
    lines = ["All public names", "================", "", "From their docstrings.", "", ".. toctree::", ""]
    return "\n".join([*lines, *(f"   {section.page}" for section in found), ""])
