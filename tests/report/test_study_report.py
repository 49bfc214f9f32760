import html
import json
import re
import shutil
from typing import Any

import numpy as np
import pytest
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.netcdf import save_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.report.page import Figure, Section, Table
from mechmem.report.sections.answers import five_answers
from mechmem.report.sections.attention import attention_section
from mechmem.report.sections.memorized import memorized_section
from mechmem.report.sections.removal import removal_section
from mechmem.report.sections.where import where_section
from mechmem.report.sections.wording import listed, percent, signed
from mechmem.report.study_files import StudyFiles, read_study
from mechmem.report.study_report import write_report
from mechmem.stats.bootstrap import cluster_bootstrap

FULL = 50
STAGES = [
    "paragraphs.parquet",
    "gradients.nc",
    "heads.nc",
    "rare.nc",
    "attention.nc",
    "patching.nc",
    "unlearn.nc",
    "study.json",
]


def visible_text(path) -> str:
    markup = re.sub(r"<(script|style)(?: [^>]*)?>.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", markup))


def figures_of(section: Section) -> list[Any]:
    return [block.figure for block in section.blocks if isinstance(block, Figure)]


def rng():
    return np.random.default_rng(1)


def removal_text(data) -> str:
    return " ".join(removal_section(StudyFiles(unlearned=data)).answer)


def test_a_whole_study_gives_a_whole_report(study_folder):
    path = write_report(study_folder)
    text = visible_text(path)
    assert path == study_folder / "report.html"
    assert "has not been run" not in text and "not run yet" not in text
    assert "nan" not in text.lower().split()
    study = read_study(study_folder)
    assert f"continues {len(study.members('memorized'))} of 900 paragraphs" in text
    assert "needs head L1H2 most: without it EM falls by 18.4 tokens" in text
    assert "how the model continues 6 memorized paragraphs" in text and "rises by 2.0 nats. From layer 2 on" in text
    assert "undoes most of that rise: L1H2 (50.0 %), " in text and "rank correlation of 0.93" in text
    assert "84,935 of 84,934,656" in text and "9f2c41aa" in text


def test_the_same_files_give_the_same_report(study_folder):
    assert write_report(study_folder).read_bytes() == write_report(str(study_folder)).read_bytes()


def said(study: StudyFiles) -> dict[str, str]:
    return {answer.label: answer.sentence for answer in five_answers(study)}


def test_the_five_sentences_hold_the_numbers_of_the_files(study_folder):
    study = read_study(study_folder)
    answers = said(study)
    assert list(answers) == ["What", "How much", "Where", "At what price", "How sure"]
    memorized = study.members("memorized")
    low, high = cluster_bootstrap(study.column("em") == FULL, study.column("cluster"))  # pyright: ignore
    share = f"{100 * len(memorized) / 900:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"
    assert f"continues {len(memorized)} of 900 paragraphs" in answers["How much"] and share in answers["How much"]
    assert "Attention head L1H2 is needed most" in answers["Where"] and "loses 18.4 of 50 tokens" in answers["Where"]
    assert "L1H2 alone undoes 50.0 % (50.0 to 50.0 %, 6 pairs)" in answers["Where"]
    first = study.unlearned.isel(edit=1)  # pyright: ignore
    ends = f"({float(first.em_low[0]):.1f} to {float(first.em_high[0]):.1f})"
    assert f"takes the targets from 50.0 to 6.3 tokens of EM {ends}" in answers["At what price"]
    assert "84,935 of 84,934,656" in answers["At what price"] and "by −0.3 tokens" in answers["At what price"]
    assert "random weights remove 1.4 tokens where the chosen ones remove 43.7" in answers["How sure"]
    page = visible_text(write_report(study_folder))
    for label, sentence in answers.items():
        assert label in page and sentence in page and sentence.count(". ") == 0, "one sentence each"


def test_a_sentence_without_its_stage_says_so():
    answers = said(StudyFiles())
    assert all(text.startswith(("Not measured yet", "Not known yet")) for text in answers.values())


def test_the_sentences_give_the_intervals_of_heads_and_attacks(synthetic):
    heads = synthetic.heads(rng())
    for name, change in (("low", -21.0), ("high", -15.5)):
        heads[f"em_change_{name}"] = heads.em_change * 0 + change
    assert "(15.5 to 21.0; the average head" in said(StudyFiles(heads=heads))["Where"]
    unlearned = synthetic.unlearned(rng())
    edit = str(unlearned.edit.values[1])
    values = {
        "em_before": [50.0, 50.0],
        "em_after": [6.3, 18.4],
        "em_after_low": [2.0, 10.4],
        "em_after_high": [9.0, 27.8],
    }
    data = {name: (("edit", "attack"), [row]) for name, row in values.items()}
    attacks = xr.Dataset(data, {"edit": [edit], "attack": ["none", "prefix length"]})
    sure = said(StudyFiles(unlearned=unlearned, attacks=attacks))["How sure"]
    assert "(shorter or longer prefixes) still gets 18.4 tokens of the targets (10.4 to 27.8)" in sure
    nothing = attacks.assign(em_after=attacks.em_after * 0 + 6.3)
    assert f"no attack on {edit} recovers" in said(StudyFiles(unlearned=unlearned, attacks=nothing))["How sure"]


