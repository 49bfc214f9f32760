"""The report's section on the detector: its sentences hold the numbers, and studies without one are as before."""

import numpy as np
import pytest

from mechmem.data.checksums import record
from mechmem.data.errors import InputError
from mechmem.data.netcdf import save_netcdf
from mechmem.report.page import Figure, Table, View
from mechmem.report.sections.detection import alarm_rows, alarm_sentence, detection_section, verdict
from mechmem.report.study_files import StudyFiles, read_study
from mechmem.report.study_report import study_page, write_report


@pytest.fixture
def found(synthetic):
    return synthetic.detection(np.random.default_rng(0))


def test_the_section_says_what_is_found_beside_the_best_baseline(found):
    section = detection_section(StudyFiles(detection=found))
    assert section is not None
    text = " ".join(section.answer)
    assert text.startswith("The detector finds more recitations than every free baseline")
    assert "at k = 0, 4 and 16." in section.answer[0]
    assert "After 0 own tokens the detector finds 50.0 % (45.0 to 55.0 %) of the recitations" in text
    assert "the best baseline, running NLL, finds 20.0 % (15.0 to 25.0 %)" in text
    assert "in 62.0 % (57.0 to 67.0 %) with at least 40 tokens still to come" in text
    assert "0.8 % (0.0 to 5.8 %) of the other generations: within the bound of 1.0 %" in text
    assert "differ from observed shares by 0.030" in text
    kinds = [type(block) for block in section.blocks]
    assert kinds == [Figure, Figure, View, Table]
    assert len(section.blocks[-1].rows) == found.sizes["method"] * found.sizes["k"]  # pyright: ignore


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.3, "finds more recitations than every"),
        (0.05, "so statistics that cost nothing say as much"),
        (-0.2, "finds fewer"),
    ],
)
def test_the_verdict_is_better_only_by_more_than_the_intervals(synthetic, gain, said):
    assert said in verdict(synthetic.detection(np.random.default_rng(0), gain=gain))


def test_too_few_others_for_a_threshold_are_said(found):
    unknown = found.assign({f"tpr_at_1{end}": found[f"tpr_at_1{end}"] * np.nan for end in ("", "_low", "_high")})
    section = detection_section(StudyFiles(detection=unknown))
    assert section is not None and all("nan" not in sentence for sentence in section.answer)
    assert section.answer[0].startswith("The detector was judged on 380 other generations, too few for a threshold")


def test_a_mixed_verdict_names_every_k(found):
    mixed = found.copy(deep=True)
    place = {"method": 0, "k": list(found.k.values).index(4)}
    for end in ("", "_low", "_high"):
        mixed[f"tpr_at_1{end}"][place] = float(found[f"tpr_at_1{end}"][place | {"method": 1}])
    assert verdict(mixed) == (
        "The detector finds more recitations than every free baseline at k = 0 and 16 and does not differ from the "
        "best one by more than the intervals at k = 4."
    )


def test_a_rate_above_the_bound_is_said_to_be_above(found):
    low = found.false_alarm_rate * 0 + 0.05
    above = found.assign(false_alarm_rate=found.false_alarm_rate + 0.1, false_alarm_rate_low=low)
    assert "above the bound of 1.0 %" in alarm_sentence(above)
    never = found.assign(false_alarm_rate=found.false_alarm_rate * np.nan)
    assert "never raised" in alarm_sentence(never)


def test_the_summary_of_the_command_has_what_was_asked(found):
    rows = dict(alarm_rows(found))
    assert rows["recitations flagged with 40 tokens to come"] == "62.0 % (57.0 to 67.0 %)"
    assert rows["false alarms in whole generations (bound 1.0 %)"] == "0.8 % (0.0 to 5.8 %)"


def test_a_study_without_a_detector_has_five_questions_and_one_with_it_six(make_study, tmp_path, found):
    folder = make_study(tmp_path / "s")
    before = study_page(read_study(folder))
    assert "detection" not in [section.name for section in before.sections] and before.lead.startswith("Five answers")
    save_netcdf(found, folder / "detect.nc")
    after = study_page(read_study(folder))
    names = [section.name for section in after.sections]
    assert names == [*[section.name for section in before.sections[:-1]], "detection", "run"]
    assert after.lead.startswith("Six answers") and after.answers[-1].section == "detection"
    assert "finds 70.0 % (65.0 to 75.0 %)" not in after.answers[-1].sentence
    assert "after 4 own tokens, the best free baseline (running NLL) 35.0 %" in after.answers[-1].sentence
    assert "What fired, and when" in write_report(folder).read_text()


def test_a_damaged_result_names_the_command_that_makes_it_again(make_study, tmp_path, found):
    folder = make_study(tmp_path / "s")
    save_netcdf(found, folder / "detect.nc")
    record(folder, ["detect.nc"])
    (folder / "detect.nc").write_bytes((folder / "detect.nc").read_bytes() + b"x")
    with pytest.raises(InputError, match=r"was damaged or changed.*`mechmem detect --out .*` does it"):
        write_report(folder)
    save_netcdf(found.drop_vars("tpr_at_1_low"), folder / "detect.nc")
    record(folder, ["detect.nc"])
    with pytest.raises(InputError, match="has no variable 'tpr_at_1_low', as stage 'detect' writes it"):
        write_report(folder)


def test_an_infinite_threshold_is_said_to_raise_no_alarm(found):
    never = found.assign(bound=("method", np.full(found.sizes["method"], np.nan)))
    assert alarm_sentence(never).startswith("The alarm is never raised")
    assert dict(alarm_rows(never))["alarms"].startswith("never")
    assert "never" not in alarm_sentence(found.assign(bound=("method", np.full(found.sizes["method"], 0.01))))
