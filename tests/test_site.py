"""The site builds offline without a warning, holds every public name, and fails for what readers would stumble on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mechmem as mm
from tests.browser import needs_chromium, open_page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def build(source: Path, into: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Build pages as `make docs` does, without executing notebooks."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-E", "-W", "-n", "--keep-going", "-q"]
    command += ["-D", "nb_execution_mode=off", "-d", str(into / "doctrees"), *options, str(source), str(into / "site")]
    # A server that nobody runs: what asks the network fails.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = os.environ | nowhere | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(DOCS, folder)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    return folder / "site"


def test_every_public_name_is_documented_with_an_example(site):
    pages = {page.name: page.read_text() for page in (site / "api").glob("*.html")}
    anchors = set(re.findall(r'id="mechmem\.([\w.]+)"', "".join(pages.values()))) | set(
        re.findall(r'id="module-mechmem\.([\w.]+)"', "".join(pages.values()))
    )
    shown = {
        f"show.{name}" for name in re.findall(r"as (\w+)$", (ROOT / "mechmem/show/__init__.pyi").read_text(), re.M)
    }
    assert set(mm.__all__) - {"show"} | shown <= anchors
    scores = pages["models-paragraphs-and-scores.html"]
    assert "greedy" in scores  # of the docstring of `score`


def test_pages_load_nothing_from_a_server(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(
            r"<(?:script|link|img|iframe|source|video)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\"> ]+)", text
        )
        assert not loaded, page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import\s+[\"'](?:https?:)?//", style.read_text()), style


PROBE = """<script>
addEventListener("load", () => {
  let waits = 0;
  const look = () => {
    const found = [...document.querySelectorAll("#search-results li a")].map((link) => link.getAttribute("href"));
    if (found.length === 0 && waits++ < 200) return setTimeout(look, 50);
    document.documentElement.dataset.probe = JSON.stringify({ found });
  };
  look();
});
</script>"""


@needs_chromium
def test_search_works_from_a_file(site):
    seen, requests = open_page((site / "search.html").read_text(), site, PROBE, query="?q=worst_perturbations")
    assert any("fragility" in link for link in seen["found"]), seen
    assert not requests


DEFECTS = {
    "broken link to a page": ("[x](nowhere.md)", "nowhere.md"),
    "broken link to a heading": ("[x](other.md#nowhere)", "nowhere"),
    "unclosed example": ("```python\nimport mechmem as mm\n", "the block that begins with '```python' is not closed"),
    "page that nothing leads to": (None, "other.md"),
}
PAGE = "# A page\n\n```{toctree}\napi/index\nreference\nOTHER\n```\n\nBODY\n"


def small_site(folder: Path, *, page: str = "", other: str = "other", conf: str = "", reference: str = "") -> Path:
    """A site of three pages with the settings of the real one."""
    folder.mkdir()
    real = str(DOCS / "conf.py")
    conf = f"__file__ = {real!r}\nexec(compile(open(__file__).read(), __file__, 'exec'))\n{conf}"
    reference = reference or (DOCS / "reference.md").read_text()
    # Its links lead to pages that this site does not have.
    reference = re.sub(r"\]\([\w./#-]+\)", "](other.md)", reference)
    texts = {
        "conf.py": conf,
        "index.md": PAGE.replace("OTHER", other).replace("BODY", page),
        "other.md": "# Another page\n",
        "reference.md": reference,
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def test_a_name_without_docstring_row_or_example_fails_the_build(tmp_path):
    reference = (DOCS / "reference.md").read_text().replace("`kl`", "`lk`").replace("mm.top_cells(", "top_cells(")
    without = (
        "import mechmem, site_reference\n"
        "mechmem.score.__doc__ = None\n"
        "site_reference.public_names = lambda _: ['load_model', 'score', 'kl', 'top_cells']\n"
    )
    done = build(small_site(tmp_path / "source", conf=without, reference=reference), tmp_path)
    assert done.returncode != 0
    assert "score is public and has no docstring" in done.stderr
    assert "kl is public and has no row" in done.stderr
    assert "top_cells is public and has no example" in done.stderr
    assert done.stderr.count("is public and has no") == 3


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_alone_fails_a_small_site(defect, tmp_path):
    page, message = DEFECTS[defect]
    empty = "import site_reference\nsite_reference.public_names = lambda _: []\n"
    source = small_site(tmp_path / "source", page=page or "", other="other" if page else "", conf=empty)
    done = build(source, tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3, done.stderr


def test_fences_are_read_as_markdown_reads_them():
    sys.path.insert(0, str(DOCS))
    try:
        from site_checks import markdown_parts, unclosed  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(DOCS))
    assert unclosed("```python\na\n```\n\n:::{note}\n```\nb\n```\n:::\n") is None
    assert unclosed("````md\n```python\n````\n") is None
    assert unclosed("text\n\n```python\na\n``\n") == "```python"
    assert unclosed(":::{note}\n```\nb\n```\n") == ":::{note}"
    cell = '{"cells": [{"cell_type": "markdown", "source": ["```\\n", "a"]}, {"cell_type": "code", "source": ["```"]}]}'
    assert [unclosed(part) for part in markdown_parts(cell)] == ["```"]
