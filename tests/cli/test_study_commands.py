"""Every command of a study, once, through the command line."""

import json
import shutil
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from mechmem.cli import app, choices
from mechmem.study.folder import open_study

runner = CliRunner()


@pytest.fixture(scope="module")
def folder(small_study, tmp_path_factory):
    """A copy of the small study that commands may add to."""
    path = tmp_path_factory.mktemp("commands") / "study"
    shutil.copytree(small_study.folder, path)
    return path


def call(*words: object, code: int = 0) -> str:
    answer = runner.invoke(app, [str(word) for word in words])
    assert answer.exit_code == code, answer.output
    return " ".join(answer.output.split())


def test_run_says_what_every_stage_found(small_study):
    said = " ".join(small_study.output.split())
    for stage, finding in json.loads((small_study.folder / "study.json").read_text())["findings"].items():
        assert f"of 8, {stage}: {finding}" in said
    assert "stage 6 of 8, making NPO, all weights" in said and "Wrote" in said


def test_a_finished_study_is_recognized_without_a_model_and_without_torch(folder):
    code = f"""if True:
        import sys
        from typer.testing import CliRunner
        from mechmem.cli import app
        answer = CliRunner().invoke(app, ["run", "--out", {str(folder)!r}])
        print(answer.output)
        assert answer.exit_code == 0 and "torch" not in sys.modules and "xarray" not in sys.modules"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    said = " ".join(answer.stdout.split())
    assert "holds this study, finished" in said and "nothing to run" in said


@pytest.mark.parametrize(
    ("command", "files"),
    [("gradients", ["gradients.nc"]), ("heads", ["heads.nc", "rare.nc", "attention.nc"]), ("run", ["patching.nc"])],
)
def test_a_stage_s_command_writes_the_same_again(folder, small_study, command, files):
    for name in files:
        (folder / name).unlink()
    said = call(command, "--out", folder)
    for name in files:
        # The whole study names its folder alone.
        assert command == "run" or name in said
        one, two = (xr.load_dataset(f / name, engine="h5netcdf") for f in (small_study.folder, folder))
        assert one.identical(two)


def test_a_command_says_which_stages_it_runs_first_and_why(tmp_path):
    said = call("gradients", "--out", tmp_path / "new", "--limit", 60, "--set", "gradient_sample=2")
    assert "gradients needs scan, which" in said and "running first" in said
    assert open_study(tmp_path / "new").settings.gradient_sample == 2


def test_the_report_is_written_anew(folder):
    (folder / "report.html").unlink(missing_ok=True)
    assert "report.html" in call("report", folder)
    assert (folder / "report.html").exists()


def test_an_old_study_is_a_config_and_what_is_given_and_differs_is_refused(folder, tmp_path):
    call("scan", "--out", tmp_path / "s", "--limit", 30)
    said = call("run", "--config", folder / "study.json", "--out", tmp_path / "s", code=2)
    assert "holds a study with other settings" in said and "limit was 30, now 200" in said
    said = call("evaluate", "npo-all", "--out", folder, "--model", "gpt2", code=2)
    assert "model was 'bundled', now 'gpt2'" in said
    said = call("run", "--out", folder, "--set", "pair=3", code=2)
    assert "unknown setting 'pair'; did you mean pairs?" in said


def test_config_prints_a_file_that_run_takes(tmp_path):
    answer = runner.invoke(app, ["config"])
    (tmp_path / "study.toml").write_text(answer.output)
    assert answer.exit_code == 0 and "# pairs: memorized paragraphs that are patched" in answer.output
    said = call("run", "--config", tmp_path / "study.toml", "--out", tmp_path / "s", "--model", tmp_path / "no", code=2)
    assert "got no corpus for" in said or "no such" in said


def test_an_edit_is_made_evaluated_attacked_and_exported_without_repeating_the_study(folder, tmp_path):
    out = ["--out", folder]
    said = call("unlearn", *out, "--name", "mine", "--weights", "all", "--steps", 3, "--batch-size", 4)
    assert "Ended by" in said and "the mean EM of the targets went from 50.0 to" in said
    settings = open_study(folder).edits["mine"].settings
    assert (settings["learning_rate"], settings["method"], settings["batch_size"]) == (1e-4, "npo", 4)
    said = call("evaluate", *out, "mine", "--no-attacks")
    assert "What mine cost" in said and "held-out" in said
    call("export", *out, "mine", tmp_path / "hf")
    assert (tmp_path / "hf" / "README.md").exists() and (tmp_path / "hf" / "model.safetensors").exists()
    costs = open_study(folder).edits["mine"].costs
    assert costs is not None and np.isfinite(costs.kl.values).all()
    # An exported edit stands for a model that never read the targets.
    said = call("evaluate", *out, "mine", "--no-attacks", "--oracle", tmp_path / "hf")
    assert "KL to the oracle" in said
    costs = open_study(folder).edits["mine"].costs
    assert costs is not None and costs.model.values.tolist() == ["before", "after", "oracle"]
    assert not costs.oracle_kl.sel(model="after").any() and (costs.oracle_kl.sel(model="before") > 0).all()
    said = call("evaluate", *out, "mine", "--no-attacks", "--oracle", "bundled", code=2)
    assert "got the original model as oracle" in said


def test_an_edit_that_removed_nothing_is_said_to_have_removed_nothing(folder):
    answer = runner.invoke(
        app, ["unlearn", "--out", str(folder), "--name", "none", "--learning-rate", "1e-9", "--steps", "1"]
    )
    assert answer.exit_code == 0 and "removed nothing" in answer.output


def test_edit_and_memorize_make_edits(folder):
    assert "Ended by" in call("edit", "--out", folder, "--steps", 1)
    assert "Ended by" in call("memorize", "--out", folder, "--steps", 1, "--learning-rate", "1e-3")
    assert {"edit", "memorize"} <= set(open_study(folder).edits)
    said = call("memorize", "--out", folder, "--name", "m", "--learning-rate", "fast", code=2)
    assert "got 'fast' as --learning-rate; need a number or auto" in said


def test_an_unknown_choice_lists_all_and_a_bad_device_is_a_sentence(folder):
    said = call("unlearn", "--out", folder, "--name", "b", "--method", "magic", code=2)
    assert all(f"'{name}'" in said for name in get_args(choices.UnlearnMethod))
    said = call("evaluate", "npo-all", "--out", folder, "--device", "nonsense", code=2)
    assert "error:" in said and "nonsense" in said


def test_the_options_choices_are_the_library_s():
    from mechmem.intervene.unlearn import Method
    from mechmem.localize.neurons import METHODS as LOCALIZERS
    from mechmem.measure import exact, perturb, replacements

    assert set(get_args(choices.UnlearnMethod)) == set(get_args(Method))
    assert set(get_args(choices.Localizer)) == set(LOCALIZERS)
    assert choices.Scope == perturb.Scope and choices.Replacement == replacements.Replacement
    assert choices.ScanMethod == exact.Method and choices.Precision == exact.Precision


def test_head_reports_on_one_head_and_names_what_was_not_shown(folder):
    said = call("head", "L0H1", "--out", folder, "--sample", 4)
    found = xr.load_dataset(folder / "head-L0H1.nc", engine="h5netcdf")
    assert " ".join(found.attrs["verdict"].split()) in said and found.attrs["head"] == "L0H1"
    assert found.sizes["test"] == 5 and np.isfinite(found.nll_change).all()
    kinds = found.view_set.values.tolist()
    # Each perturbed paragraph stands beside its own original.
    count = kinds.count("perturbed")
    assert count and kinds == ["memorized"] * count + ["perturbed"] * count + ["other"] * 2
    different = (found.token.values[0] != found.token.values[count]).sum()
    assert 1 <= different <= 51, "one token, and what the model said after it"
    assert "Head L0H1" in (folder / "head-L0H1.html").read_text()
    said = call("head", "--out", folder, "--sample", 4)
    assert "Wrote" in said and "nats per token" in said and "Of 48 heads these attend to rare tokens" in said


@pytest.mark.parametrize("name", ["L9H9", "1,2,3", "L1", "any"])
def test_a_head_that_does_not_exist_is_one_line(folder, tmp_path, name):
    said = call("head", name, "--out", folder, code=2)
    assert said.startswith("error: got") and "need" in said
    if name != "L9H9":  # which needs the model's size
        call("head", name, "--out", tmp_path / "new", code=2)
        assert not (tmp_path / "new").exists()