@pytest.mark.parametrize("gone", STAGES)
def test_a_stage_that_was_not_run_is_named_and_the_rest_is_shown(study_folder, tmp_path, gone):
    for name in STAGES:
        if name != gone:
            shutil.copy(study_folder / name, tmp_path / name)
    text = visible_text(write_report(tmp_path))
    assert f"there is no {gone}" in text.lower()
    assert text.count("How to read this") >= 3


def test_only_a_manifest_still_gives_a_page(tmp_path):
    (tmp_path / "study.json").write_text('{"model": "odd", "timings": [1], "seed": null}')
    text = visible_text(write_report(tmp_path))
    assert text.count("there is no") == 7 and '"odd"' in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("heads.nc", b"not hdf", "has no checksum at its end"),
        ("study.json", b"{", "not readable as JSON"),
        ("study.json", b"[1]", "holds a list"),
        ("unrelated.txt", b"", "holds no study"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_a_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "none")


def test_a_control_that_does_as_much_is_called_that(synthetic):
    assert "the choice of weights matters" in removal_text(synthetic.unlearned(rng()))
    assert "does not show that the chosen weights" in removal_text(synthetic.unlearned(rng(), random_after=8.0))
    assert "random ones have part of the effect" in removal_text(synthetic.unlearned(rng(), random_after=30.0))


def test_what_goes_with_the_targets_is_said(synthetic):
    assert "specific to its targets" in removal_text(synthetic.unlearned(rng(), held_out_after=48.0))
    assert "ability to reproduce more than the targets" in removal_text(synthetic.unlearned(rng(), held_out_after=5.0))


def test_the_price_is_named_by_tokens_by_share_and_by_loss(synthetic):
    assert "a negligible cost" in removal_text(synthetic.unlearned(rng()))
    for name, value in (("em", 3.0), ("nll", 3.9)):
        data = synthetic.unlearned(rng())
        data[name][1, 2] = value
        assert "the edit has a cost" in removal_text(data)


def test_an_edit_that_removed_nothing_is_said_to_have_removed_nothing(synthetic):
    data = synthetic.unlearned(rng())
    data["em"][1:, 0] = 49.6
    text = removal_text(data)
    assert "hardly changes" in text and "neither edit removed a noticeable amount" in text and "specific" not in text
    assert "Contrastive, all weights, removes nothing" in text


def test_a_study_without_unseen_text_and_with_another_fraction(synthetic):
    data = synthetic.unlearned(rng()).sel(set=["targets", "other"])
    data = data.assign_coords(edit=["original", "NPO, top 1 %", "NPO, random 1 %", "NPO, all weights"])
    assert "NPO, top 1 %" in removal_text(data) and "never seen" not in removal_text(data)


def test_no_needed_head_is_said(synthetic):
    heads = synthetic.heads(rng())
    heads["em_change"] = heads.em_change * 0.01
    assert where_section(StudyFiles(heads=heads)).answer[0].startswith("No single head is needed")


def test_a_head_that_all_text_needs_is_not_called_specific(synthetic):
    heads = synthetic.heads(rng())
    heads["nll_change"].loc[{"set": "other"}] = 9.0
    assert "not specific to memorized text" in " ".join(where_section(StudyFiles(heads=heads)).answer)


def test_heads_are_shown_by_the_change_that_was_measured_the_most_needed_first(synthetic):
    heads = synthetic.heads(rng())
    section = where_section(StudyFiles(heads=heads))
    pictures = figures_of(section)
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert np.allclose(pictures[0].data[0].z, heads.em_change.sel(set="memorized"))
    assert pictures[0].layout.annotations[0].text == "1" and pictures[0].layout.annotations[0].x == 2
    assert list(table.columns[1:]) == [
        "EM change, memorized",
        "EM change, other",
        "NLL change, memorized",
        "NLL change, other",
    ]
    assert table.rows[0][0] == "L1H2" and table.rows[0][1] == pytest.approx(-18.4)
    values = [float(str(row[1])) for row in table.rows]
    assert values == sorted(values)


def test_patching_is_shown_as_the_change_of_the_nll(synthetic):
    patching = synthetic.patching(rng())
    stream, heads = (picture.data[0] for picture in figures_of(where_section(StudyFiles(patching=patching))))
    assert stream.reversescale and heads.reversescale
    assert stream.z[0][0] == pytest.approx(-2.0) and stream.z[-1][-1] == pytest.approx(-1.9)
    assert heads.z[1][2] == pytest.approx(-1.0)


def test_gradients_are_compared_both_ways(synthetic):
    data = synthetic.gradients(rng())
    assert "times smaller in total" in where_section(StudyFiles(gradients=data)).answer[0]
    swapped = data.assign_coords(set=["other", "memorized"])
    assert "times larger in total" in where_section(StudyFiles(gradients=swapped)).answer[0]


