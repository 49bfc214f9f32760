import json

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from mechmem.cli import app
from mechmem.data.assets import bundled_paragraphs
from mechmem.data.paragraphs import Paragraphs
from mechmem.weights.masks import Mask

runner = CliRunner()
COMMANDS = (
    "check", "config", "detect", "edit", "evaluate", "export", "gradients", "head", "heads", "ladder", "localize",
    "memorize", "paper", "patch", "perturb", "report", "run", "scan", "unlearn", "watch",
)  # fmt: skip


def test_help_names_every_command_and_what_it_writes():
    answer = runner.invoke(app, ["--help"])
    assert answer.exit_code == 0
    for command in COMMANDS:
        assert command in answer.output


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_has_more_than_fifteen_options_in_its_first_panel(command):
    answer = runner.invoke(app, [command, "--help"], env={"COLUMNS": "100"})
    assert answer.exit_code == 0
    first = answer.output.split("─ Options ─")[1].split("╰")[0]
    assert 1 <= sum(line.startswith("│ --") for line in first.splitlines()) <= 15 + 1  # --help itself


def test_a_study_s_scan_writes_the_paragraphs_and_says_where(tmp_path):
    answer = runner.invoke(app, ["scan", "--out", str(tmp_path / "s"), "--limit", "40"])
    assert answer.exit_code == 0, answer.output
    assert (tmp_path / "s" / "paragraphs.parquet").exists() and not (tmp_path / "s" / "gradients.nc").exists()
    assert "stage 1 of 8, scan: " in answer.output and "of 40 paragraphs reproduced exactly" in answer.output


def test_a_scan_writes_one_file_and_its_account(tmp_path):
    lines = [json.dumps({"text": text}) for text in bundled_paragraphs().column("text")[:9]]
    (tmp_path / "c.jsonl").write_text("\n".join([*lines, "{"]))
    out = tmp_path / "p.parquet"
    options = ["--corpus", str(tmp_path / "c.jsonl"), "--out", str(out), "--stride", "50", "--no-edit-distance"]
    answer = runner.invoke(app, ["scan", *options, "--min-distinct", "0.1", "--paper-keywords"])
    assert answer.exit_code == 0, answer.output
    paras = Paragraphs.load(out)
    assert {"em", "nll", "count", "cluster", "text"} <= set(paras.table.column_names if paras.table else [])
    settings = json.loads(out.with_suffix(".scan.json").read_text())["described"]["settings"]
    assert settings["windows"]["stride"] == 50 and "license" in settings["windows"]["keywords"]
    assert "skipped: bad JSON" in answer.output and "memorized (EM 50)" in answer.output


@pytest.mark.parametrize("option", [["--stride", "50"], ["--engine", "ray"], ["--method", "cascade"]])
def test_a_study_refuses_the_options_of_a_scan(tmp_path, option):
    answer = runner.invoke(app, ["scan", "--out", str(tmp_path / "s"), *option])
    assert answer.exit_code == 2 and "name a .parquet" in answer.output and not (tmp_path / "s").exists()


def test_bad_input_ends_with_its_sentence_and_exit_code_2(tmp_path):
    answer = runner.invoke(app, ["run", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "s")])
    assert answer.exit_code == 2
    assert "error:" in answer.output and "none" in answer.output and "Traceback" not in answer.output
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("out", ["s", "s.parquet"])
def test_a_corpus_of_other_ids_is_refused_before_anything_is_scored(tmp_path, out):
    np.save(tmp_path / "ids.npy", np.full((3, 100), 50_000, dtype=np.int32))
    answer = runner.invoke(app, ["scan", "--corpus", str(tmp_path / "ids.npy"), "--out", str(tmp_path / out)])
    assert answer.exit_code == 2 and "50000" in answer.output.replace(",", "")
    assert [path.name for path in tmp_path.iterdir()] == ["ids.npy"]


