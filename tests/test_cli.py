import numpy as np
from typer.testing import CliRunner

from mechmem.cli import app

runner = CliRunner()


def test_help_names_every_command_and_what_it_writes():
    answer = runner.invoke(app, ["--help"])
    assert answer.exit_code == 0
    for command in ("run", "scan", "gradients", "heads", "unlearn", "report", "check"):
        assert command in answer.output
        assert runner.invoke(app, [command, "--help"]).exit_code == 0


def test_scan_writes_the_paragraphs_and_says_where(tmp_path):
    answer = runner.invoke(app, ["scan", "--out", str(tmp_path / "s"), "--limit", "40"])
    assert answer.exit_code == 0, answer.output
    assert (tmp_path / "s" / "paragraphs.parquet").exists() and not (tmp_path / "s" / "gradients.nc").exists()
    assert "Where the time went" in answer.output and "scoring paragraphs" in answer.output


def test_bad_input_ends_with_its_sentence_and_exit_code_2(tmp_path):
    answer = runner.invoke(app, ["run", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "s")])
    assert answer.exit_code == 2
    assert "error:" in answer.output and "none" in answer.output and "Traceback" not in answer.output
    assert not (tmp_path / "s").exists()


def test_a_corpus_of_other_ids_is_refused_before_anything_is_scored(tmp_path):
    np.save(tmp_path / "ids.npy", np.full((3, 100), 50_000, dtype=np.int32))
    answer = runner.invoke(app, ["scan", "--corpus", str(tmp_path / "ids.npy"), "--out", str(tmp_path / "s")])
    assert answer.exit_code == 2 and "50000" in answer.output.replace(",", "")
    assert not (tmp_path / "s").exists()