def test_rare_tokens_are_judged_by_sign_against_the_expectation_of_the_stage(synthetic):
    data = synthetic.rare(rng())
    first, chance, _ = attention_section(StudyFiles(rare=data)).answer
    assert "Head L1H2 attends most to rare tokens" in first and "31.0 percentage points" in first
    assert "expected from other paragraphs' attention to the same positions" in first
    assert chance.startswith(f"{int(((data.p_value < 0.05) & (data.excess > 0)).sum()) or 'None'} of 42 heads")
    data["excess"], data["spearman"] = -abs(data.excess) - 0.01, data.spearman * np.nan
    first, chance, last = attention_section(StudyFiles(rare=data)).answer
    assert first.startswith("No head attends to rare tokens more") and chance.startswith("None of 42 heads has")
    assert last.startswith("In no head")


def test_the_most_needed_head_is_ranked_by_its_rare_attention(synthetic):
    answer = attention_section(StudyFiles(heads=synthetic.heads(rng()), rare=synthetic.rare(rng()))).answer[-1]
    assert "The most needed head, L1H2, is number 1 of 42" in answer


def test_plain_paragraphs_without_counts_kinds_or_text_are_enough():
    paragraphs = Paragraphs(np_tokens(6), 5).with_columns(em=[5, 0, 1, 2, 5, 3], set=["memorized", *["other"] * 5])
    section = memorized_section(StudyFiles(paragraphs=paragraphs))
    assert len(section.blocks) == 2 and "1 of 6 paragraphs" in section.answer[0]


def test_a_model_that_memorized_nothing():
    paragraphs = Paragraphs(np_tokens(3), 5).with_columns(
        em=[0, 1, 1], count=[1, 1, 4], cluster=[0, 1, 2], source=["a", "a", "b"], set=["other"] * 3
    )
    section = memorized_section(StudyFiles(paragraphs=paragraphs))
    assert (
        section.answer[0].startswith("The model continues 0 of 3 paragraphs (0.0 %)")
        and "cluster" not in section.answer[0]
    )


def test_near_duplicates_of_trained_text_are_told_from_fresh_text():
    paragraphs = Paragraphs(np_tokens(6), 5).with_columns(
        em=[5, 5, 0, 1, 0, 5],
        count=[0, 0, 0, 0, 0, 9],
        cluster_count=[7, 7, 7, 0, 0, 9],
        seen=[*["unseen variant"] * 3, *["never seen"] * 2, "trained"],
        set=["memorized", "memorized", "other", "other", "other", "memorized"],
    )
    fresh, near = memorized_section(StudyFiles(paragraphs=paragraphs)).answer[-2:]
    assert "Of the 2 paragraphs that have no near-duplicate in the training text, none is completed" in fresh
    assert near.startswith("Of the 3 paragraphs") and near.endswith(
        "near-duplicates of text that does, 2 are completed to the end."
    )
    guessed = paragraphs.with_columns(cluster_count=[0, 0, 0, 0, 0, 9])
    answer = memorized_section(StudyFiles(paragraphs=guessed)).answer[-1]
    assert "2 are completed to the end: not every full match is evidence of memory here" in answer


def np_tokens(rows: int):
    import torch

    return torch.arange(rows * 10).reshape(rows, 10)


def test_columns_that_say_memorized_once_more_are_not_in_the_table_of_what_is(study_folder):
    tables = {
        block.title: block for block in memorized_section(read_study(study_folder)).blocks if isinstance(block, Table)
    }
    assert list(tables["Some memorized paragraphs"].columns) == ["Id", "Kind", "Seen", "Cluster", "NLL", "Paragraph"]
    assert "EM" in tables["Near misses"].columns


def test_the_manifest_is_shown_in_full(study_folder):
    text = visible_text(write_report(study_folder))
    manifest = json.loads((study_folder / "study.json").read_text())
    assert all(str(value) in text for value in manifest["versions"].values())
    assert json.dumps(manifest, indent=2, ensure_ascii=False) in text


def test_results_with_holes_do_not_stop_the_report(study_folder, tmp_path):
    shutil.copytree(study_folder, tmp_path / "study", ignore=shutil.ignore_patterns("report.html", "heads.nc"))
    heads = xr.load_dataset(study_folder / "heads.nc", engine="h5netcdf")
    heads["em_change"][:, 3] = np.nan
    save_netcdf(heads, tmp_path / "study" / "heads.nc")
    assert "L1H2" in visible_text(write_report(tmp_path / "study"))


def test_wording():
    assert percent(0.0333) == "3.3 %" and percent(0.00012) == "0.012 %" and percent(0.0) == "0.0 %"
    assert signed(-0.04) == "0.0" and signed(-1.25, 2) == "−1.25" and signed(3.0) == "+3.0"
    assert listed([]) == "none" and listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
