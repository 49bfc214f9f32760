"""Every number on the command line is refused in one sentence, before anything is loaded or written."""

import inspect
from typing import get_args

import pytest
from typer.testing import CliRunner

from mechmem.cli import app
from mechmem.study.edit_settings import check_edit_name

runner = CliRunner()
NONSENSE = ("-3915", "nan", "inf", "-inf", "1e400", "x", "True")
TOO_LARGE = str(2**70)
PER_COMMAND = {"evaluate": ["npo-all"], "export": ["npo-all", "out"]}


def numeric_options() -> list[tuple[str, str, bool]]:
    """(command, flag, whether it is whole) of every option that takes a number, read off the commands themselves."""
    found = []
    for command in app.registered_commands:
        assert command.callback is not None
        for parameter in inspect.signature(command.callback).parameters.values():
            kind, option = get_args(parameter.annotation)
            flags = [flag for flag in option.param_decls or () if flag.startswith("--")]
            if {int, float} & {kind, *get_args(kind)}:
                flag = (flags or ["--" + parameter.name.replace("_", "-")])[0]
                found.append((command.callback.__name__, flag, int in (kind, *get_args(kind))))
    return found


def test_options_with_numbers_are_found():
    options = {flag for _, flag, _ in numeric_options()}
    assert {"--limit", "--seed", "--steps", "--fraction", "--keep-weight", "--target-em", "--stride"} <= options


@pytest.mark.parametrize(("command", "flag", "whole"), numeric_options())
def test_nonsense_is_refused_before_anything_is_done(command, flag, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in (*NONSENSE, *([TOO_LARGE] if whole else [])):
        answer = runner.invoke(app, [command, *PER_COMMAND.get(command, []), flag, value])
        said = " ".join(answer.output.split())
        assert answer.exit_code == 2, f"{flag} {value}: {said}"
        assert f"as {flag}; need a" in said or f"Invalid value for '{flag}'" in said
        assert "Traceback" not in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["unlearn", "edit", "memorize"])
@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1e-3", "fast", ""])
def test_a_learning_rate_is_a_number_above_zero_or_auto(command, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = runner.invoke(app, [command, "--learning-rate", value])
    assert answer.exit_code == 2 and "as --learning-rate; need a" in " ".join(answer.output.split())
    assert not list(tmp_path.iterdir())


def test_help_says_which_numbers_an_option_takes():
    answer = runner.invoke(app, ["unlearn", "--help"], env={"COLUMNS": "300"})
    assert "(at least 1)" in answer.output and "(above 0 and at most 1)" in answer.output


def test_a_name_that_cannot_be_one_is_refused_before_the_study_is_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = runner.invoke(app, ["memorize", "--name", "../x"])
    assert answer.exit_code == 2 and "need a plain name" in answer.output and not list(tmp_path.iterdir())
    check_edit_name("top")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["unlearn", "--steps", "5"], "got --steps without --name; need --name NAME"),
        (["unlearn", "--method", "kfac", "--keep-kl", "0.1"], "got --method and --keep-kl without --name"),
        (["unlearn", "--name", "x", "--mask", "none.safetensors"], "none.safetensors: no such file"),
        (["memorize", "--targets", "none.parquet"], "none.parquet: no such"),
        (["edit", "--text", "\udcff"], "which is not Unicode"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_the_study_is_scored(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = runner.invoke(app, arguments)
    assert answer.exit_code == 2 and said in " ".join(answer.output.split()), answer.output
    assert not list(tmp_path.iterdir())
