"""The linked view of a study: which paragraphs it lists, and that the page holds the files' numbers."""

import base64
import json
import re
import shutil
import zlib

import numpy as np
import pytest
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.report.study_files import StudyFiles, read_study
from mechmem.report.study_view import study_view
from mechmem.report.view_kept import kept_of
from mechmem.report.view_rows import MOST_NATS, levels_of, shown_rows
from mechmem.show.packed_numbers import unpacked_numbers
from mechmem.show.patterns.packed_patterns import unpacked
from mechmem.study.folder import open_study


def data_of(html: str) -> dict:
    found = re.search(r'-data">(\{.*?\})</script>', html)
    assert found is not None
    return json.loads(found[1])


def raw(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


@pytest.fixture(scope="module")
def page(small_study) -> dict:
    return data_of(open_study(small_study.folder).show().html)


def test_every_row_holds_the_files_tokens_losses_and_scores(small_study, page):
    study = read_study(small_study.folder)
    rows, table = page["rows"], json.loads(raw(page["rows"]["packed"]))
    listed = shown_rows(study, sorted(kept_of(study)[0], key=lambda row: page_order(page, study, row)))
    paragraphs = study.paragraphs
    assert paragraphs is not None and rows["count"] == page["all"] == len(paragraphs) == len(set(listed.tolist()))
    columns = {column["name"]: column for column in table["columns"]}
    em = np.array(columns["em"]["numbers"])
    ids = [columns["id"]["words"][place] for place in columns["id"]["places"]]
    assert ids == [str(paragraphs.ids[row]) for row in listed]
    np.testing.assert_array_equal(em, paragraphs.column("em")[listed])
    places = np.frombuffer(raw(rows["tokens"]), f"<u{rows['wide']}").reshape(len(listed), -1)
    labels = np.array(paragraphs.column("token_label").tolist())[listed]
    np.testing.assert_array_equal(np.array(table["labels"])[places], labels)
    levels = np.frombuffer(raw(rows["losses"]), np.uint8).reshape(len(listed), -1)
    truth = np.array(paragraphs.column("token_nll").tolist())[listed]
    np.testing.assert_allclose(MOST_NATS * (levels / 255) ** 2, truth, atol=0.01, rtol=0.03)
    np.testing.assert_allclose(truth.mean(-1), paragraphs.column("nll")[listed], atol=1e-5)


def page_order(page: dict, study: StudyFiles, row: int) -> int:
    """Where the page has a row that was kept."""
    assert study.paragraphs is not None
    table = json.loads(raw(page["rows"]["packed"]))
    ids = next(column for column in table["columns"] if column["name"] == "id")
    return [ids["words"][place] for place in ids["places"]].index(str(study.paragraphs.ids[row]))


def test_heatmaps_and_heads_are_those_of_the_stages(small_study, page):
    study = open_study(small_study.folder)
    patching, attention = study.results["patching"], study.results["attention"]
    table = json.loads(raw(page["rows"]["packed"]))
    ids = next(column for column in table["columns"] if column["name"] == "id")
    seen = {ids["words"][ids["places"][int(place)]]: kept for place, kept in page["kept"].items()}
    for place, identity in enumerate(patching.paragraph.values):
        one = patching.isel(paragraph=place)
        stream, heads = (unpacked_numbers(map_["packed"]) for map_ in seen[str(identity)]["maps"])
        np.testing.assert_allclose(stream, one.resid_pre.transpose("layer", "pos").values.ravel(), rtol=2e-4)
        truth = one.z.transpose("layer", "head", "pos").values
        np.testing.assert_allclose(
            np.nan_to_num(heads), np.nansum(truth, -1).ravel(), rtol=2e-4, atol=1e-7, err_msg="not patched is blank"
        )
        pos = int(one.perturbed_pos)
        texts = [str(one[name].values[pos]) for name in ("clean_text", "corrupt_text")]
        assert seen[str(identity)]["perturbed"]["texts"] == texts and texts[0] != texts[1]
    first = str(patching.shown.values[0])
    pattern = (patching.pattern[0].values / 255.0) ** 2
    side = seen[first]["attention"]["paragraphs"][0]["sides"][0]
    found = unpacked(side["packed"], pattern.shape[0] * pattern.shape[1], pattern.shape[-1])
    np.testing.assert_allclose(found, pattern.reshape(found.shape), atol=1e-9)
    intact = mm.capture(
        study.model, study.paragraphs[study.paragraphs.ids == patching.shown.values[0]], sites="pattern"
    )
    np.testing.assert_allclose(pattern, intact.pattern[0].values, atol=5e-3)
    assert str(attention.paragraph_id.values[0]) in seen


def test_losses_as_bytes_are_right_to_two_percent():
    nats = np.array([[0.01, 0.1, 1.0, 5.0, 19.0, 0.0, 50.0]])
    back = MOST_NATS * (levels_of(nats) / 255) ** 2
    np.testing.assert_allclose(back[0, 1:5], nats[0, 1:5], rtol=0.05)
    assert back[0, 5] == 0 and back[0, 6] == MOST_NATS


def test_a_large_study_lists_a_part_with_every_em_and_all_that_was_kept():
    em = np.repeat([50, 30, 5, 0], 2500)
    sets = np.select([em == 50, em <= 10], ["memorized", "other"], "between")
    tokens = np.arange(10_000 * 6).reshape(-1, 6) % 97
    import torch

    paragraphs = Paragraphs(torch.from_numpy(tokens), 3).with_columns(em=em, set=sets)
    rows = shown_rows(StudyFiles(paragraphs=paragraphs), [9_999, 17])
    assert rows[:2].tolist() == [9_999, 17] and len(rows) == len(set(rows.tolist())) <= 3000
    counts = {value: int((em[rows] == value).sum()) for value in (50, 30, 5, 0)}
    assert counts[50] > 1900 and min(counts.values()) > 300
    assert (np.diff(em[rows[2:]]) <= 0).all()


def test_a_study_of_an_earlier_version_shows_what_it_has(study_folder):
    study = read_study(study_folder)
    html = study_view(study).html
    found = data_of(html)
    table = json.loads(raw(found["rows"]["packed"]))
    assert "texts" in table and "labels" not in table and "tokens" not in found["rows"]
    assert "earlier version" in found["missing"]
    assert len(found["kept"]) == 8, "six were patched, and of two others attention was kept"


def test_a_notebook_shows_the_view_and_a_study_without_scores_says_so(small_study, tmp_path):
    study = open_study(small_study.folder)
    assert 'class="mechmem"' in study._repr_html_() and len(study._repr_html_()) < 3_000_000
    shutil.copy(small_study.folder / "study.json", tmp_path / "study.json")
    empty = open_study(tmp_path)
    assert "got a study without scored paragraphs" in empty._repr_html_()
    with pytest.raises(InputError):
        empty.show()
    with pytest.raises(InputError, match="got theme 'blue'"):
        study.show(theme="blue")


def test_the_still_picture_has_the_first_paragraphs_and_their_losses(small_study, tmp_path):
    study = open_study(small_study.folder)
    text = study.show().save(tmp_path / "study.svg").read_text(encoding="utf-8")
    import xml.etree.ElementTree as tree

    tree.fromstring(text)
    first = study.results["patching"].shown.values[0]
    assert f"Paragraph {first}: EM" in text


def test_ablation_intervals_hold_their_means(small_study):
    heads = open_study(small_study.folder).results["heads"]
    for name in ("em_change", "nll_change"):
        assert (heads[f"{name}_low"] <= heads[name] + 1e-9).all() and (
            heads[name] <= heads[f"{name}_high"] + 1e-9
        ).all()
    assert isinstance(heads, xr.Dataset) and float((heads.nll_change_high - heads.nll_change_low).max()) > 0
