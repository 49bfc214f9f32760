"""`mechmem ladder` compares models on one set of paragraphs, and says in one sentence what it cannot compare."""

import numpy as np
import pytest
from typer.testing import CliRunner

import mechmem as mm
from mechmem.cli import app
from mechmem.data.assets import MODEL_FOLDER
from mechmem.data.netcdf import load_netcdf

runner = CliRunner()


def test_models_may_follow_one_option_and_their_curves_are_written(bundled, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in MODEL_FOLDER.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    bundled.select(np.arange(0, len(bundled), 300)).save(tmp_path / "p.parquet")
    out = tmp_path / "l.nc"
    words = ["ladder", "--models", "bundled", str(copy), "--corpus", str(tmp_path / "p.parquet"), "--out", str(out)]
    answer = runner.invoke(
        app, [*words, "--prefix-len", "10", "--prefix-len", "50", "--limit", "10", "--device", "cpu"]
    )
    assert answer.exit_code == 0, answer.output
    result = load_netcdf(out)
    assert result.model.values.tolist() == ["bundled", str(copy)] and result.sizes["paragraph"] == 10
    assert result.prefix_len.values.tolist() == [10, 50]
    np.testing.assert_array_equal(result.em[0], result.em[1])
    chosen = bundled.select(np.flatnonzero(np.isin(bundled.ids, result.paragraph.values)))
    expected = mm.score(mm.load_model("bundled", device="cpu"), chosen)
    np.testing.assert_array_equal(result.em.sel(model="bundled", prefix_len=50), expected.em)
    assert "Share extractable after 50 tokens" in answer.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "got no model"),
        (["--models", "a", "b"], "got no corpus for a, b"),
        (["--models", "bundled", "--corpus", "c.jsonl"], "scan it first"),
        (["--models", "bundled", "--out", "l.csv"], "ends in .nc"),
        (["--models", "bundled", "--limit", "0"], "--limit"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    answer = runner.invoke(app, ["ladder", *words])
    assert answer.exit_code == 2 and sentence in " ".join(answer.output.split()) and not list(tmp_path.iterdir())
