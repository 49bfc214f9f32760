"""`mechmem paper` on a small corpus, with the items replaced by one that takes no time."""

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from mechmem.cli import app
from mechmem.study.paper.rows import Finding, Row


@pytest.fixture
def one_item(monkeypatch):
    def measure(paper):
        value = float(paper.sets.memorized.column("nll").mean())
        rows = tuple(
            Row("sets", "mean NLL", reading, value, 0.0, 1.0, 9.0, "nats") for reading in ("as published", "corrected")
        )
        return Finding(rows, xr.Dataset({"x": ("i", np.array([value]))}))

    for place in ("paper_runner", "paper_page"):
        monkeypatch.setattr(f"mechmem.study.paper.{place}.ITEMS", {"sets": measure})
    monkeypatch.setattr("mechmem.study.paper.paper_page.DRAWINGS", {})
    monkeypatch.setattr("mechmem.show.charts.chart_svg.browser", lambda: None)


def said_by(*words: str, code: int = 0) -> str:
    answer = CliRunner().invoke(app, ["paper", *words], env={"COLUMNS": "120"})
    assert answer.exit_code == code, answer.output + repr(answer.exception)
    return " ".join(answer.output.split())


@pytest.mark.usefixtures("one_item")
def test_it_shows_published_beside_measured_and_goes_on(tmp_path):
    words = ["--model", "bundled", "--limit", "40", "--out", str(tmp_path / "p"), "--set", "pairs=2"]
    said = said_by(*words)
    assert "mean NLL (nats)" in said and "the published numbers do not apply to this model" in said
    assert "sets: 2 rows and 0 traps" in said and "paper.html" in said and (tmp_path / "p" / "paper.html").is_file()
    again = said_by(*words)
    assert "sets: 2 rows" not in again and "mean NLL (nats)" in again
    assert "seed was 0, now 3" in said_by(*words, "--seed", "3", code=2)


def test_what_it_cannot_use_is_a_sentence(tmp_path):
    out = ["--out", str(tmp_path / "p")]
    assert "unknown setting 'pair'; did you mean pairs?" in said_by("--set", "pair=2", *out, code=2)
    assert "got 0 as pairs" in said_by("--set", "pairs=0", *out, code=2)
    missing = ["--model", "bundled", "--corpus", str(tmp_path / "none.txt")]
    assert "no such file" in said_by(*missing, *out, code=2) and not (tmp_path / "p").exists()
