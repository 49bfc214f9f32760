"""Examples in the docs run, every public name has one, and what the pages name exists."""

import re
from pathlib import Path

import pytest
import typer

import mechmem as mm
from mechmem.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
# CONTRIBUTING quotes phrases to avoid, and the changelog quotes old names.
PROSE = [*(page for page in PAGES if page.name not in ("CONTRIBUTING.md", "CHANGELOG.md"))]
RIDDLES = re.compile(
    r"nats a token|; wanted |\bcame;|what it never saw|the ways? that others|brings anything|noise a memory stands"
    r"|owe most to|whom each|what is not so good|Is it gone\?",
    re.I,
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# README's block has a test of its own.
@pytest.mark.parametrize("page", [p for p in PAGES[1:] if BLOCK.search(p.read_text())], ids=name)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "docs"}
    text = page.read_text()
    for block in BLOCK.finditer(text):
        # Lines in a traceback are those of the page.
        lines = "\n" * text.count("\n", 0, block.start(1))
        exec(compile(lines + block[1], str(page), "exec"), scope)


def test_every_public_name_has_a_row_and_an_example():
    rows = [line for page in PROSE for line in page.read_text().splitlines() if line.startswith("|")]
    listed = {found for row in rows for found in re.findall(r"`(\w+)`", row)}
    code = "".join(block for page in PROSE for block in BLOCK.findall(page.read_text()))
    used = set(re.findall(r"\bmm\.(\w+)", code))
    assert not set(mm.__all__) - listed, "public names without a row in README or docs"
    assert not set(mm.__all__) - used, "public names without an example in README or docs"
    assert not used - set(mm.__all__), "examples of names that are not public"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_files_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(((?!http)[^)#]+)", text):
        # The site makes `api/` from docstrings; its own test follows links into it.
        assert (page.parent / link).exists() or link.startswith("api/"), link
    for path in re.findall(r"`(?:python )?((?:\w[\w.-]*/)+[\w.-]+\.(?:py|pyi|md|json))\b", text):
        assert any((base / path).exists() for base in (ROOT, ROOT / "mechmem", ROOT / "docs")) or made(path), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_their_options_exist(page):
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    for line in re.findall(r"^    (?:\w+=\S+ |\.venv/bin/)*mechmem (.*)$", page.read_text(), re.M):
        command, *rest = line.split("#")[0].split()
        known = {
            option for parameter in commands[command].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        asked = {word for word in rest if word.startswith("--")}
        assert asked <= known, f"mechmem {line}"


def made(path: str) -> bool:
    """Files of a study's folder are named but do not ship."""
    return path.startswith(("study/", "old/", "OUT/"))


def test_the_layout_page_names_every_folder():
    text = (ROOT / "docs/layout.md").read_text()
    packages = {path.parent.relative_to(ROOT / "mechmem") for path in (ROOT / "mechmem").rglob("__init__.py")}
    folders = {f"{path}/" for path in map(str, packages) if path != "."}
    named = set(re.findall(r"^\| `([a-z/]+/)` \|", text, re.M))
    assert folders - {"report/sections/"} <= named
    chain = next(line for line in text.splitlines() if "→" in line).strip().split(" → ")
    assert all((ROOT / "mechmem" / stage).is_dir() for stage in chain)


def test_no_known_riddle_is_back():
    found = [f"{name(page)}: {hit[0]}" for page in PROSE for hit in RIDDLES.finditer(page.read_text())]
    found += [
        f"{name(path)}: {hit[0]}"
        for folder in ("experiments", "mechmem")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for hit in RIDDLES.finditer(path.read_text())
    ]
    assert not found
