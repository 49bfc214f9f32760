"""`mechmem detect` and `mechmem watch` on a small study of the bundled model."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from mechmem.cli import app
from mechmem.data.assets import bundled_paragraphs
from mechmem.study.folder import open_study

runner = CliRunner()


def watch(study, *words: str, code: int = 0, given: str | bytes | None = None) -> str:
    answer = runner.invoke(app, ["watch", *words, "--out", str(study.folder)], input=given)
    assert answer.exit_code == code, answer.output + repr(answer.exception)
    return answer.output


def flat(text: str) -> str:
    return " ".join(text.split())


def memorized_id(study) -> str:
    paragraphs = open_study(study.folder).paragraphs
    return str(paragraphs.ids[paragraphs.column("set") == "memorized"][0])


def test_detect_prints_what_is_found_early_and_a_plain_sentence(detected_study):
    said = flat(detected_study.output)
    assert "recitations flagged with 40 tokens to come" in said and "calibration error" in said
    # Twenty others are too few for a threshold at 1 %.
    assert "(bound 20.0" in said and "too few for a threshold at 1 % false alarms" in said and "nan" not in said
    for name in ("detector", "detect.nc", "report.html"):
        assert f"Wrote {detected_study.folder.resolve() / name}" in said and (detected_study.folder / name).exists()


def test_detect_again_does_nothing_and_other_settings_are_refused(detected_study, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(detected_study.folder, folder)
    sizes = ["--trained", "30", "--evaluated", "20", "--false-alarms", "0.2"]
    words = ["detect", "--out", str(folder), "--features", "output", "--method", "logistic", *sizes]
    stamp = (folder / "detect.nc").stat().st_mtime_ns
    assert runner.invoke(app, words).exit_code == 0 and (folder / "detect.nc").stat().st_mtime_ns == stamp
    answer = runner.invoke(app, [*words, "--evaluated", "21"])
    assert answer.exit_code == 2 and "evaluated was 20, now 21" in flat(answer.output)
    answer = runner.invoke(app, [*words, "--features", "output,heads"])
    assert answer.exit_code == 2 and "got features[1] 'heads'" in flat(answer.output)


def test_watch_draws_a_memorized_paragraph_and_says_how_it_ended(detected_study):
    study = open_study(detected_study.folder)
    said = watch(detected_study, "--paragraph", memorized_id(detected_study), "--false-alarms", "0.2")
    known = study.paragraphs.column("set") == "memorized"
    continuation = str(study.paragraphs.column("continuation_text")[known][0])
    assert flat(continuation) in flat(said.replace("[alarm]", "").replace("↵", ""))
    assert "\x1b" not in said and ("No alarm in 50 tokens" in said or "Alarm after " in said)


def test_lines_of_json_agree_with_the_monitor(detected_study):
    from mechmem.detect.monitor.monitor import Monitor

    study = open_study(detected_study.folder)
    text = "The rain in"
    options = ["--temperature", "0.8", "--top-k", "20", "--seed", "3", "--max-new-tokens", "9", "--false-alarms", "0.2"]
    lines = [json.loads(line) for line in watch(detected_study, text, *options, "--jsonl").splitlines()]
    monitor = Monitor(study.detector, study.model, "flag", false_alarms=0.2)
    expected = list(monitor.stream(text, 9, temperature=0.8, top_k=20, seed=3))
    assert [line["id"] for line in lines[:-1]] == [token.id for token in expected]
    np.testing.assert_allclose([line["score"] for line in lines[:-1]], [token.score for token in expected], rtol=1e-5)
    assert [line["flagged"] for line in lines[:-1]] == [token.flagged for token in expected]
    assert lines[-1]["summary"] and lines[-1]["tokens"] == len(expected) and lines[-1]["action"] == "flag"


def test_a_prompt_from_standard_input_is_the_same_prompt(detected_study):
    words = ["--jsonl", "--max-new-tokens", "3"]
    piped = watch(detected_study, "-", *words, given="The rain in\n")
    assert piped == watch(detected_study, "The rain in", *words)
    assert "is not UTF-8" in watch(detected_study, "-", code=2, given=b"\xff\xfe")
    assert "got an empty prompt" in watch(detected_study, "-", code=2, given="\n")


def test_block_takes_the_study_s_memorized_paragraphs(detected_study):
    name = memorized_id(detected_study)
    plain, blocked = (
        json.loads(watch(detected_study, "--paragraph", name, "--jsonl", *words).splitlines()[-1])["text"]
        for words in ([], ["--action", "block"])
    )
    assert plain != blocked


def test_a_pipe_gets_the_same_lines_and_nothing_else(detected_study):
    words = ["watch", "The rain in", "--out", str(detected_study.folder), "--jsonl", "--max-new-tokens", "3"]
    done = subprocess.run([sys.executable, "-m", "mechmem.cli", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and [json.loads(line).get("k") for line in done.stdout.splitlines()] == [0, 1, 2, None]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "got no prompt; need one of them"),
        (["x", "--paragraph", "3"], "got a prompt and --paragraph"),
        ([""], "got an empty prompt"),
        (["x", "--action", "shout"], "'shout'"),
        (["x", "--action", "steer"], "got --action steer without --heads"),
        (["x", "--heads", "L0H1"], "got --heads with --action flag"),
        (["x", "--memorized", "p.parquet"], "got --memorized with --action flag"),
        (["x", "--action", "steer", "--heads", "first"], "got the heads 'first'"),
        (["x", "--action", "steer", "--heads", "L9H0"], "layer below 6"),
        (["x", "--detector", "nowhere"], "nowhere: holds no detector; train one with `mechmem detect"),
        (["x", "--false-alarms", "1"], "got 1.0 as --false-alarms"),
        (["x", "--max-new-tokens", "0"], "got 0 as --max-new-tokens"),
        (["--paragraph", "no such"], "has 0 paragraphs with the id 'no such'"),
        (["word " * 2000], "need at most the context"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_said(detected_study, words, said):
    answer = watch(detected_study, *words, code=2)
    assert said in flat(answer) and "Traceback" not in answer


def test_a_detector_of_another_model_is_refused(detected_study, tiny_pair, tmp_path):
    tiny_pair.reference.save_pretrained(tmp_path / "tiny")
    said = flat(
        watch(detected_study, "--paragraph", memorized_id(detected_study), "--model", str(tmp_path / "tiny"), code=2)
    )
    assert "got a detector of a model with 6 layers" in said


def test_a_threshold_that_is_never_reached_is_said(detected_study):
    answer = runner.invoke(
        app, ["watch", "x", "--out", str(detected_study.folder), "--false-alarms", "0.001", "--max-new-tokens", "2"]
    )
    assert answer.exit_code == 0 and "no alarm is ever raised" in flat(answer.output)


def test_block_without_paragraphs_says_what_to_give(detected_study, tmp_path):
    words = ["watch", "x", "--action", "block", "--detector", str(detected_study.folder / "detector")]
    answer = runner.invoke(app, [*words, "--out", str(tmp_path / "none")])
    assert answer.exit_code == 2 and "without --memorized" in flat(answer.output)
    none = bundled_paragraphs()[:3].with_columns(set=["other"] * 3)
    none.save(tmp_path / "p.parquet")
    answer = runner.invoke(app, [*words, "--memorized", str(tmp_path / "p.parquet")])
    assert answer.exit_code == 2 and "holds no memorized paragraph" in flat(answer.output)