def test_perturb_writes_the_numbers_and_the_pairs(tmp_path):
    known = bundled_paragraphs()
    order = np.argsort(-known.column("count"), kind="stable")
    known.select(order[:300:50]).save(tmp_path / "p.parquet")
    known.select(order[:6]).save(tmp_path / "robust.parquet")
    out = tmp_path / "perturbed.nc"
    options = ["--paragraphs", str(tmp_path / "p.parquet"), "--out", str(out)]
    answer = runner.invoke(app, ["perturb", *options])
    assert answer.exit_code == 0, answer.output
    result = xr.load_dataset(out, engine="h5netcdf")
    assert result.em_change.shape == (6, 50) and float(result.em_change.mean()) < 0
    assert set(result.clean_em.values) == {50} and set(result.paragraph.values) == set(known.ids[order[:300:50]])
    clean, corrupt = (Paragraphs.load(tmp_path / f"perturbed-{name}.parquet") for name in ("clean", "corrupt"))
    assert ((clean.tokens != corrupt.tokens)[:, :50].sum(1) == 1).all() and 1 <= len(clean) <= 6
    assert "Tokens that matter most" in answer.output and "perturbed-corrupt.parquet" in answer.output
    # No replacement changes how the model continues the two that this seed draws of those it saw most often.
    robust = ["--paragraphs", str(tmp_path / "robust.parquet"), "--out", str(tmp_path / "robust.nc"), "--limit", "2"]
    answer = runner.invoke(app, ["perturb", *robust])
    assert answer.exit_code == 0 and "No pairs: got no replacement" in " ".join(answer.output.split())
    assert (tmp_path / "robust.nc").exists() and not (tmp_path / "robust-clean.parquet").exists()
    for wrong, sentence in ((["--limit", "0"], "got 0 as --limit"), (["--out", "x.txt"], "ends in .nc")):
        answer = runner.invoke(app, ["perturb", *options, *wrong])
        assert answer.exit_code == 2 and sentence in answer.output


def test_perturb_says_when_nothing_is_memorized(tmp_path):
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(1, 4096, (3, 100)))
    options = ["--paragraphs", str(tmp_path / "ids.npy"), "--out", str(tmp_path / "o.nc")]
    answer = runner.invoke(app, ["perturb", *options])
    assert (
        answer.exit_code == 2
        and "none of 3 paragraphs has EM 50" in " ".join(answer.output.split())
        and not (tmp_path / "o.nc").exists()
    )


def test_localize_writes_scores_and_a_mask_of_the_neurons_that_they_name(tmp_path):
    out = tmp_path / "s"
    options = ["--out", str(out), "--limit", "40", "--sample", "3", "--method", "gate_gradient"]
    answer = runner.invoke(app, ["localize", *options, "--fraction", "0.002"])
    assert answer.exit_code == 0, answer.output
    scores = xr.load_dataarray(out / "neurons-gate_gradient.nc", engine="h5netcdf")
    mask = Mask.load(out / "neurons-gate_gradient-mask.safetensors")
    layer, neuron = np.unravel_index(scores.values.argmax(), scores.shape)
    assert scores.attrs["method"] == "gate_gradient" and f"L{layer} N{neuron}" in answer.output
    # Twelve neurons; each has a column of W_in and a row of W_out.
    assert sum(len(chosen) for chosen in mask.indices.values()) == 12 * 2 * 256
    again = runner.invoke(app, ["localize", *options, "--paragraph", "no such"])
    assert again.exit_code == 2 and "got 0 paragraphs with the id no such" in " ".join(again.output.split())


def test_localize_refuses_bad_choices_before_anything_is_scanned(tmp_path):
    for option, said in ((["--method", "magic"], "'hard_concrete'"), (["--fraction", "0"], "got 0.0 as --fraction")):
        answer = runner.invoke(app, ["localize", "--out", str(tmp_path / "s"), *option])
        assert answer.exit_code == 2 and said in " ".join(answer.output.split())
        assert not (tmp_path / "s").exists()
