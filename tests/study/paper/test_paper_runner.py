import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from mechmem.data.checksums import damaged
from mechmem.data.errors import InputError
from mechmem.study.paper.paper_folder import NotPossibleError, PaperFolder
from mechmem.study.paper.paper_page import verdicts
from mechmem.study.paper.paper_runner import read_paper_manifest, run_paper
from mechmem.study.paper.paper_settings import PaperSettings, full
from mechmem.study.paper.rows import Finding, Row
from tests.study.paper.conftest import MEASURED, SMALL

QUICK = replace(SMALL, limit=40)


@pytest.fixture
def quick(monkeypatch):
    """Two items that take no time; gives the names of those that ran."""
    ran: list[str] = []

    def item(name: str):
        def measure(paper: PaperFolder) -> Finding:
            ran.append(name)
            value = float(paper.sets.memorized.column("nll").mean())
            row = Row(name, "q", "corrected", value, None, None, 1.0, "nats")
            return Finding((row,), xr.Dataset({"x": ("i", np.array([value]))}))

        return measure

    items = {"sets": item("sets"), "perturbation": item("perturbation")}
    for place in ("paper_runner", "paper_page"):
        monkeypatch.setattr(f"mechmem.study.paper.{place}.ITEMS", items)
    monkeypatch.setattr("mechmem.study.paper.paper_page.DRAWINGS", {})
    monkeypatch.setattr("mechmem.show.charts.chart_svg.browser", lambda: None)
    return items, ran


def test_a_folder_holds_two_files_of_each_item_and_the_page(small_paper):
    names = {path.name for path in small_paper.folder.iterdir()}
    assert {"paper.json", "paper.html", "paragraphs.parquet", "SHA256SUMS"} <= names
    for name in MEASURED:
        assert f"{name}.json" in names and (f"{name}.nc" in names) == (small_paper.left_out(name) is None), name
    assert damaged(small_paper.folder) == [] and not any(".partial" in name for name in names)


def test_the_page_shows_every_row_and_all_traps(small_paper):
    page = (small_paper.folder / "paper.html").read_text()
    assert "33.12" in page and "Published numbers do not apply" in page
    for number in range(1, 15):
        assert f'data-key="{number}"' in page
    assert "Not measured: the item that measures it did not." in page
    for name in MEASURED:
        assert f'<section id="{name}"' in page
    rows = [row for name in MEASURED for row in small_paper.account(name)[0]]
    counted = verdicts(rows, applies=False, reading="corrected")
    assert counted["reproduced"] == counted["differs"] == 0 and counted["cannot be said"] > 20


def test_a_second_run_does_nothing_and_one_after_a_kill_does_the_rest(quick, tmp_path):
    items, ran = quick
    measure = items["perturbation"]

    def killed(_: PaperFolder) -> Finding:
        raise KeyboardInterrupt

    items["perturbation"] = killed
    with pytest.raises(KeyboardInterrupt):
        run_paper(tmp_path / "p", QUICK)
    assert ran == ["sets"] and not (tmp_path / "p" / "paper.html").exists()
    items["perturbation"] = measure
    told = {}
    found = run_paper(tmp_path / "p", QUICK, told=lambda name, said: told.update({name: said}))
    assert ran == ["sets", "perturbation"] and set(told) == {"perturbation", "page"}
    assert "Chromium was not found" in told["page"]
    before = {path.name: path.read_bytes() for path in found.folder.iterdir()}
    run_paper(tmp_path / "p", QUICK)
    assert ran == ["sets", "perturbation"]
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == before
    manifest = read_paper_manifest(found.folder)
    assert manifest is not None and set(manifest["timings"]) == set(items) and not manifest["applies"]


def test_a_damaged_item_is_measured_again(quick, tmp_path):
    _, ran = quick
    found = run_paper(tmp_path / "p", QUICK)
    (found.folder / "sets.nc").write_bytes(b"x")
    run_paper(tmp_path / "p", QUICK)
    assert ran == ["sets", "perturbation", "sets"] and damaged(found.folder) == []
    (found.folder / "paragraphs.parquet").write_bytes(b"x")
    (found.folder / "sets.json").unlink()
    run_paper(tmp_path / "p", QUICK)
    assert ran[-1] == "sets" and len(PaperFolder(found.folder, QUICK).sets.scored) == 40


def test_an_item_that_is_not_possible_is_a_reason_on_the_page(quick, tmp_path):
    items, _ = quick

    def impossible(_: PaperFolder) -> Finding:
        raise NotPossibleError("the corpus has no <other> paragraphs")

    items["perturbation"] = impossible
    found = run_paper(tmp_path / "p", QUICK)
    assert found.left_out("perturbation") == "the corpus has no <other> paragraphs" and found.done("perturbation")
    assert "Not measured: the corpus has no &lt;other&gt; paragraphs." in (found.folder / "paper.html").read_text()


@pytest.mark.usefixtures("quick")
def test_other_settings_folders_and_corpora_are_refused(tmp_path):
    run_paper(tmp_path / "p", QUICK)
    with pytest.raises(InputError, match=r"other settings \(seed was 0, now 1\); choose another folder"):
        run_paper(tmp_path / "p", replace(QUICK, seed=1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty and holds no paper.json"):
        run_paper(tmp_path / "full", QUICK)
    with pytest.raises(InputError, match="need a folder"):
        run_paper(tmp_path / "full" / "mine.txt", QUICK)
    (tmp_path / "p" / "paper.json").write_text("[")
    with pytest.raises(InputError, match="not readable as JSON"):
        run_paper(tmp_path / "p", QUICK)
    (tmp_path / "p" / "paper.json").write_text(json.dumps({"format": 9, "settings": {}, "model": {}, "timings": {}}))
    with pytest.raises(InputError, match="got format 9; need 1"):
        run_paper(tmp_path / "p", QUICK)


@pytest.mark.usefixtures("quick")
def test_a_corpus_that_changed_is_refused(tmp_path, bundled):
    bundled[:60].save(tmp_path / "c.parquet")
    settings = replace(QUICK, corpus=str(tmp_path / "c.parquet"))
    run_paper(tmp_path / "p", settings)
    bundled[:70].save(tmp_path / "c.parquet")
    with pytest.raises(InputError, match="corpus was"):
        run_paper(tmp_path / "p", settings)


@pytest.mark.usefixtures("quick")
def test_a_corpus_that_cannot_be_used_leaves_no_folder(tmp_path):
    np.save(tmp_path / "random.npy", np.random.default_rng(0).integers(5, 900, (6, 100)))
    with pytest.raises(InputError, match="reproduces none of 6 paragraphs"):
        run_paper(tmp_path / "p", replace(QUICK, corpus=str(tmp_path / "random.npy")))
    assert not (tmp_path / "p").exists()


def test_the_full_sizes_are_the_study_s():
    settings = full(PaperSettings(seed=3))
    assert settings.perturbed is None and settings.seed == 3 and settings.pairs == 90
    with pytest.raises(InputError, match="got 0 as pairs"):
        PaperSettings(pairs=0)
