"""The report of a study that was really run, attacks too."""

import html
import re

import pytest

import mechmem
from mechmem.report.sections.attacks import NAMES
from mechmem.report.study_files import read_study
from mechmem.study.folder import open_study


@pytest.fixture(scope="module")
def text(small_study):
    markup = (small_study.folder / "report.html").read_text(encoding="utf-8")
    markup = re.sub(r"<(script|style)(?: [^>]*)?>.*?</\1>", "", markup, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def test_every_section_is_answered_with_the_study_s_numbers(small_study, text):
    study = read_study(small_study.folder)
    assert "has not been run" not in text and "not run yet" not in text and "there is no" not in text.lower()
    assert "nan" not in text.lower().split()
    memorized = len(study.members("memorized"))
    assert f"{memorized} of 200 paragraphs" in text
    unlearn = open_study(small_study.folder).results["unlearn"]
    before, after = (float(unlearn.em.sel(set="targets", edit=edit)) for edit in ("original", "NPO, all weights"))
    assert f"the targets from {before:.1f} to {after:.1f} tokens of EM" in text
    assert f"takes the {unlearn.attrs['targets']} targets from {before:.1f} to {after:.1f} tokens of EM" in text
    for edit in unlearn.edit.values:
        assert str(edit) in text
    assert "As many random weights" in text


def test_every_attack_is_in_its_table_with_its_interval(small_study, text):
    attacks = open_study(small_study.folder).results["attacks"]
    assert attacks.edit.values.tolist() == ["NPO, all weights", "NPO, top 0.1 %"]
    for name in attacks.attack.values:
        one = attacks.sel(edit="NPO, all weights", attack=name)
        values = [float(one[column]) for column in ("em_before", "em_after", "em_after_low", "em_after_high")]
        row = " ".join(["NPO, all weights", NAMES[str(name)], *(shown(value) for value in values)])
        assert row in text
        assert values[2] <= values[1] <= values[3]


def shown(value: float) -> str:
    return f"{value:.2f}" if value == 0 or value >= 0.1 else f"{value:.3g}"


def test_the_run_is_told_with_findings_times_and_settings(small_study, text):
    study = open_study(small_study.folder)
    assert "of CPU time" in text and "What each stage found" in text
    assert "paragraphs reproduced exactly" in text
    assert study.settings.edits[0] in text


def test_every_line_of_code_makes_something_in_a_notebook(small_study):
    markup = (small_study.folder / "report.html").read_text(encoding="utf-8")
    lines = list(dict.fromkeys(html.unescape(line) for line in re.findall(r"<code>(.*?)</code>", markup)))
    assert len(lines) >= 12 and "study.show()" in lines
    study = open_study(small_study.folder)
    for line in lines:
        made = eval(line, {"mm": mechmem, "study": study})
        assert hasattr(made, "_repr_html_") or len(made), f"a notebook shows nothing for {line}"
